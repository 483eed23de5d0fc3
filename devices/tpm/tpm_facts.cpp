#include "devices/tpm/tpm_facts.hpp"

namespace coffer::devices {

namespace {

// TPM_PT (TPM 2.0 Library 1.59, Part 2, 6.13).
enum class Property : uint32_t {
    FamilyIndicator = 0x100,
    Revision = 0x102,
    Manufacturer = 0x105,
    VendorString1 = 0x106,
    VendorString4 = 0x109,
    FirmwareVersion1 = 0x10B,
    FirmwareVersion2 = 0x10C,
    Permanent = 0x200,
    PersistentAvailable = 0x209,
    LockoutCounter = 0x20E,
    MaxAuthFailures = 0x20F,
    LockoutInterval = 0x210,
    LockoutRecovery = 0x211,
};
// TPMA_PERMANENT (Part 2, 8.6).
constexpr uint32_t k_owner_auth_set = 1U << 0;
constexpr uint32_t k_endorsement_auth_set = 1U << 1;
constexpr uint32_t k_lockout_auth_set = 1U << 2;
constexpr uint32_t k_disable_clear = 1U << 8;
constexpr uint32_t k_in_lockout = 1U << 9;
// TPM_HT (Part 2, 7.2).
constexpr uint8_t k_nv_handles = 0x01;
constexpr uint8_t k_persistent_handles = 0x81;

constexpr uint16_t k_alg_rsa = 0x0001;
constexpr uint16_t k_alg_aes = 0x0006;
constexpr uint16_t k_alg_sha256 = 0x000B;
constexpr uint16_t k_alg_null = 0x0010;
constexpr uint16_t k_alg_ecc = 0x0023;
constexpr uint16_t k_alg_cfb = 0x0043;
constexpr uint16_t k_curve_p256 = 0x0003;

// EK Credential Profile 2.5, B.3.3 and B.3.4: the low-range templates. fixedTPM, fixedParent, sensitiveDataOrigin,
// adminWithPolicy, restricted, decrypt; the policy is TPM2_PolicySecret(TPM_RH_ENDORSEMENT).
constexpr uint32_t k_ek_attributes = 0x0003'00B2;
constexpr std::array<uint8_t, 32> k_ek_policy{0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC,
                                              0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52,
                                              0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA};

void start_template(TpmCommand& area, uint16_t type) {
    area.u16(type).u16(k_alg_sha256).u32(k_ek_attributes).sized(std::as_bytes(std::span(k_ek_policy)));
    area.u16(k_alg_aes).u16(128).u16(k_alg_cfb).u16(k_alg_null); // symmetric algorithm; no scheme
}

ByteVector create_ek(uint16_t type) {
    // A TPMT_PUBLIC behind a command header that is not used.
    TpmCommand area(TpmTag::NoSessions, TpmCommandCode::CreatePrimary);
    start_template(area, type);
    if (type == k_alg_rsa) {
        area.u16(2048).u32(0).sized(ByteVector(256));
    } else {
        area.u16(k_curve_p256).u16(k_alg_null); // no key derivation scheme
        area.sized(ByteVector(32)).sized(ByteVector(32));
    }
    auto bytes = area.take();
    return TpmCommand(TpmTag::Sessions, TpmCommandCode::CreatePrimary)
        .u32(k_tpm_rh_endorsement)
        .empty_password()
        .u16(4) // TPM2B_SENSITIVE_CREATE: no password, no data
        .u16(0)
        .u16(0)
        .sized(Bytes(bytes).subspan(k_tpm_header_size))
        .u16(0)
        .u32(0)
        .take();
}

Result<TpmEndorsementKey> read_ek(TpmClient& client, std::string_view type_name, uint16_t type) {
    TpmEndorsementKey key{type_name, {}};
    auto response = TRY(client.transact(create_ek(type)));
    if (!response.ok()) return key; // a password on the hierarchy, most likely
    TpmReader reader(response.body);
    uint32_t handle = reader.u32();
    (void)reader.u32();   // size of the parameters
    (void)reader.sized(); // public area
    (void)reader.sized(); // creation data
    (void)reader.sized(); // creation hash
    (void)reader.u16();   // creation ticket: tag, hierarchy, digest
    (void)reader.u32();
    (void)reader.sized();
    auto name = reader.sized();
    if (!reader.ok()) return make_error(ErrorCode::Corrupt, "the TPM's answer to TPM2_CreatePrimary is malformed");
    key.name.assign(name.begin(), name.end());
    TRY(client.demand("flush a key", TpmCommand(TpmTag::NoSessions, TpmCommandCode::FlushContext).u32(handle).take()));
    return key;
}

Result<TpmNvIndex> read_nv_index(TpmClient& client, uint32_t handle) {
    auto body = TRY(client.demand("describe an NV index",
                                  TpmCommand(TpmTag::NoSessions, TpmCommandCode::NvReadPublic).u32(handle).take()));
    TpmReader outer(body);
    TpmReader area(outer.sized()); // TPMS_NV_PUBLIC
    TpmNvIndex index;
    index.handle = area.u32();
    (void)area.u16(); // name algorithm
    index.attributes = area.u32();
    (void)area.sized(); // policy
    index.size = area.u16();
    if (!outer.ok() || !area.ok() || index.handle != handle)
        return make_error(ErrorCode::Corrupt, "the TPM's answer to TPM2_NV_ReadPublic is malformed");
    return index;
}

// Four characters of a property; what is not printable ASCII is left out, zeros at the end among it.
void append_characters(std::string& text, uint32_t value) {
    for (unsigned shift : {24U, 16U, 8U, 0U}) {
        auto c = static_cast<char>(value >> shift & 0xFF);
        if (c >= ' ' && c <= '~') text += c;
    }
}

} // namespace

Result<TpmFacts> read_tpm_facts(TpmClient& client) {
    auto property = [&](Property tag) { return client.property(static_cast<uint32_t>(tag)); };
    TpmFacts facts;
    append_characters(facts.family, TRY(property(Property::FamilyIndicator)));
    facts.revision = TRY(property(Property::Revision));
    append_characters(facts.manufacturer, TRY(property(Property::Manufacturer)));
    for (auto tag = static_cast<uint32_t>(Property::VendorString1);
         tag <= static_cast<uint32_t>(Property::VendorString4); ++tag)
        append_characters(facts.vendor, TRY(client.property(tag)));
    facts.firmware = uint64_t{TRY(property(Property::FirmwareVersion1))} << 32;
    facts.firmware |= TRY(property(Property::FirmwareVersion2));
    facts.banks = TRY(client.active_banks());

    for (uint32_t handle : TRY(client.handles(k_nv_handles)))
        facts.nv_indices.push_back(TRY(read_nv_index(client, handle)));
    facts.persistent = TRY(client.handles(k_persistent_handles));
    facts.persistent_available = TRY(property(Property::PersistentAvailable));

    uint32_t permanent = TRY(property(Property::Permanent));
    facts.owner_auth_set = (permanent & k_owner_auth_set) != 0;
    facts.endorsement_auth_set = (permanent & k_endorsement_auth_set) != 0;
    facts.lockout_auth_set = (permanent & k_lockout_auth_set) != 0;
    facts.clear_disabled = (permanent & k_disable_clear) != 0;
    facts.locked_out = (permanent & k_in_lockout) != 0;
    facts.lockout_counter = TRY(property(Property::LockoutCounter));
    facts.max_auth_failures = TRY(property(Property::MaxAuthFailures));
    facts.lockout_interval = TRY(property(Property::LockoutInterval));
    facts.lockout_recovery = TRY(property(Property::LockoutRecovery));

    facts.endorsement_keys.push_back(TRY(read_ek(client, "rsa2048", k_alg_rsa)));
    facts.endorsement_keys.push_back(TRY(read_ek(client, "ecc-p256", k_alg_ecc)));
    return facts;
}

} // namespace coffer::devices
