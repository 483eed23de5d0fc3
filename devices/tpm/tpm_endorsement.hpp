// Endorsement keys of a TPM and the NV indices of their certificates.
//
// Source: TCG EK Credential Profile for TPM Family 2.0, version 2.5, 2.2.1 (NV indices and their attributes) and Annex
// B (templates); TCG Registry of Reserved TPM 2.0 Handles and Localities 1.1, 2.3 (persistent handles).
#pragma once

#include <optional>

#include "devices/tpm/tpm_client.hpp"

namespace coffer::devices {

enum class EkKind : uint8_t { Rsa2048, EccP256, EccP384 };

struct EkProfile {
    EkKind kind;
    std::string_view name;
    uint32_t certificate_index; // NV
    uint32_t persistent_handle;
};

// Templates L-1 and L-2 of the low range, which software of all ages knows, and H-3 of the high range.
inline constexpr std::array k_ek_profiles{
    EkProfile{EkKind::Rsa2048, "rsa2048", 0x01C0'0002, 0x8101'0001},
    EkProfile{EkKind::EccP256, "ecc-p256", 0x01C0'000A, 0x8101'0002},
    EkProfile{EkKind::EccP384, "ecc-p384", 0x01C0'0016, 0x8101'0016},
};
// Certificates of the authorities above, nearest first, one DER certificate behind the other (2.2.1.5.2).
constexpr uint32_t k_ek_chain_index = 0x01C0'0100;
// TCG PC Client Platform TPM Profile 1.05, 4.6.2 ("Platform Certificate").
constexpr uint32_t k_platform_certificate_index = 0x01C0'8000;

struct EkPublic {
    EkKind kind{};
    ByteVector name;    // name algorithm and digest (TPM 2.0 Library 1.59, Part 1, 16)
    ByteVector modulus; // RSA; the exponent is 65537
    ByteVector x, y;    // ECC; as long as the curve's field elements
};

struct EkObject {
    uint32_t handle = 0; // transient: the caller flushes it
    EkPublic public_area;
};

// Makes the key from the endorsement seed; the same seed gives the same key. Nothing where the TPM refuses, which it
// does where the endorsement hierarchy has a password.
Result<std::optional<EkObject>> create_endorsement_key(TpmClient& client, EkKind kind);
Result<void> flush_object(TpmClient& client, uint32_t handle);
// Makes a transient object persistent. It is the owner's, as all handles of that range are: TPM2_Clear removes it.
Result<void> persist_object(TpmClient& client, uint32_t transient, uint32_t persistent);

// Writes content of at most k_max_platform_nv bytes into an index that the platform alone may write and anybody may
// read; what was there before is replaced.
constexpr size_t k_max_platform_nv = 2048; // MAX_NV_INDEX_SIZE of libtpms
Result<void> write_platform_nv(TpmClient& client, uint32_t index, Bytes content);
// Nothing where the index does not exist or was never written.
Result<std::optional<ByteVector>> read_platform_nv(TpmClient& client, uint32_t index);
// No error where it does not exist.
Result<void> remove_platform_nv(TpmClient& client, uint32_t index);

} // namespace coffer::devices
