// What a TPM tells about itself to anyone who may send it commands with empty authorizations.
#pragma once

#include <string>
#include <vector>

#include "devices/tpm/tpm_client.hpp"

namespace coffer::devices {

struct TpmNvIndex {
    uint32_t handle = 0;
    uint16_t size = 0;       // bytes
    uint32_t attributes = 0; // TPMA_NV
};

// An endorsement key, made anew from the endorsement seed by a template of the TCG EK Credential Profile 2.5.
struct TpmEndorsementKey {
    std::string_view type; // EkProfile::name
    ByteVector name;       // name algorithm and digest (Part 1, 16); empty where the TPM refuses to make the key

    bool operator==(TpmEndorsementKey const&) const = default;
};

struct TpmFacts {
    std::string family;       // "2.0"
    uint32_t revision = 0;    // of the specification, times 100
    std::string manufacturer; // four characters or fewer, as the TCG's vendor registry has them
    std::string vendor;
    uint64_t firmware = 0; // 16 bits each, most significant first
    PcrBankMask banks = 0; // active
    std::vector<TpmNvIndex> nv_indices;
    std::vector<uint32_t> persistent; // handles of persistent objects
    uint32_t persistent_available = 0;
    bool owner_auth_set = false;
    bool endorsement_auth_set = false;
    bool lockout_auth_set = false;
    bool clear_disabled = false;
    bool locked_out = false;
    uint32_t lockout_counter = 0; // failed authorizations that count
    uint32_t max_auth_failures = 0;
    uint32_t lockout_interval = 0; // seconds until one failure is forgotten
    uint32_t lockout_recovery = 0; // seconds until the lockout hierarchy may be tried again
    std::vector<TpmEndorsementKey> endorsement_keys;
};

// Of a TPM that has been started up. Makes and flushes transient keys, and changes nothing else.
Result<TpmFacts> read_tpm_facts(TpmClient& client);

} // namespace coffer::devices
