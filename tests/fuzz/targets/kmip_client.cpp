// A KMIP client and provider whose server changes its answers as the input says: every operation ends, with a value or
// an error. The input is a sequence of changes, each of five bytes: which answer from now (1), where in it (2), how (1)
// and with what (1).
#include <array>
#include <mutex>

#include "base/log.hpp"
#include "crypto/random.hpp"
#include "keyprovider/kmip/kmip_provider.hpp"
#include "tests/support/kmip_double.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/lsan_interface.h>
#define COFFER_SEARCHES_LEAKS
#endif
#endif

namespace {

using namespace coffer;
using namespace coffer::kmip;

struct Mutator {
    Bytes input;
    size_t left = 0; // answers before the next change
    size_t answers = 0;

    void operator()(ByteVector& answer) {
        ++answers;
        if (left > 0) {
            --left;
            return;
        }
        while (input.size() >= 5) {
            size_t const at = load_be<uint16_t>(input, 1) % (answer.size() + 1);
            auto const how = load_le<uint8_t>(input, 3);
            auto const what = static_cast<std::byte>(load_le<uint8_t>(input, 4));
            input = input.subspan(5);
            switch (how % 5) {
            case 0:
                if (at < answer.size()) answer[at] ^= what;
                break;
            case 1:
                if (at < answer.size()) answer[at] = what;
                break;
            case 2: answer.resize(at); break;
            case 3: answer.insert(answer.begin() + static_cast<ptrdiff_t>(at), 8, what); break;
            default:
                // A length that claims more or less than there is.
                if (at / 8 * 8 + 8 <= answer.size()) store_be<uint32_t>(answer, at / 8 * 8 + 4, load_length(what));
                break;
            }
            if (input.empty() || (load_le<uint8_t>(input) & 7) == 0) continue;
            left = load_le<uint8_t>(input) & 7;
            return;
        }
    }
    static uint32_t load_length(std::byte what) { return 0x01010101U * static_cast<uint32_t>(what) >> 3; }
};

// OpenSSL's generators lie in the secure heap, which the search for leaks does not know: what they point to would be
// found as lost. They are made once a thread.
void make_generators() {
#ifdef COFFER_SEARCHES_LEAKS
    __lsan::ScopedDisabler const unsearched;
#endif
    std::array<std::byte, 1> byte{};
    COFFER_ASSERT(crypto::random_bytes(byte) && crypto::random_private_bytes(byte));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    log::set_level(log::Level::Error);
    static std::once_flag generators;
    std::call_once(generators, make_generators);
    Bytes const input = std::as_bytes(std::span(data, size));
    if (input.empty()) return 0;
    auto const first = load_le<uint8_t>(input);
    tests::KmipDouble server;
    Mutator mutator{input.subspan(1), size_t{first} & 7};
    Connector const connector = [&](Endpoint const&, Nanoseconds) -> Result<std::unique_ptr<Connection>> {
        return std::unique_ptr<Connection>(
            std::make_unique<tests::DoubleConnection>(server, [&](ByteVector& answer) -> Result<void> {
                mutator(answer);
                return {};
            }));
    };
    std::optional<ProtocolVersion> forced;
    if ((first & 8) != 0) forced = k_versions[(first >> 4) % k_versions.size()].version;
    auto make = [&] { return KmipClient(Cluster({{"a", 1}, {"b", 1}}, forced, connector)); };

    auto client = make();
    auto id = client.create();
    if (id) {
        // Results do not matter, only that they come.
        (void)client.query();
        (void)client.state(*id);
        (void)client.activate(*id);
        (void)client.get(*id);
        (void)client.get_wrapped(*id, *id);
        (void)client.set_attribute(*id, "Name", "vm");
        (void)client.locate("vm", 2);
        auto secret = crypto::SecretBytes::random(32);
        if (auto sealed = client.encrypt(*id, *secret)) (void)client.decrypt(*id, *sealed);
        (void)client.revoke(*id, RevocationReasonCode::CessationOfOperation);
        (void)client.destroy(*id);
    }
    KmipProvider provider(Uuid(), make(), (first & 0x80) != 0);
    auto key = crypto::BundleKey::random();
    if (auto kek = provider.create_kek("vm"))
        if (auto wrapped = provider.wrap(*kek, *key)) (void)provider.unwrap(*kek, *wrapped);
    COFFER_ASSERT(!provider.test().empty());
    // Two servers at most for each request, and one more try where a connection was idle.
    COFFER_ASSERT(mutator.answers < 200);
    return 0;
}
