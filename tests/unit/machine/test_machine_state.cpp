// A machine that is saved goes on in another one as if nothing had been.
#include <fstream>

#include "base/file.hpp"
#include "base/tagged.hpp"
#include "tests/unit/machine/tiny_machine.hpp"

namespace coffer::vmm::tests {
namespace {

TEST(MachineState, GoesOnInAnotherMachine) {
    TinyMachine first;
    auto state = first.run_and_save(300);
    auto before = first.serial.take();
    ASSERT_GE(before.size(), 300U);
    expect_counting(before, 1);

    auto decoded = decode_machine_state(encode_machine_state(state));
    ASSERT_TRUE(decoded) << decoded.error().message();
    TinyMachine second(uint64_t{16} << 20, &*decoded);
    second.copy_ram(first);
    auto restored = second.machine->restore_state(*decoded);
    ASSERT_TRUE(restored) << restored.error().message();
    second.run(300);
    auto after = second.serial.take();
    ASSERT_GE(after.size(), 300U);
    expect_counting(after, static_cast<uint8_t>(before.back() + 1));
}

// Saving leaves the machine as it was: it goes on itself, too.
TEST(MachineState, GoesOnItself) {
    TinyMachine tiny;
    tiny.machine->start();
    unsigned saved = 0;
    std::thread watcher([&] {
        for (size_t count = 50; count <= 250; count += 50) {
            EXPECT_TRUE(tiny.serial.wait_for(count));
            tiny.machine->while_paused([&] { saved += tiny.machine->save_state() ? 1U : 0U; });
        }
        EXPECT_TRUE(tiny.serial.wait_for(400));
        tiny.machine->stop();
    });
    EXPECT_EQ(tiny.machine->wait(), MachineEnd::Stopped);
    watcher.join();
    EXPECT_EQ(saved, 5U);
    expect_counting(tiny.serial.take(), 1);
}

// The guest's clocks are forward by the time that it was away, all by the same span.
TEST(MachineState, ClocksStepForward) {
    TinyMachine first;
    auto state = first.run_and_save(10);
    constexpr int64_t k_away = 3600 * k_ns_per_s;
    auto tsc = [](CpuState const& cpu) {
        for (auto const& msr : cpu.msrs)
            if (msr.index == 0x10) return msr.value;
        return uint64_t{0};
    };
    uint64_t saved_tsc = tsc(state.vcpus[0]);
    state.wall_ns -= k_away;
    TinyMachine second(uint64_t{16} << 20, &state);
    auto before = second.machine->loop().now();
    ASSERT_TRUE(second.machine->restore_state(state));
    auto away = second.machine->loop().now() - before;
    auto restored = second.machine->partition().guest_tsc();
    double hz = static_cast<double>(second.machine->partition().tsc_hz());
    double tsc_away = static_cast<double>(restored - saved_tsc) / hz;
    // Both at least the hour, and no more than what this test may take.
    EXPECT_GE(away, k_away);
    EXPECT_LT(away, k_away + 600 * k_ns_per_s);
    EXPECT_GE(tsc_away, 3600.0);
    EXPECT_LT(tsc_away, 4200.0);
}

// A host clock that was set back does not turn the guest's back.
TEST(MachineState, ClocksNeverStepBack) {
    TinyMachine first;
    auto state = first.run_and_save(10);
    state.wall_ns += 3600 * k_ns_per_s;
    TinyMachine second(uint64_t{16} << 20, &state);
    auto before = second.machine->loop().now();
    ASSERT_TRUE(second.machine->restore_state(state));
    EXPECT_GE(second.machine->loop().now(), before);
    EXPECT_LT(second.machine->loop().now() - before, 600 * k_ns_per_s);
}

class Refusal : public testing::Test {
protected:
    void SetUp() override {
        TinyMachine first;
        m_state = first.run_and_save(10);
    }
    // Refused with the code, and a message that holds the text.
    void expect_refused(MachineState const& state, ErrorCode code, std::string_view text) {
        TinyMachine machine(uint64_t{16} << 20, &m_state);
        auto restored = machine.machine->restore_state(state);
        ASSERT_FALSE(restored);
        EXPECT_EQ(restored.error().code(), code) << restored.error().message();
        EXPECT_NE(restored.error().message().find(text), std::string::npos) << restored.error().message();
    }
    MachineState m_state;
};

TEST_F(Refusal, UnitMissing) {
    auto state = m_state;
    std::erase_if(state.units, [](auto const& unit) { return unit.name == "hpet"; });
    expect_refused(state, ErrorCode::Unsupported, "hpet");
}
TEST_F(Refusal, UnitTwice) {
    auto state = m_state;
    state.units.push_back(state.units.front());
    expect_refused(state, ErrorCode::Corrupt, state.units.front().name);
}
TEST_F(Refusal, UnitUnknown) {
    auto state = m_state;
    state.units.push_back({"floppy.0", {}});
    expect_refused(state, ErrorCode::Unsupported, "floppy.0");
}
TEST_F(Refusal, UnitMalformed) {
    auto state = m_state;
    state.units.back().state.resize(3);
    expect_refused(state, ErrorCode::Corrupt, state.units.back().name);
}
TEST_F(Refusal, OtherPlatform) {
    auto state = m_state;
    state.platform.memory *= 2;
    expect_refused(state, ErrorCode::Unsupported, "memory");
}
// A feature that this CPU has not is named.
TEST_F(Refusal, CpuFeatureThatIsNotHere) {
    auto state = m_state;
    for (auto& leaf : state.cpuid)
        if (leaf.leaf == 7 && leaf.subleaf == 0) leaf.registers[1] |= 1U << 16;
    expect_refused(state, ErrorCode::Unsupported, "avx512f");
}
TEST_F(Refusal, OtherTscFrequency) {
    auto state = m_state;
    state.tsc_hz += state.tsc_hz / 100;
    expect_refused(state, ErrorCode::Unsupported, "TSC");
}
TEST_F(Refusal, LaterVersionAndOtherArchitecture) {
    auto bytes = encode_machine_state(m_state);
    bytes[8] = std::byte{9};
    auto later = decode_machine_state(bytes);
    ASSERT_FALSE(later);
    EXPECT_EQ(later.error().code(), ErrorCode::Unsupported);
    bytes[8] = std::byte{1};
    bytes[12] = std::byte{183}; // AArch64
    EXPECT_FALSE(decode_machine_state(bytes));
    bytes[0] = std::byte{0};
    EXPECT_FALSE(decode_machine_state(bytes));
}
TEST_F(Refusal, CutAnywhere) {
    auto bytes = encode_machine_state(m_state);
    for (size_t size = 0; size < bytes.size(); size += 1 + bytes.size() / 400)
        EXPECT_FALSE(decode_machine_state(Bytes(bytes).first(size))) << size;
}

// What an earlier coffer saved still loads, and its guest goes on. The file is never made anew: COFFER_WRITE_GOLDEN
// wrote it when the format was new.
TEST(MachineState, GoldenStateStillRuns) {
    std::filesystem::path folder = GOLDEN_FOLDER;
    if (char const* to = std::getenv("COFFER_WRITE_GOLDEN")) {
        TinyMachine first(uint64_t{1} << 20);
        auto state = first.run_and_save(300);
        ASSERT_TRUE(replace_file(to, encode_machine_state(state)));
    }
    auto bytes = read_file(folder / "tiny-v1.state", size_t{1} << 20);
    ASSERT_TRUE(bytes) << bytes.error().message();
    auto state = decode_machine_state(*bytes);
    ASSERT_TRUE(state) << state.error().message();
    // Saved on another host: this one's CPU and clock are taken for it.
    auto partition = create_soft_partition({});
    ASSERT_TRUE(partition);
    state->cpuid = read_guest_cpuid(**partition);
    state->tsc_hz = (*partition)->tsc_hz();
    state->physical_address_bits = static_cast<uint8_t>((*partition)->physical_address_bits());
    partition->reset();
    state->wall_ns = wall_clock_ns();
    TinyMachine machine(uint64_t{1} << 20, &*state);
    auto restored = machine.machine->restore_state(*state);
    ASSERT_TRUE(restored) << restored.error().message();
    machine.run(300);
    auto cpu = state->vcpus.at(0);
    auto after = machine.serial.take();
    // ECX is the count; its byte may have been written or not when the machine was saved.
    auto count = static_cast<uint8_t>(cpu.gpr[1]);
    ASSERT_FALSE(after.empty());
    expect_counting(after, after[0] == count ? count : static_cast<uint8_t>(count + 1));
}

} // namespace
} // namespace coffer::vmm::tests
