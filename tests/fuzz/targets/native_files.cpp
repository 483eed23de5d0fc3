// The files of native key providers as hostile bytes. The first byte says which parser the rest is for; where a digest
// or a key would stop the fuzzer at the door, it is made right here.
#include <cstdint>
#include <cstring>

#include "base/tagged.hpp"
#include "crypto/aead.hpp"
#include "crypto/mac.hpp"
#include "keyprovider/native/backup_file.hpp"
#include "keyprovider/native/kdk_file.hpp"
#include "keyprovider/native/native_provider.hpp"

namespace {

using namespace coffer;

constexpr size_t k_header = 80;
constexpr size_t k_key = crypto::KeyDerivationKey::k_size;

void must(bool holds) {
    if (!holds) __builtin_trap();
}

// A TPM that takes any object for the same 32 zero bytes.
class AnyTpm final : public HostTpm {
public:
    Result<TpmSealed> seal(Bytes) override { return TpmSealed(); }
    Result<crypto::SecretBytes> unseal(TpmSealed const&) override { return crypto::SecretBytes(k_key); }
};

// Passphrases are refused: a scrypt for each input would leave the fuzzer little to do.
Result<crypto::KeyDerivationKey> open(Bytes file) {
    static AnyTpm tpm;
    return detail::open_kdk(
        "kdk.1", file, KdkIdentity(),
        [](std::string_view) -> Result<crypto::SecretBytes> { return make_error(ErrorCode::KeyUnavailable, "no"); },
        []() -> Result<HostTpm*> { return &tpm; });
}

void parse_plain(ByteVector file) {
    if (file.size() != k_header + k_key + crypto::k_digest_size) return;
    auto digest = crypto::sha256({Bytes(file).first(k_header + k_key)});
    std::memcpy(file.data() + k_header + k_key, digest->data(), digest->size());
    if (auto kdk = open(file)) must(std::memcmp(kdk->expose().data(), file.data() + k_header, k_key) == 0);
}

// The input is header and object; the sealed key behind them is right.
void parse_bound(ByteVector file) {
    auto key = crypto::AeadKey::adopt(crypto::SecretBytes(k_key));
    ByteVector const kdk(k_key, std::byte{0x4B});
    append(file, *crypto::gcm_seal(*key, {}, file, kdk));
    if (auto opened = open(file)) must(std::memcmp(opened->expose().data(), kdk.data(), k_key) == 0);
}

void parse_bags(Bytes der) {
    auto secrets = crypto::detail::read_safe_bags(k_backup_secret_type, der);
    if (!secrets) return;
    must(!secrets->empty() && secrets->size() <= crypto::k_pkcs12_max_bags);
    if (auto backup = detail::read_backup(std::move(*secrets)))
        must(!backup->keys.contains(0) && !backup->keys.empty());
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* bytes, size_t size) {
    if (size == 0) return 0;
    Bytes const input = std::as_bytes(std::span(bytes + 1, size - 1));
    ByteVector const copy(input.begin(), input.end());
    switch (bytes[0]) {
    case 'k': (void)open(input); break;
    case 'p': parse_plain(copy); break;
    case 't': parse_bound(copy); break;
    case 'e':
        if (auto iterations = crypto::detail::check_pkcs12(input)) must(*iterations <= 20'000'000);
        break;
    case 'b': parse_bags(input); break;
    case 'd': {
        ProviderInfo info;
        if (decode_fields(input, info)) (void)info.lacks_backup();
        break;
    }
    case 'i': {
        std::string text;
        for (std::byte b : input) text += static_cast<char>(b);
        (void)NativeProvider::kdk_version_of(text);
        (void)check_tcti(text);
        break;
    }
    default: break;
    }
    return 0;
}
