// The log of what was measured into PCRs, taken apart and replayed. Logs come from guests: hostile input, bounded.
//
// Source: TCG PC Client Platform Firmware Profile 1.05 rev 23, chapter 10 ("Event Logging"): the crypto-agile format of
// TPM 2.0 alone.
#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "devices/tpm/pcr_banks.hpp"

namespace coffer::vmm {

constexpr size_t k_max_event_log = size_t{8} << 20; // bytes
constexpr size_t k_max_events = 65536;

// 10.4.1, Table 27. Others are possible.
enum class EventType : uint32_t {
    PrebootCert = 0x0,
    PostCode = 0x1,
    NoAction = 0x3, // in the log alone: extends nothing
    Separator = 0x4,
    Action = 0x5,
    EventTag = 0x6,
    CrtmContents = 0x7,
    CrtmVersion = 0x8,
    CpuMicrocode = 0x9,
    PlatformConfigFlags = 0xA,
    TableOfDevices = 0xB,
    CompactHash = 0xC,
    Ipl = 0xD,
    IplPartitionData = 0xE,
    NonhostCode = 0xF,
    NonhostConfig = 0x10,
    NonhostInfo = 0x11,
    OmitBootDeviceEvents = 0x12,
    PostCode2 = 0x13,
    VariableDriverConfig = 0x8000'0001,
    VariableBoot = 0x8000'0002,
    BootServicesApplication = 0x8000'0003,
    BootServicesDriver = 0x8000'0004,
    RuntimeServicesDriver = 0x8000'0005,
    GptEvent = 0x8000'0006,
    EfiAction = 0x8000'0007,
    FirmwareBlob = 0x8000'0008,
    HandoffTables = 0x8000'0009,
    FirmwareBlob2 = 0x8000'000A,
    HandoffTables2 = 0x8000'000B,
    VariableBoot2 = 0x8000'000C,
    GptEvent2 = 0x8000'000D,
    HcrtmEvent = 0x8000'0010,
    VariableAuthority = 0x8000'00E0,
    SpdmFirmwareBlob = 0x8000'00E1,
    SpdmFirmwareConfig = 0x8000'00E2,
};
// "EV_SEPARATOR"; empty where it is none of the above.
std::string_view event_type_name(EventType type) noexcept;

struct EventDigest {
    uint16_t algorithm = 0; // TPM_ALG_ID
    Bytes value;

    bool operator==(EventDigest const& other) const noexcept;
};

// Points into the log's bytes.
struct Event {
    uint32_t pcr = 0;
    EventType type{};
    std::vector<EventDigest> digests;
    Bytes data;
    Bytes whole; // all of it

    Bytes digest_of(uint16_t algorithm) const noexcept; // empty where there is none
};

struct LogAlgorithm {
    uint16_t id = 0; // TPM_ALG_ID
    uint16_t digest_size = 0;
};

struct EventLog {
    std::vector<LogAlgorithm> algorithms; // of every event, by the log's header
    std::vector<Event> events;            // without the header
    std::string problem;                  // why the log ends early; empty where it ends as it should
    size_t size = 0;                      // bytes that are header and events
};

// `bytes` outlive the log. A log in memory is followed by zeros: it ends at an event of zeros. Corrupt where it does
// not begin with a Specification ID Version event (10.4.5.1); what is wrong later is the log's `problem`.
Result<EventLog> parse_event_log(Bytes bytes);

// Events alone, without a header, as the table of final events has them (TCG EFI Protocol 1.0 rev 0.13, chapter 7).
// Stops after `count` events, or where an event is malformed.
std::vector<Event> parse_events(Bytes bytes, std::vector<LogAlgorithm> const& algorithms, size_t count);

using PcrValues = std::array<ByteVector, devices::k_pcr_count>;
// By algorithm; of banks that this host can compute.
using PcrBanks = std::map<uint16_t, PcrValues>;

// PCRs after all events of the log, from their values at reset. Bit n of `touched` is set for PCR n where an event
// extends it, or says how it starts.
struct Replay {
    PcrBanks banks;
    uint32_t touched = 0;
};
Result<Replay> replay(EventLog const& log);

} // namespace coffer::vmm
