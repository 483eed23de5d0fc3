// What of a certificate authority comes from outside: its file, and the certificates in a TPM, which a guest's firmware
// can write. Whatever they say, reading stays inside of the bytes, and what is taken for good is what was signed.
#include <string>

#include "vmm/ca/authority_file.hpp"
#include "vmm/ca/tpm_certificates.hpp"

using namespace coffer;
using namespace coffer::vmm;

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    auto const bytes = std::as_bytes(std::span(data, size));
    if (auto parsed = parse_authority(bytes, "authority")) {
        COFFER_ASSERT(parsed->authenticated.size() + parsed->sealed.size() == bytes.size());
        COFFER_ASSERT(!parsed->header.chain.empty());
        // Nobody has the key.
        auto const key = crypto::BundleKey::adopt(crypto::SecretBytes(crypto::BundleKey::k_size));
        auto const opened = open_authority(*parsed, *key, "authority");
        COFFER_ASSERT(!opened && opened.error().code() == ErrorCode::Integrity);
    }
    if (auto certificate = parse_platform_certificate(bytes)) {
        COFFER_ASSERT(certificate->signed_part.size() < size && !certificate->signature.empty());
        COFFER_ASSERT(certificate->serial.size() < size);
    }
    if (auto chain = parse_chain(bytes))
        for (auto const& certificate : *chain) {
            COFFER_ASSERT(certificate.to_der().has_value());
            (void)certificate.describe();
            (void)certificate.is_authority();
        }
    std::string text;
    for (size_t i = 0; i < size; ++i) text += static_cast<char>(data[i]);
    (void)crypto::Certificate::parse_pem(text);
    return 0;
}
