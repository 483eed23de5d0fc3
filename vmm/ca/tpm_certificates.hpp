// TPMs with endorsement keys and certificates: how a TPM is made, and how its certificates are read and replaced.
#pragma once

#include "vmm/ca/authority_store.hpp"

namespace coffer::vmm {

// A new TPM's permanent state: fresh seeds, exactly these PCR banks, its endorsement keys persistent, and certificates
// of the authority in its NV memory. The VM's UUID is the platform's serial number. Runs the TPM in this process, and
// is Busy where it has one already.
Result<ByteVector> make_tpm(devices::PcrBankMask banks, Uuid const& vm, Authority const& authority);

// The same by this host's authority, which is made under `provider` where there is none yet: all that create and clone
// have to call.
struct NewTpm {
    ByteVector state;
    bool authority_made = false;
};
Result<NewTpm> make_tpm(HomeRoot const& root, KeeperProcess& keeper, Uuid const& provider, devices::PcrBankMask banks,
                        Uuid const& vm);

// Issues certificates for the endorsement keys of a TPM that is started up, and replaces those in its NV memory.
// Unsupported where the endorsement hierarchy has a password. make_durable() is the caller's.
Result<void> certify_tpm(devices::TpmClient& client, Uuid const& vm, Authority const& authority);

// What lies in the NV indices; each is empty where there is nothing.
struct TpmCertificates {
    std::array<ByteVector, devices::k_ek_profiles.size()> endorsement; // DER, in the profiles' order
    ByteVector platform;                                               // DER
    ByteVector chain;                                                  // DER, one behind the other
};
Result<TpmCertificates> read_tpm_certificates(devices::TpmClient& client);

// The certificates of a chain as it lies in NV memory. Corrupt where it is none.
Result<std::vector<crypto::Certificate>> parse_chain(Bytes der);

// The certificate's key is the endorsement key.
Result<bool> is_about(crypto::Certificate const& certificate, devices::EkPublic const& key);

} // namespace coffer::vmm
