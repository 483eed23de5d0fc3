// A whole machine, on the software CPU where nothing else is said, with 64 KiB of firmware of its own: it counts, and writes each count's low byte
// to the serial port and the whole to 0x1000.
#pragma once

#include <condition_variable>

#include <gtest/gtest.h>

#include "devices/tpm/memory_nv_store.hpp"
#include "vmm/layout.hpp"
#include "vmm/machine/machine.hpp"

namespace coffer::vmm::tests {

class SerialCollector final : public devices::ByteSink {
public:
    void write(Bytes bytes) noexcept override {
        std::lock_guard lock(m_mutex);
        for (std::byte b : bytes) m_bytes.push_back(std::to_integer<uint8_t>(b));
        m_changed.notify_all();
    }
    bool wait_for(size_t count) {
        std::unique_lock lock(m_mutex);
        return m_changed.wait_for(lock, std::chrono::seconds(60), [&] { return m_bytes.size() >= count; });
    }
    std::vector<uint8_t> take() {
        std::lock_guard lock(m_mutex);
        return std::exchange(m_bytes, {});
    }

private:
    std::mutex m_mutex;
    std::condition_variable m_changed;
    std::vector<uint8_t> m_bytes;
};

inline ByteVector counting_firmware() {
    constexpr std::array<uint8_t, 28> k_code{
        0x31, 0xC0, 0x8E, 0xD8, 0x66, 0x31, 0xC9, 0xBA,
        0xF8, 0x03,                                     // xor ax, ax; mov ds, ax; xor ecx, ecx; mov dx, 3F8h
        0x66, 0x41, 0x66, 0x89, 0x0E, 0x00, 0x10,       // again: inc ecx; mov [1000h], ecx
        0x88, 0xC8, 0xEE,                               // mov al, cl; out dx, al
        0xBB, 0x00, 0x10, 0x4B, 0x75, 0xFD, 0xEB, 0xEE, // mov bx, 1000h; wait: dec bx; jnz wait; jmp again
    };
    constexpr std::array<uint8_t, 3> k_reset{0xE9, 0x0D, 0xFF}; // jmp FF00h
    ByteVector flash(size_t{64} << 10, std::byte{0xFF});
    std::memcpy(flash.data() + 0xFF00, k_code.data(), k_code.size());
    std::memcpy(flash.data() + 0xFFF0, k_reset.data(), k_reset.size());
    return flash;
}

class TinyMachine {
public:
    // With `state`, the machine that was saved, around `ram` where that is given.
    explicit TinyMachine(uint64_t memory = uint64_t{16} << 20, MachineState const* state = nullptr,
                         std::unique_ptr<GuestRam> ram = nullptr, ByteVector firmware = counting_firmware(),
                         Result<std::unique_ptr<Partition>> partition = create_soft_partition({})) {
        PlatformConfig config;
        config.vm.name = "tiny";
        config.vm.memory = memory;
        config.vm.cpus = 1;
        config.vm.tpm = TpmKind::None;
        config.firmware_code = state ? state->firmware_code : std::move(firmware);
        config.variables = state ? state->variables : ByteVector(size_t{8} << 10, std::byte{0xFF});
        config.variable_store = &m_store;
        config.serial = &serial;
        EXPECT_TRUE(partition) << partition.error().message();
        auto made = Machine::create(std::move(config), std::move(*partition), std::move(ram));
        EXPECT_TRUE(made) << made.error().message();
        machine = std::move(*made);
    }

    // Runs until `count` bytes were written, saves, and ends the machine.
    MachineState run_and_save(size_t count) {
        MachineState state;
        machine->start();
        std::thread watcher([&] {
            EXPECT_TRUE(serial.wait_for(count));
            machine->while_paused([&] {
                auto saved = machine->save_state();
                EXPECT_TRUE(saved) << saved.error().message();
                if (saved) state = std::move(*saved);
                machine->stop();
            });
        });
        EXPECT_EQ(machine->wait(), MachineEnd::Stopped);
        watcher.join();
        EXPECT_TRUE(machine->close());
        return state;
    }
    void run(size_t count) {
        machine->start();
        std::thread watcher([&] {
            EXPECT_TRUE(serial.wait_for(count));
            machine->stop();
        });
        EXPECT_EQ(machine->wait(), MachineEnd::Stopped);
        watcher.join();
        EXPECT_TRUE(machine->close());
    }
    void copy_ram(TinyMachine& from) const {
        auto theirs = from.machine->ram().regions();
        auto ours = machine->ram().regions();
        ASSERT_EQ(theirs.size(), ours.size());
        for (size_t i = 0; i < ours.size(); ++i) std::memcpy(ours[i].host, theirs[i].host, ours[i].size);
    }

    SerialCollector serial;
    std::unique_ptr<Machine> machine;

private:
    devices::MemoryNvStore m_store;
};

inline void expect_counting(std::vector<uint8_t> const& bytes, uint8_t first) {
    for (size_t i = 0; i < bytes.size(); ++i)
        ASSERT_EQ(bytes[i], static_cast<uint8_t>(first + i)) << "at " << i << " of " << bytes.size();
}

} // namespace coffer::vmm::tests
