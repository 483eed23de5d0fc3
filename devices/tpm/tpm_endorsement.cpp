#include "devices/tpm/tpm_endorsement.hpp"

#include <algorithm>

namespace coffer::devices {

namespace {

// TCG Algorithm Registry 1.34.
constexpr uint16_t k_alg_rsa = 0x0001;
constexpr uint16_t k_alg_aes = 0x0006;
constexpr uint16_t k_alg_sha256 = 0x000B;
constexpr uint16_t k_alg_sha384 = 0x000C;
constexpr uint16_t k_alg_null = 0x0010;
constexpr uint16_t k_alg_ecc = 0x0023;
constexpr uint16_t k_alg_cfb = 0x0043;
constexpr uint16_t k_curve_p256 = 0x0003;
constexpr uint16_t k_curve_p384 = 0x0004;

// TPMA_OBJECT: fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt; the high range adds
// userWithAuth.
constexpr uint32_t k_low_range_attributes = 0x0003'00B2;
constexpr uint32_t k_high_range_attributes = 0x0003'00F2;
// PolicyA for SHA-256 (B.6.2): TPM2_PolicySecret(TPM_RH_ENDORSEMENT).
constexpr std::array<uint8_t, 32> k_policy_a_sha256{0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC,
                                                    0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52,
                                                    0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA};
// PolicyB for SHA-384 (B.6.5): PolicyA, or what NV index 0x01C07F02 authorizes.
constexpr std::array<uint8_t, 48> k_policy_b_sha384{
    0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A, 0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A,
    0x07, 0x41, 0x48, 0xBB, 0x35, 0xD3, 0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA,
    0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12};

// TPMA_NV (Part 2, 13.4): PPWRITE, WRITEDEFINE, PPREAD, OWNERREAD, AUTHREAD, NO_DA, PLATFORMCREATE.
constexpr uint32_t k_nv_attributes = 0x4207'2001;
constexpr uint32_t k_nv_written = 1U << 29;
// libtpms' MAX_NV_BUFFER_SIZE is 1024.
constexpr size_t k_nv_step = 1024;
constexpr uint32_t k_rc_value = 0x084;  // TPM_RC_VALUE, format one
constexpr uint32_t k_rc_handle = 0x08B; // TPM_RC_HANDLE
constexpr uint32_t k_format_one_error = 0x0BF;

struct EccCurve {
    uint16_t id;
    size_t field_size;
};
constexpr EccCurve curve_of(EkKind kind) {
    return kind == EkKind::EccP384 ? EccCurve{k_curve_p384, 48} : EccCurve{k_curve_p256, 32};
}

// A TPMT_PUBLIC.
ByteVector key_template(EkKind kind) {
    // Behind a command header that is not used.
    TpmCommand area(TpmTag::NoSessions, TpmCommandCode::CreatePrimary);
    bool const high = kind == EkKind::EccP384;
    area.u16(kind == EkKind::Rsa2048 ? k_alg_rsa : k_alg_ecc).u16(high ? k_alg_sha384 : k_alg_sha256);
    area.u32(high ? k_high_range_attributes : k_low_range_attributes);
    if (high)
        area.sized(std::as_bytes(std::span(k_policy_b_sha384)));
    else
        area.sized(std::as_bytes(std::span(k_policy_a_sha256)));
    area.u16(k_alg_aes).u16(high ? 256 : 128).u16(k_alg_cfb).u16(k_alg_null); // symmetric algorithm; no scheme
    if (kind == EkKind::Rsa2048) {
        area.u16(2048).u32(0).sized(ByteVector(256));
    } else {
        auto const curve = curve_of(kind);
        // The low range fills `unique` with zeros, the high range leaves it empty.
        ByteVector const unique(high ? 0 : curve.field_size);
        area.u16(curve.id).u16(k_alg_null).sized(unique).sized(unique);
    }
    auto bytes = area.take();
    bytes.erase(bytes.begin(), bytes.begin() + k_tpm_header_size);
    return bytes;
}

ByteVector create_command(EkKind kind) {
    return TpmCommand(TpmTag::Sessions, TpmCommandCode::CreatePrimary)
        .u32(k_tpm_rh_endorsement)
        .empty_password()
        .u16(4) // TPM2B_SENSITIVE_CREATE: no password, no data
        .u16(0)
        .u16(0)
        .sized(key_template(kind))
        .u16(0)
        .u32(0)
        .take();
}

Error malformed(std::string_view command) {
    return make_error(ErrorCode::Corrupt, "the TPM's answer to {} is malformed", command);
}

// TPMs leave out leading zeros of coordinates; certificates do not.
ByteVector padded(Bytes number, size_t size) {
    ByteVector result(size - std::min(number.size(), size));
    append(result, number);
    return result;
}

Result<EkPublic> read_public(Bytes area, EkKind kind) {
    TpmReader reader(area);
    auto const type = reader.u16();
    (void)reader.u16();              // name algorithm
    (void)reader.u32();              // attributes
    (void)reader.sized();            // policy
    if (reader.u16() == k_alg_aes) { // symmetric algorithm, with key size and mode
        (void)reader.u16();
        (void)reader.u16();
    }
    (void)reader.u16(); // scheme
    EkPublic key;
    key.kind = kind;
    if (kind == EkKind::Rsa2048) {
        auto const bits = reader.u16();
        auto const exponent = reader.u32();
        key.modulus = padded(reader.sized(), 256);
        if (type != k_alg_rsa || bits != 2048 || exponent != 0 || key.modulus.size() != 256)
            return malformed("TPM2_CreatePrimary");
    } else {
        auto const curve = curve_of(kind);
        auto const id = reader.u16();
        (void)reader.u16(); // key derivation function
        key.x = padded(reader.sized(), curve.field_size);
        key.y = padded(reader.sized(), curve.field_size);
        if (type != k_alg_ecc || id != curve.id || key.x.size() != curve.field_size || key.y.size() != curve.field_size)
            return malformed("TPM2_CreatePrimary");
    }
    if (!reader.ok()) return malformed("TPM2_CreatePrimary");
    return key;
}

bool no_such_handle(uint32_t code) noexcept {
    auto const error = code & k_format_one_error;
    return error == k_rc_handle || error == k_rc_value;
}

struct NvIndex {
    uint32_t attributes;
    uint16_t size;
};
Result<std::optional<NvIndex>> find_nv(TpmClient& client, uint32_t index) {
    auto response =
        TRY(client.transact(TpmCommand(TpmTag::NoSessions, TpmCommandCode::NvReadPublic).u32(index).take()));
    if (!response.ok()) {
        if (no_such_handle(response.code)) return std::optional<NvIndex>();
        return make_error(ErrorCode::Unsupported, "the TPM refuses to describe NV index {:#010x} (response code {:#x})",
                          index, response.code);
    }
    TpmReader outer(response.body);
    TpmReader area(outer.sized()); // TPMS_NV_PUBLIC
    (void)area.u32();
    (void)area.u16();
    NvIndex found{area.u32(), 0};
    (void)area.sized();
    found.size = area.u16();
    if (!outer.ok() || !area.ok()) return malformed("TPM2_NV_ReadPublic");
    return std::optional(found);
}

TpmCommand by_platform(TpmCommandCode code, uint32_t index) {
    return std::move(TpmCommand(TpmTag::Sessions, code).u32(k_tpm_rh_platform).u32(index).empty_password());
}

} // namespace

Result<std::optional<EkObject>> create_endorsement_key(TpmClient& client, EkKind kind) {
    auto response = TRY(client.transact(create_command(kind)));
    if (!response.ok()) return std::optional<EkObject>();
    TpmReader reader(response.body);
    EkObject key;
    key.handle = reader.u32();
    (void)reader.u32(); // size of the parameters
    auto const area = reader.sized();
    (void)reader.sized(); // creation data
    (void)reader.sized(); // creation hash
    (void)reader.u16();   // creation ticket: tag, hierarchy, digest
    (void)reader.u32();
    (void)reader.sized();
    auto const name = reader.sized();
    if (!reader.ok()) return malformed("TPM2_CreatePrimary");
    key.public_area = TRY(read_public(area, kind));
    key.public_area.name.assign(name.begin(), name.end());
    return std::optional(std::move(key));
}

Result<void> flush_object(TpmClient& client, uint32_t handle) {
    TRY(client.demand("flush a key", TpmCommand(TpmTag::NoSessions, TpmCommandCode::FlushContext).u32(handle).take()));
    return {};
}

Result<void> persist_object(TpmClient& client, uint32_t transient, uint32_t persistent) {
    TRY(client.demand("keep a key", TpmCommand(TpmTag::Sessions, TpmCommandCode::EvictControl)
                                        .u32(k_tpm_rh_owner)
                                        .u32(transient)
                                        .empty_password()
                                        .u32(persistent)
                                        .take()));
    return {};
}

Result<void> write_platform_nv(TpmClient& client, uint32_t index, Bytes content) {
    if (content.empty() || content.size() > k_max_platform_nv)
        return make_error(ErrorCode::InvalidArgument,
                          "{} bytes do not fit an NV index of the TPM ({:#010x}), which holds {} at most",
                          content.size(), index, k_max_platform_nv);
    TRY(remove_platform_nv(client, index));
    TpmCommand area(TpmTag::NoSessions, TpmCommandCode::NvDefineSpace); // its header is not used
    area.u32(index).u16(k_alg_sha256).u32(k_nv_attributes).u16(0).u16(static_cast<uint16_t>(content.size()));
    auto const area_bytes = area.take();
    TRY(client.demand("define an NV index", TpmCommand(TpmTag::Sessions, TpmCommandCode::NvDefineSpace)
                                                .u32(k_tpm_rh_platform)
                                                .empty_password()
                                                .u16(0) // no password
                                                .sized(Bytes(area_bytes).subspan(k_tpm_header_size))
                                                .take()));
    for (size_t at = 0; at < content.size(); at += k_nv_step) {
        auto const part = content.subspan(at, std::min(k_nv_step, content.size() - at));
        TRY(client.demand(
            "write an NV index",
            by_platform(TpmCommandCode::NvWrite, index).sized(part).u16(static_cast<uint16_t>(at)).take()));
    }
    return {};
}

Result<std::optional<ByteVector>> read_platform_nv(TpmClient& client, uint32_t index) {
    auto const found = TRY(find_nv(client, index));
    if (!found || (found->attributes & k_nv_written) == 0) return std::optional<ByteVector>();
    ByteVector content;
    while (content.size() < found->size) {
        auto const size = std::min(k_nv_step, found->size - content.size());
        auto body = TRY(client.demand("read an NV index", by_platform(TpmCommandCode::NvRead, index)
                                                              .u16(static_cast<uint16_t>(size))
                                                              .u16(static_cast<uint16_t>(content.size()))
                                                              .take()));
        TpmReader reader(body);
        (void)reader.u32(); // size of the parameters
        auto const part = reader.sized();
        if (!reader.ok() || part.size() != size) return malformed("TPM2_NV_Read");
        append(content, part);
    }
    return std::optional(std::move(content));
}

Result<void> remove_platform_nv(TpmClient& client, uint32_t index) {
    if (!TRY(find_nv(client, index))) return {};
    TRY(client.demand("remove an NV index", by_platform(TpmCommandCode::NvUndefineSpace, index).take()));
    return {};
}

} // namespace coffer::devices
