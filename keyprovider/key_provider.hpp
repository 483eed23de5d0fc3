// Where key encryption keys come from. Providers run in the keeper process alone; other processes know the types of
// this header, and no key but the bundle key of their own home.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.hpp"
#include "base/clock.hpp"
#include "base/result.hpp"
#include "base/uuid.hpp"
#include "crypto/keys.hpp"

namespace coffer {

// A provider's name for one of its KEKs: printable ASCII, 1 to 255 characters. Opaque to everyone else.
class KeyId {
public:
    static constexpr size_t k_max_size = 255;

    // InvalidArgument where the text is not of the form above.
    static Result<KeyId> parse(std::string_view text);

    std::string const& text() const noexcept { return m_text; }
    bool operator==(KeyId const&) const = default;

private:
    explicit KeyId(std::string text) : m_text(std::move(text)) {}

    std::string m_text;
};

// A bundle key as its provider wrapped it: ciphertext.
struct WrappedKey {
    static constexpr size_t k_max_size = 4096;

    ByteVector bytes;
};

// One step of a provider's test, for a user to read.
struct ProviderTestStep {
    std::string name;
    Nanoseconds time = 0;
    bool failed = false;
    std::string text; // what was found, or why it failed

    template <class V>
    void fields(V& v) {
        v.required(1, name);
        v.required(2, time);
        v.required(3, failed);
        v.required(4, text);
    }
};

// Runs `step`, which gives a Result<std::string>, and notes what came of it. Whether it succeeded.
template <class Step>
bool run_test_step(std::vector<ProviderTestStep>& steps, std::string name, Step&& step) {
    auto const begun = monotonic_now();
    Result<std::string> result = step();
    bool const ok = result.has_value();
    steps.push_back({std::move(name), monotonic_now() - begun, !ok, ok ? *result : result.error().message()});
    return ok;
}

// Not thread-safe.
class KeyProvider {
public:
    virtual ~KeyProvider() = default;

    virtual Uuid id() const noexcept = 0;

    // A fresh KEK; `label` (a VM's name) is for the provider's own records.
    virtual Result<KeyId> create_kek(std::string_view label) = 0;
    // KeyUnavailable where the provider does not have the key.
    virtual Result<WrappedKey> wrap(KeyId const& kek, crypto::BundleKey const& key) = 0;
    // KeyUnavailable as above; Integrity where the wrapped bytes were changed or another KEK wrapped them. What the
    // key is used for is bound by the home's `keys` file, which authenticates its whole header under the bundle key.
    virtual Result<crypto::BundleKey> unwrap(KeyId const& kek, WrappedKey const& wrapped) = 0;

    // Does with a throw-away key what a VM's key needs. Ends at the first step that the next ones depend on.
    virtual std::vector<ProviderTestStep> test();
};

} // namespace coffer
