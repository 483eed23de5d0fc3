// Event logs taken apart and replayed: made ones, broken ones, and that of a real boot.
#include <algorithm>
#include <fstream>
#include <sstream>

#include "tests/unit/eventlog/log_builder.hpp"
#include "vmm/eventlog/event_text.hpp"
#include "vmm/eventlog/pcr_text.hpp"

namespace coffer::vmm::tests {
namespace {

using crypto::HashAlgorithm;

ByteVector read_whole(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    EXPECT_TRUE(file) << path;
    std::stringstream content;
    content << file.rdbuf();
    auto const text = content.str();
    auto const bytes = as_bytes(text);
    return {bytes.begin(), bytes.end()};
}

std::string texts_of(EventLog const& log) {
    std::string all;
    for (auto const& event : log.events)
        all += fmt::format("{} {} {}\n", event.pcr, event_type_name(event.type), event_text(event));
    return all;
}

ByteVector extended(ByteVector const& value, Bytes digest) {
    return *crypto::hash(HashAlgorithm::Sha256, {value, digest});
}

TEST(EventLog, IsReplayedAsTheTpmExtends) {
    auto const bytes = LogBuilder()
                           .event(0, EventType::CrtmVersion, "version")
                           .event(7, EventType::Separator, std::string(4, '\0'))
                           .event(0, EventType::EfiAction, "more")
                           .bytes();
    auto const log = parse_event_log(bytes);
    ASSERT_TRUE(log) << log.error().message();
    EXPECT_EQ(log->problem, "");
    EXPECT_EQ(log->size, bytes.size());
    ASSERT_EQ(log->events.size(), 3U);
    auto const replayed = replay(*log);
    ASSERT_TRUE(replayed);
    EXPECT_EQ(replayed->touched, 0x81U);
    auto const first = *crypto::hash(HashAlgorithm::Sha256, {as_bytes("version")});
    auto const second = *crypto::hash(HashAlgorithm::Sha256, {as_bytes("more")});
    EXPECT_EQ(replayed->banks.at(0x000B)[0], extended(extended(ByteVector(32), first), second));
    EXPECT_EQ(replayed->banks.at(0x0004)[0].size(), 20U);
    EXPECT_EQ(replayed->banks.at(0x000B)[1], ByteVector(32));
    EXPECT_EQ(replayed->banks.at(0x000B)[17], ByteVector(32, std::byte{0xFF}));
}

TEST(EventLog, EventsWithoutActionExtendNothing) {
    auto const bytes = LogBuilder().event(3, EventType::NoAction, "a note").bytes();
    auto const log = parse_event_log(bytes);
    ASSERT_TRUE(log);
    auto const replayed = replay(*log);
    EXPECT_EQ(replayed->touched, 0U);
    EXPECT_EQ(replayed->banks.at(0x000B)[3], ByteVector(32));
}

TEST(EventLog, TheStartupLocalityIsWherePcr0Begins) {
    auto const locality = std::string("StartupLocality\0\3", 17);
    auto const bytes =
        LogBuilder().event(0, EventType::NoAction, locality).event(0, EventType::CrtmVersion, "x").bytes();
    auto const log = parse_event_log(bytes);
    ASSERT_TRUE(log);
    auto start = ByteVector(32);
    start.back() = std::byte{3};
    EXPECT_EQ(replay(*log)->banks.at(0x000B)[0],
              extended(start, *crypto::hash(HashAlgorithm::Sha256, {as_bytes("x")})));
    EXPECT_EQ(event_text(log->events[0]), "startup locality 3");
}

TEST(EventLog, ALogInMemoryEndsAtZeros) {
    auto const bytes = LogBuilder().event(1, EventType::EfiAction, "a").raw(ByteVector(1000)).bytes();
    auto const log = parse_event_log(bytes);
    ASSERT_TRUE(log);
    EXPECT_EQ(log->events.size(), 1U);
    EXPECT_EQ(log->problem, "");
    EXPECT_EQ(log->size, bytes.size() - 1000);
}

TEST(EventLog, EveryWayOfBeingCutShortIsSaid) {
    auto const whole = LogBuilder().event(1, EventType::EfiAction, "one").event(2, EventType::EfiAction, "two").bytes();
    auto const header = LogBuilder().bytes().size();
    auto const first = header + LogBuilder::event_bytes(1, EventType::EfiAction, as_bytes("one")).size();
    for (size_t size = 0; size < whole.size(); ++size) {
        auto const log = parse_event_log(Bytes(whole).first(size));
        if (size < header) {
            EXPECT_FALSE(log) << size;
            continue;
        }
        ASSERT_TRUE(log) << size;
        EXPECT_EQ(log->events.size(), size < first ? 0U : 1U) << size;
        EXPECT_EQ(log->problem.empty(), size == header || size == first) << size << log->problem;
    }
}

TEST(EventLog, WhatIsMalformedEndsIt) {
    auto broken = [](size_t at, std::byte value) {
        auto event = LogBuilder::event_bytes(1, EventType::EfiAction, as_bytes("two"));
        event[at] = value;
        return LogBuilder().event(1, EventType::EfiAction, "one").raw(event).bytes();
    };
    for (auto const& bytes : {broken(0, std::byte{24}), broken(8, std::byte{3}), broken(8, std::byte{1}),
                              broken(12, std::byte{0x0B}), broken(12, std::byte{0x99})}) {
        auto const log = parse_event_log(bytes);
        ASSERT_TRUE(log);
        EXPECT_EQ(log->events.size(), 1U);
        EXPECT_NE(log->problem.find("malformed"), std::string::npos) << log->problem;
    }
    EXPECT_FALSE(parse_event_log(ByteVector(200)));
    auto no_log = LogBuilder().bytes();
    no_log[32] = std::byte{'X'};
    EXPECT_FALSE(parse_event_log(no_log));
}

TEST(EventText, DecodesWhatFirmwareMeasures) {
    ByteVector variable;
    append(variable, ByteVector(16, std::byte{0x11}));
    append(variable, object_bytes(uint64_t{10}));
    append(variable, object_bytes(uint64_t{1}));
    for (char c : std::string("SecureBoot")) {
        variable.push_back(static_cast<std::byte>(c));
        variable.push_back(std::byte{0});
    }
    variable.push_back(std::byte{1});
    auto const bytes = LogBuilder()
                           .event(7, EventType::VariableDriverConfig, variable)
                           .event(5, EventType::EfiAction, "Exit Boot Services Invocation")
                           .event(8, EventType::Ipl, std::string_view("l\0i\0n\0e\0\0\0", 10))
                           .event(9, EventType::Ipl, std::string_view("esc\x1b[2J", 7))
                           .event(7, EventType::VariableBoot, "short")
                           .event(4, EventType(0x12345), "?")
                           .bytes();
    auto const log = parse_event_log(bytes);
    ASSERT_TRUE(log);
    EXPECT_EQ(event_text(log->events[0]), "SecureBoot (11111111-1111-1111-1111-111111111111): on");
    EXPECT_EQ(event_text(log->events[1]), "Exit Boot Services Invocation");
    EXPECT_EQ(event_text(log->events[2]), "line");
    EXPECT_EQ(event_text(log->events[3]), "6573631b5b324a") << "nothing that a terminal would obey";
    EXPECT_EQ(event_text(log->events[4]), "malformed: 73686f7274");
    EXPECT_EQ(event_type_name(log->events[5].type), "");
}

TEST(PcrText, IsReadAsTpm2PcrreadPrintsIt) {
    auto const banks = parse_pcr_text("  sha1:\n    0 : 0x" + std::string(40, 'A') + "\n  sha256:\n    23: 0x" +
                                      std::string(64, '0') + "\n  sm3_256:\n    0 : 0x00\n");
    ASSERT_TRUE(banks) << banks.error().message();
    EXPECT_EQ(banks->at(0x0004)[0], ByteVector(20, std::byte{0xAA}));
    EXPECT_TRUE(banks->at(0x0004)[1].empty());
    EXPECT_EQ(banks->at(0x000B)[23], ByteVector(32));
    EXPECT_EQ(banks->size(), 2U);
    for (std::string const& wrong :
         {std::string("nonsense"), std::string("0 : 0x00"), "sha1:\n 24 : 0x" + std::string(40, '0'),
          "sha1:\n 0 : 0x" + std::string(38, '0'), "sha1:\n 0 : 0x" + std::string(40, 'g')})
        EXPECT_FALSE(parse_pcr_text(wrong)) << wrong;
}

// Of OVMF, systemd's EFI stub and Linux, and what tpm2_pcrread said in that guest.
TEST(EventLog, OfARealBootGivesThePcrsOfItsTpm) {
    auto const bytes = read_whole(REAL_LOG);
    auto const log = parse_event_log(bytes);
    ASSERT_TRUE(log) << log.error().message();
    EXPECT_EQ(log->problem, "");
    EXPECT_EQ(log->size, bytes.size());
    auto const pcr_file = read_whole(REAL_PCRS);
    std::string pcr_text;
    for (std::byte b : pcr_file) pcr_text += static_cast<char>(b);
    auto const pcrs = parse_pcr_text(pcr_text);
    ASSERT_TRUE(pcrs) << pcrs.error().message();
    ASSERT_EQ(pcrs->size(), 4U);
    auto const replayed = replay(*log);
    ASSERT_TRUE(replayed);
    EXPECT_EQ(replayed->touched & 0xFFU, 0xFFU);
    for (auto const& [algorithm, values] : *pcrs)
        for (size_t pcr = 0; pcr < values.size(); ++pcr)
            if ((replayed->touched >> pcr & 1U) != 0) {
                EXPECT_EQ(replayed->banks.at(algorithm)[pcr], values[pcr]) << algorithm << " PCR " << pcr;
            }

    auto const text = texts_of(*log);
    for (auto const* part : {"7 EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot (8BE4DF61-93CA-11D2-AA0D-00E098032B8C): off",
                             "EV_EFI_VARIABLE_BOOT BootOrder (8BE4DF61-93CA-11D2-AA0D-00E098032B8C): 0",
                             "EV_EFI_BOOT_SERVICES_APPLICATION", "NVMe(0x1,", "HD(1,GPT,", "\\EFI\\BOOT\\BOOTX64.EFI",
                             "EV_EFI_GPT_EVENT disk ", "EV_EFI_ACTION Exit Boot Services Returned with Success"})
        EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
    EXPECT_EQ(text.find("malformed"), std::string::npos) << text;
}

} // namespace
} // namespace coffer::vmm::tests
