#include "devices/tpm/tpm_facts.hpp"

#include "devices/tpm/tpm_endorsement.hpp"

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

Result<TpmEndorsementKey> read_ek(TpmClient& client, EkProfile const& profile) {
    TpmEndorsementKey key{profile.name, {}};
    auto object = TRY(create_endorsement_key(client, profile.kind));
    if (!object) return key;
    key.name = std::move(object->public_area.name);
    TRY(flush_object(client, object->handle));
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

    for (auto const& profile : k_ek_profiles) facts.endorsement_keys.push_back(TRY(read_ek(client, profile)));
    return facts;
}

} // namespace coffer::devices
