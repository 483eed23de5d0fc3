#include "vmm/eventlog/event_log.hpp"

#include <algorithm>
#include <optional>

#include "crypto/hash.hpp"

namespace coffer::vmm {

namespace {

using namespace std::string_view_literals;

// 10.4.5.1 and 10.4.5.3, with the NUL that ends them.
constexpr auto k_specification_id = "Spec ID Event03\0"sv;
constexpr auto k_startup_locality = "StartupLocality\0"sv;
constexpr size_t k_sha1_size = 20;
constexpr size_t k_header_event_size = 4 + 4 + k_sha1_size + 4; // TCG_PCClientPCREvent without its data
constexpr size_t k_max_algorithms = 16;
constexpr size_t k_max_digest = 64;

// Takes little-endian fields off the front. Past the end everything is empty, and ok() is false.
class Reader {
public:
    explicit Reader(Bytes bytes) : m_rest(bytes) {}

    template <class T>
    T number() {
        auto const taken = bytes(sizeof(T));
        return taken.size() == sizeof(T) ? load_le<T>(taken) : T{};
    }
    Bytes bytes(size_t size) {
        if (size > m_rest.size()) {
            m_ok = false;
            m_rest = {};
            return {};
        }
        auto const taken = m_rest.first(size);
        m_rest = m_rest.subspan(size);
        return taken;
    }
    Bytes rest() const noexcept { return m_rest; }
    bool ok() const noexcept { return m_ok; }

private:
    Bytes m_rest;
    bool m_ok = true;
};

bool begins_with(Bytes bytes, std::string_view text) noexcept {
    return bytes.size() >= text.size() && std::ranges::equal(bytes.first(text.size()), as_bytes(text));
}

Result<std::vector<LogAlgorithm>> parse_header(Bytes event) {
    auto malformed = [](std::string_view why) {
        return make_error(ErrorCode::Corrupt, "this is no event log of a TPM 2.0: {}", why);
    };
    if (!begins_with(event, k_specification_id)) return malformed("it does not begin with a Spec ID Event03");
    Reader reader(event.subspan(k_specification_id.size()));
    (void)reader.number<uint32_t>(); // platform class
    (void)reader.bytes(4);           // version of the specification, size of UINTN
    auto const count = reader.number<uint32_t>();
    if (!reader.ok() || count == 0 || count > k_max_algorithms) return malformed("its header names no algorithms");
    std::vector<LogAlgorithm> algorithms;
    for (uint32_t i = 0; i < count; ++i) {
        LogAlgorithm algorithm;
        algorithm.id = reader.number<uint16_t>();
        algorithm.digest_size = reader.number<uint16_t>();
        auto const* bank = devices::find_pcr_bank(algorithm.id);
        auto const same = [&](LogAlgorithm const& other) { return other.id == algorithm.id; };
        if (algorithm.digest_size == 0 || algorithm.digest_size > k_max_digest ||
            (bank && bank->digest_size != algorithm.digest_size) || std::ranges::any_of(algorithms, same))
            return malformed(fmt::format("its header gives algorithm {:#06x} a wrong digest", algorithm.id));
        algorithms.push_back(algorithm);
    }
    (void)reader.bytes(reader.number<uint8_t>()); // vendor's information
    if (!reader.ok()) return malformed("its header is cut short");
    return algorithms;
}

enum class Next : uint8_t { Event, End, CutShort, Malformed };

// The event at the front of `reader`.
Next take_event(Reader& reader, std::vector<LogAlgorithm> const& algorithms, Event& event) {
    auto const before = reader.rest();
    event.pcr = reader.number<uint32_t>();
    event.type = EventType(reader.number<uint32_t>());
    auto const count = reader.number<uint32_t>();
    if (!reader.ok()) {
        bool const zeros = std::ranges::all_of(before, [](std::byte b) { return b == std::byte{0}; });
        return zeros ? Next::End : Next::CutShort;
    }
    if (event.pcr == 0 && event.type == EventType::PrebootCert && count == 0) return Next::End;
    if (event.pcr >= devices::k_pcr_count || count != algorithms.size()) return Next::Malformed;
    event.digests.clear();
    for (uint32_t i = 0; i < count; ++i) {
        EventDigest digest;
        digest.algorithm = reader.number<uint16_t>();
        auto const found = std::ranges::find(algorithms, digest.algorithm, &LogAlgorithm::id);
        if (reader.ok() && (found == algorithms.end() || !event.digest_of(digest.algorithm).empty()))
            return Next::Malformed;
        if (reader.ok()) digest.value = reader.bytes(found->digest_size);
        event.digests.push_back(digest);
    }
    event.data = reader.bytes(reader.number<uint32_t>());
    if (!reader.ok()) return Next::CutShort;
    event.whole = before.first(before.size() - reader.rest().size());
    return Next::Event;
}

std::optional<crypto::HashAlgorithm> hash_of(uint16_t algorithm) noexcept {
    switch (algorithm) {
    case 0x0004: return crypto::HashAlgorithm::Sha1;
    case 0x000B: return crypto::HashAlgorithm::Sha256;
    case 0x000C: return crypto::HashAlgorithm::Sha384;
    case 0x000D: return crypto::HashAlgorithm::Sha512;
    default: return std::nullopt;
    }
}

// PC Client Platform TPM Profile 1.05, 4.7.2: the PCRs of the dynamic root of trust are all ones until it is used.
PcrValues at_reset(size_t size) {
    PcrValues values;
    for (size_t pcr = 0; pcr < values.size(); ++pcr)
        values[pcr].assign(size, pcr >= 17 && pcr <= 22 ? std::byte{0xFF} : std::byte{0});
    return values;
}

} // namespace

bool EventDigest::operator==(EventDigest const& other) const noexcept {
    return algorithm == other.algorithm && std::ranges::equal(value, other.value);
}

Bytes Event::digest_of(uint16_t algorithm) const noexcept {
    auto const found = std::ranges::find(digests, algorithm, &EventDigest::algorithm);
    return found == digests.end() ? Bytes() : found->value;
}

std::string_view event_type_name(EventType type) noexcept {
    switch (type) {
    case EventType::PrebootCert: return "EV_PREBOOT_CERT";
    case EventType::PostCode: return "EV_POST_CODE";
    case EventType::NoAction: return "EV_NO_ACTION";
    case EventType::Separator: return "EV_SEPARATOR";
    case EventType::Action: return "EV_ACTION";
    case EventType::EventTag: return "EV_EVENT_TAG";
    case EventType::CrtmContents: return "EV_S_CRTM_CONTENTS";
    case EventType::CrtmVersion: return "EV_S_CRTM_VERSION";
    case EventType::CpuMicrocode: return "EV_CPU_MICROCODE";
    case EventType::PlatformConfigFlags: return "EV_PLATFORM_CONFIG_FLAGS";
    case EventType::TableOfDevices: return "EV_TABLE_OF_DEVICES";
    case EventType::CompactHash: return "EV_COMPACT_HASH";
    case EventType::Ipl: return "EV_IPL";
    case EventType::IplPartitionData: return "EV_IPL_PARTITION_DATA";
    case EventType::NonhostCode: return "EV_NONHOST_CODE";
    case EventType::NonhostConfig: return "EV_NONHOST_CONFIG";
    case EventType::NonhostInfo: return "EV_NONHOST_INFO";
    case EventType::OmitBootDeviceEvents: return "EV_OMIT_BOOT_DEVICE_EVENTS";
    case EventType::PostCode2: return "EV_POST_CODE2";
    case EventType::VariableDriverConfig: return "EV_EFI_VARIABLE_DRIVER_CONFIG";
    case EventType::VariableBoot: return "EV_EFI_VARIABLE_BOOT";
    case EventType::BootServicesApplication: return "EV_EFI_BOOT_SERVICES_APPLICATION";
    case EventType::BootServicesDriver: return "EV_EFI_BOOT_SERVICES_DRIVER";
    case EventType::RuntimeServicesDriver: return "EV_EFI_RUNTIME_SERVICES_DRIVER";
    case EventType::GptEvent: return "EV_EFI_GPT_EVENT";
    case EventType::EfiAction: return "EV_EFI_ACTION";
    case EventType::FirmwareBlob: return "EV_EFI_PLATFORM_FIRMWARE_BLOB";
    case EventType::HandoffTables: return "EV_EFI_HANDOFF_TABLES";
    case EventType::FirmwareBlob2: return "EV_EFI_PLATFORM_FIRMWARE_BLOB2";
    case EventType::HandoffTables2: return "EV_EFI_HANDOFF_TABLES2";
    case EventType::VariableBoot2: return "EV_EFI_VARIABLE_BOOT2";
    case EventType::GptEvent2: return "EV_EFI_GPT_EVENT2";
    case EventType::HcrtmEvent: return "EV_EFI_HCRTM_EVENT";
    case EventType::VariableAuthority: return "EV_EFI_VARIABLE_AUTHORITY";
    case EventType::SpdmFirmwareBlob: return "EV_EFI_SPDM_FIRMWARE_BLOB";
    case EventType::SpdmFirmwareConfig: return "EV_EFI_SPDM_FIRMWARE_CONFIG";
    }
    return {};
}

Result<EventLog> parse_event_log(Bytes bytes) {
    Reader reader(bytes.first(std::min(bytes.size(), k_max_event_log)));
    auto const pcr = reader.number<uint32_t>();
    auto const type = EventType(reader.number<uint32_t>());
    (void)reader.bytes(k_sha1_size);
    auto const header = reader.bytes(reader.number<uint32_t>());
    if (!reader.ok() || pcr != 0 || type != EventType::NoAction)
        return make_error(ErrorCode::Corrupt,
                          "this is no event log of a TPM 2.0: it does not begin with an EV_NO_ACTION for PCR 0");
    EventLog log;
    log.algorithms = TRY(parse_header(header));
    log.size = k_header_event_size + header.size();
    while (!reader.rest().empty()) {
        Event event;
        auto const next = take_event(reader, log.algorithms, event);
        if (next == Next::End) break;
        if (next != Next::Event || log.events.size() == k_max_events) {
            log.problem = fmt::format("{} at byte {}, after {} events",
                                      next == Next::CutShort    ? "the log is cut short"
                                      : next == Next::Malformed ? "an event is malformed"
                                                                : "there are too many events",
                                      log.size, log.events.size());
            break;
        }
        log.size += event.whole.size();
        log.events.push_back(std::move(event));
    }
    if (log.problem.empty() && bytes.size() > k_max_event_log && log.size == k_max_event_log)
        log.problem = "the log is too large";
    return log;
}

std::vector<Event> parse_events(Bytes bytes, std::vector<LogAlgorithm> const& algorithms, size_t count) {
    Reader reader(bytes);
    std::vector<Event> events;
    Event event;
    while (events.size() < std::min(count, k_max_events) && take_event(reader, algorithms, event) == Next::Event)
        events.push_back(event);
    return events;
}

Result<Replay> replay(EventLog const& log) {
    Replay result;
    for (auto const& algorithm : log.algorithms)
        if (hash_of(algorithm.id)) result.banks.emplace(algorithm.id, at_reset(algorithm.digest_size));
    for (auto const& event : log.events) {
        if (event.type == EventType::NoAction) {
            // 10.4.5.3: a start from locality 3 or 4 leaves that number in PCR 0.
            if (event.pcr != 0 || !begins_with(event.data, k_startup_locality) ||
                event.data.size() <= k_startup_locality.size() || (result.touched & 1U) != 0)
                continue;
            for (auto& [algorithm, values] : result.banks) values[0].back() = event.data[k_startup_locality.size()];
            result.touched |= 1U;
            continue;
        }
        result.touched |= 1U << event.pcr;
        for (auto& [algorithm, values] : result.banks)
            values[event.pcr] = TRY(crypto::hash(*hash_of(algorithm), {values[event.pcr], event.digest_of(algorithm)}));
    }
    return result;
}

} // namespace coffer::vmm
