// A TPM's public key in the form that certificates have it.
#pragma once

#include "devices/tpm/tpm_endorsement.hpp"

namespace coffer::vmm {

// SubjectPublicKeyInfo. RSA keys are named rsaEncryption with NULL parameters (RFC 3279, 2.3.1), ECC keys by their
// curve (RFC 5480, 2.1.1).
ByteVector endorsement_key_info(devices::EkPublic const& key);

} // namespace coffer::vmm
