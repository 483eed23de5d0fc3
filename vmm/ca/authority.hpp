// This host's certificate authority for TPMs: issues endorsement key and platform certificates.
//
// An object of this class holds a private key. It lives in the processes that make TPMs and never in the one that faces
// a guest. It never sees a TPM's private keys: a certificate is about a public key alone.
#pragma once

#include <vector>

#include "base/uuid.hpp"
#include "crypto/certificate.hpp"
#include "devices/tpm/tpm_endorsement.hpp"

namespace coffer::vmm {

// What certificates say about a TPM (TCG EK Credential Profile 2.5, 3.2.9 and 3.2.10).
struct TpmIdentity {
    uint32_t manufacturer = 0; // TPM_PT_MANUFACTURER
    std::string model;         // TPM_PT_VENDOR_STRING_1 to _4
    uint32_t version = 0;      // TPM_PT_FIRMWARE_VERSION_1
    std::string family;        // "2.0"
    uint32_t level = 0;
    uint32_t revision = 0;

    static Result<TpmIdentity> of(devices::TpmClient& client);
};

class Authority {
public:
    // `chain`: the signing authority's certificate, those above it, and the self-signed root at the end.
    // InvalidArgument where that is not what they are, or the key is not the first one's.
    static Result<Authority> create(crypto::SigningKey key, std::vector<crypto::Certificate> chain);

    // Valid as long as the authority itself. The subject is empty: the alternative name says what the TPM is.
    Result<crypto::Certificate> issue_endorsement(devices::EkPublic const& key, TpmIdentity const& tpm,
                                                  int64_t now) const;
    // An attribute certificate (TCG Platform Certificate Profile 1.1, 3.2) in DER, about the platform whose TPM has the
    // endorsement certificate `holder`. The platform is named as its SMBIOS tables name it.
    Result<ByteVector> issue_platform(crypto::Certificate const& holder, Uuid const& vm, int64_t now) const;

    std::vector<crypto::Certificate> const& chain() const noexcept { return m_chain; }
    crypto::SigningKey const& key() const noexcept { return m_key; }

private:
    Authority(crypto::SigningKey key, std::vector<crypto::Certificate> chain)
        : m_key(std::move(key)), m_chain(std::move(chain)) {}

    crypto::SigningKey m_key;
    std::vector<crypto::Certificate> m_chain;
};

// What of an attribute certificate is shown and checked.
struct PlatformCertificate {
    ByteVector serial; // of the certificate and of its holder's, without sign octets
    ByteVector holder_serial;
    std::string manufacturer, model, version, platform_serial;
    int64_t not_before = 0;
    int64_t not_after = 0;
    ByteVector signed_part, signature;
};
// Corrupt where it is none of the form that issue_platform() makes.
Result<PlatformCertificate> parse_platform_certificate(Bytes der);

} // namespace coffer::vmm
