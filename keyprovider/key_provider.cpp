#include "keyprovider/key_provider.hpp"

#include <algorithm>
#include <optional>

#include "crypto/mac.hpp"

namespace coffer {

Result<KeyId> KeyId::parse(std::string_view text) {
    bool printable = std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
    if (text.empty() || text.size() > k_max_size || !printable)
        return make_error(ErrorCode::InvalidArgument, "a key id is 1 to {} printable characters without spaces",
                          k_max_size);
    return KeyId(std::string(text));
}

std::vector<ProviderTestStep> KeyProvider::test() {
    std::vector<ProviderTestStep> steps;
    std::optional<KeyId> kek;
    std::optional<crypto::BundleKey> key;
    WrappedKey wrapped;
    bool ok = run_test_step(steps, "create", [&]() -> Result<std::string> {
        kek = TRY(create_kek("test"));
        key = TRY(crypto::BundleKey::random());
        return "key " + kek->text();
    });
    ok = ok && run_test_step(steps, "wrap", [&]() -> Result<std::string> {
             wrapped = TRY(wrap(*kek, *key));
             return std::string();
         });
    if (ok)
        run_test_step(steps, "unwrap", [&]() -> Result<std::string> {
            auto opened = TRY(unwrap(*kek, wrapped));
            if (!crypto::equal_in_constant_time(opened.expose(), key->expose()))
                return make_error(ErrorCode::Integrity, "what was wrapped came back as something else");
            return std::string();
        });
    return steps;
}

} // namespace coffer
