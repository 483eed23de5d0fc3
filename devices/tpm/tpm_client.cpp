#include "devices/tpm/tpm_client.hpp"

#include <algorithm>

namespace coffer::devices {

namespace {

// TPM 2.0 Library 1.59, Part 2, 6.12 (TPM_CAP).
constexpr uint32_t k_cap_handles = 1;
constexpr uint32_t k_cap_pcrs = 5;
constexpr uint32_t k_cap_properties = 6;
// The largest response that a TPM of this library gives.
constexpr size_t k_response_size = 4096;
// TPML_DIGEST holds so many (Part 2, 10.9.4).
constexpr unsigned k_digests_at_once = 8;

TpmCommand plain(TpmCommandCode code) {
    return {TpmTag::NoSessions, code};
}

Error malformed(std::string_view what) {
    return make_error(ErrorCode::Corrupt, "the TPM's answer to {} is malformed", what);
}

ByteVector get_capability(uint32_t capability, uint32_t property, uint32_t count) {
    return plain(TpmCommandCode::GetCapability).u32(capability).u32(property).u32(count).take();
}

} // namespace

Bytes TpmReader::bytes(size_t size) {
    if (size > m_rest.size()) {
        m_ok = false;
        m_rest = {};
        return {};
    }
    auto taken = m_rest.first(size);
    m_rest = m_rest.subspan(size);
    return taken;
}

Result<TpmResponse> TpmClient::transact(ByteVector const& command) {
    ByteVector response(k_response_size);
    response.resize(TRY(m_tpm.execute(Locality::Zero, command, response)));
    auto header = parse_tpm_header(response);
    if (!header || header->size != response.size()) return malformed("a command");
    return TpmResponse{header->code, {response.begin() + k_tpm_header_size, response.end()}};
}

Result<ByteVector> TpmClient::demand(std::string_view what, ByteVector const& command) {
    auto response = TRY(transact(command));
    if (!response.ok())
        return make_error(ErrorCode::Unsupported, "the TPM refuses to {} (response code {:#x})", what, response.code);
    return std::move(response.body);
}

Result<void> TpmClient::startup() {
    TRY(demand("start up", plain(TpmCommandCode::Startup).u16(0).take()));
    return {};
}

Result<void> TpmClient::shutdown() {
    TRY(demand("shut down", plain(TpmCommandCode::Shutdown).u16(0).take()));
    return {};
}

Result<void> TpmClient::clear() {
    constexpr uint8_t k_no = 0; // "disable: no"
    TRY(demand("allow its clearing", TpmCommand(TpmTag::Sessions, TpmCommandCode::ClearControl)
                                         .u32(k_tpm_rh_platform)
                                         .empty_password()
                                         .u8(k_no)
                                         .take()));
    TRY(demand("be cleared",
               TpmCommand(TpmTag::Sessions, TpmCommandCode::Clear).u32(k_tpm_rh_platform).empty_password().take()));
    return {};
}

Result<uint32_t> TpmClient::property(uint32_t tag) {
    auto body = TRY(demand("give a property", get_capability(k_cap_properties, tag, 1)));
    TpmReader reader(body);
    (void)reader.u8(); // whether there is more
    (void)reader.u32();
    uint32_t count = reader.u32();
    uint32_t found = reader.u32();
    uint32_t value = reader.u32();
    if (count == 0) return uint32_t{0};
    if (!reader.ok()) return malformed("TPM2_GetCapability");
    return found == tag ? value : 0;
}

Result<std::vector<uint32_t>> TpmClient::handles(uint8_t kind) {
    constexpr uint32_t k_at_once = 64;
    std::vector<uint32_t> all;
    uint32_t first = uint32_t{kind} << 24;
    for (;;) {
        auto body = TRY(demand("list its handles", get_capability(k_cap_handles, first, k_at_once)));
        TpmReader reader(body);
        bool more = reader.u8() != 0;
        (void)reader.u32();
        uint32_t count = reader.u32();
        for (uint32_t i = 0; i < count && reader.ok(); ++i) {
            uint32_t handle = reader.u32();
            if (!reader.ok() || handle < first || handle >> 24 != kind) return malformed("TPM2_GetCapability");
            all.push_back(handle);
            first = handle + 1;
        }
        if (!reader.ok()) return malformed("TPM2_GetCapability");
        if (!more || count == 0 || first >> 24 != kind) return all;
    }
}

Result<PcrBankMask> TpmClient::active_banks() {
    auto body = TRY(demand("list its PCR banks", get_capability(k_cap_pcrs, 0, 1)));
    TpmReader reader(body);
    (void)reader.u8();
    (void)reader.u32();
    PcrBankMask active = 0;
    for (uint32_t count = reader.u32(); count > 0 && reader.ok(); --count) {
        auto const* bank = find_pcr_bank(reader.u16());
        auto select = reader.bytes(reader.u8());
        bool any = std::any_of(select.begin(), select.end(), [](std::byte b) { return b != std::byte{0}; });
        if (bank && any) active = static_cast<PcrBankMask>(active | bank->bit);
    }
    if (!reader.ok()) return malformed("TPM2_GetCapability");
    return active;
}

Result<void> TpmClient::allocate_banks(PcrBankMask banks) {
    TpmCommand command(TpmTag::Sessions, TpmCommandCode::PcrAllocate);
    command.u32(k_tpm_rh_platform).empty_password().u32(static_cast<uint32_t>(k_pcr_banks.size()));
    for (auto const& bank : k_pcr_banks) {
        command.u16(bank.algorithm).u8(k_pcr_select_size);
        for (size_t i = 0; i < k_pcr_select_size; ++i) command.u8((banks & bank.bit) != 0 ? 0xFF : 0);
    }
    auto body = TRY(demand("allocate PCR banks", command.take()));
    TpmReader reader(body);
    (void)reader.u32(); // size of the parameters
    bool success = reader.u8() != 0;
    if (!reader.ok()) return malformed("TPM2_PCR_Allocate");
    if (!success)
        return make_error(ErrorCode::Unsupported, "the TPM cannot have the PCR banks {}", format_pcr_banks(banks));
    return {};
}

Result<std::vector<ByteVector>> TpmClient::read_pcrs(PcrBank const& bank) {
    std::vector<ByteVector> values;
    for (unsigned first = 0; first < k_pcr_count; first += k_digests_at_once) {
        std::array<std::byte, k_pcr_select_size> select{};
        static_assert(k_digests_at_once == 8);
        select[first / 8] = std::byte{0xFF};
        auto body = TRY(demand(
            "read its PCRs",
            plain(TpmCommandCode::PcrRead).u32(1).u16(bank.algorithm).u8(k_pcr_select_size).bytes(select).take()));
        TpmReader reader(body);
        (void)reader.u32(); // update counter
        bool same = reader.u32() == 1 && reader.u16() == bank.algorithm && reader.u8() == k_pcr_select_size;
        same = same && std::ranges::equal(reader.bytes(k_pcr_select_size), select);
        if (!same || reader.u32() != k_digests_at_once) return malformed("TPM2_PCR_Read");
        for (unsigned i = 0; i < k_digests_at_once; ++i) {
            auto digest = reader.sized();
            if (digest.size() != bank.digest_size) return malformed("TPM2_PCR_Read");
            values.emplace_back(digest.begin(), digest.end());
        }
    }
    return values;
}

} // namespace coffer::devices
