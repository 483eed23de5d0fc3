// Small guests for the KVM backend's tests: RAM, vCPUs in a chosen CPU mode, and a GuestIo that records.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/accel/accelerator.hpp"

namespace coffer::tests {

using vmm::CpuState;
using vmm::Gpr;
using vmm::Segment;
using vmm::SegmentName;

inline bool have_kvm() {
    return ::access("/dev/kvm", F_OK) == 0;
}
#define SKIP_WITHOUT_KVM()                                                                                             \
    if (!have_kvm()) GTEST_SKIP() << "/dev/kvm is absent on this host: the KVM backend cannot be tested"

template <class T>
T must(Result<T> result) {
    if (!result) {
        ADD_FAILURE() << result.error().message();
        abort_with(result.error().message());
    }
    return std::move(result).value();
}
inline void must(Result<void> result) {
    if (!result) {
        ADD_FAILURE() << result.error().message();
        abort_with(result.error().message());
    }
}

// The guests end with a write to this port, or to this address where they cannot use ports.
constexpr uint16_t k_end_port = 0xF4;
constexpr uint64_t k_end_address = 0xFEB0'0F00;
constexpr uint64_t k_mmio = 0xFEB0'0000;

struct Access {
    enum class Kind : uint8_t { PioRead, PioWrite, MmioRead, MmioWrite } kind;
    uint64_t address;
    size_t size;
    uint64_t value;
    bool operator==(Access const&) const = default;
};

inline void PrintTo(Access const& access, std::ostream* out) {
    *out << fmt::format("{{kind {}, {:#x}, size {}, value {:#x}}}", static_cast<int>(access.kind), access.address,
                        access.size, access.value);
}

class RecordingIo final : public vmm::GuestIo {
public:
    void pio_read(uint16_t port, MutBytes to) noexcept override { read(Access::Kind::PioRead, port, to); }
    void pio_write(uint16_t port, Bytes from) noexcept override { write(Access::Kind::PioWrite, port, from); }
    void mmio_read(GuestPhysAddr from, MutBytes to) noexcept override {
        read(Access::Kind::MmioRead, from.value(), to);
    }
    void mmio_write(GuestPhysAddr to, Bytes from) noexcept override {
        write(Access::Kind::MmioWrite, to.value(), from);
    }

    std::vector<Access> accesses() const {
        std::scoped_lock lock(m_mutex);
        return m_accesses;
    }
    // Values written to a port or an address.
    std::vector<uint64_t> writes(uint64_t address) const {
        std::vector<uint64_t> values;
        for (auto const& access : accesses())
            if (access.address == address &&
                (access.kind == Access::Kind::PioWrite || access.kind == Access::Kind::MmioWrite))
                values.push_back(access.value);
        return values;
    }
    std::map<uint64_t, uint64_t> read_values;     // by port or address; all ones elsewhere
    std::function<void(Access const&)> on_access; // after recording, on the vCPU's thread

private:
    void read(Access::Kind kind, uint64_t address, MutBytes to) {
        fill_all_ones(to);
        if (auto value = read_values.find(address); value != read_values.end()) store_le_sized(to, value->second);
        record({kind, address, to.size(), load_le_sized(to)});
    }
    void write(Access::Kind kind, uint64_t address, Bytes from) {
        record({kind, address, from.size(), load_le_sized(from)});
    }
    void record(Access access) {
        {
            std::scoped_lock lock(m_mutex);
            m_accesses.push_back(access);
        }
        if (on_access) on_access(access);
    }

    mutable std::mutex m_mutex;
    std::vector<Access> m_accesses;
};

class Ram {
public:
    explicit Ram(size_t size) : m_size(size) {
        void* start = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        COFFER_ASSERT(start != MAP_FAILED);
        m_start = static_cast<std::byte*>(start);
    }
    ~Ram() { ::munmap(m_start, m_size); }
    Ram(Ram const&) = delete;
    Ram& operator=(Ram const&) = delete;
    std::byte* data() { return m_start; }
    size_t size() const { return m_size; }
    MutBytes bytes() { return {m_start, m_size}; }

private:
    std::byte* m_start;
    size_t m_size;
};

using Code = std::initializer_list<uint8_t>;

inline void load(Ram& ram, uint64_t address, Code code) {
    COFFER_ASSERT(address + code.size() <= ram.size());
    size_t i = address;
    for (uint8_t byte : code) ram.data()[i++] = std::byte{byte};
}

constexpr uint64_t k_code = 0x1000;
constexpr uint64_t k_stack = 0x8000;
constexpr uint64_t k_tables = 0x70000; // page tables and GDT

// GDT selectors.
constexpr uint16_t k_code32 = 0x08, k_data = 0x10, k_code64 = 0x18, k_user_data = 0x20 | 3, k_user_code64 = 0x28 | 3;

inline void write_tables(Ram& ram) {
    constexpr uint64_t k_flags = 7; // present, writable, user
    auto bytes = ram.bytes();
    store_le<uint64_t>(bytes, k_tables, (k_tables + 0x1000) | k_flags);
    for (uint64_t gib = 0; gib < 4; ++gib) {
        uint64_t directory = k_tables + 0x2000 + gib * 0x1000;
        store_le<uint64_t>(bytes, k_tables + 0x1000 + gib * 8, directory | k_flags);
        for (uint64_t i = 0; i < 512; ++i)
            store_le<uint64_t>(bytes, directory + i * 8, (gib << 30) | (i << 21) | 0x80 | k_flags);
    }
    uint64_t const gdt[] = {
        0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF};
    for (size_t i = 0; i < std::size(gdt); ++i) store_le<uint64_t>(bytes, k_tables + 0x6000 + i * 8, gdt[i]);
}

inline CpuState real_mode(CpuState state) {
    for (auto& segment : state.segments) segment = {0, 0x93, 0xFFFF, 0};
    state.segment(SegmentName::Cs).attributes = 0x9B;
    state.idtr = {0, 0x3FF};
    state.rip = k_code;
    state.gpr[static_cast<size_t>(Gpr::Rsp)] = k_stack;
    return state;
}

inline void flat_segments(CpuState& state, uint16_t code, uint16_t code_attributes, uint16_t data,
                          uint16_t data_attributes) {
    for (auto& segment : state.segments) segment = {data, data_attributes, 0xFFFFFFFF, 0};
    state.segment(SegmentName::Cs) = {code, code_attributes, 0xFFFFFFFF, 0};
    state.gdtr = {k_tables + 0x6000, 6 * 8 - 1};
    state.rip = k_code;
    state.gpr[static_cast<size_t>(Gpr::Rsp)] = k_stack;
}

inline CpuState protected_mode(CpuState state) {
    flat_segments(state, k_code32, 0xC09B, k_data, 0xC093);
    state.cr0 |= 1;
    return state;
}

inline CpuState long_mode(CpuState state) {
    flat_segments(state, k_code64, 0xA09B, k_data, 0xC093);
    state.cr0 |= 0x80000001;
    state.cr0 &= ~uint64_t{0x60000000}; // caches on
    state.cr3 = k_tables;
    state.cr4 |= 0x620;  // PAE, OSFXSR, OSXMMEXCPT
    state.efer |= 0xD01; // NXE, LMA, LME, SCE
    return state;
}

inline CpuState user_mode(CpuState state) {
    state = long_mode(state);
    flat_segments(state, k_user_code64, 0xA0FB, k_user_data, 0xC0F3);
    return state;
}

class MicroGuest {
public:
    using Create = Result<std::unique_ptr<vmm::Partition>> (*)(vmm::PartitionConfig const&);
    explicit MicroGuest(unsigned count = 1, Create create = vmm::create_kvm_partition)
        : ram(0x80000), partition(must(create({.vcpus = count}))) {
        must(partition->map({GuestPhysAddr(0), ram.size(), ram.data(), false}));
        write_tables(ram);
        for (unsigned i = 0; i < count; ++i) vcpus.push_back(must(partition->create_vcpu(i, io, nullptr)));
        io.on_access = [this](Access const& access) { stop_at_end(access); };
    }

    vmm::Vcpu& cpu(size_t index = 0) { return *vcpus[index]; }
    void enter(CpuState (*mode)(CpuState), Code code) {
        load(ram, k_code, code);
        must(cpu().set_state(mode(must(cpu().get_state()))));
    }
    void stop_at_end(Access const& access) {
        if (access.address == k_end_port || access.address == k_end_address) {
            ended = true;
            for (auto& vcpu : vcpus) vcpu->kick();
        }
    }
    // Runs vCPU 0 until it ends or stops; a guest that hangs fails the test instead of blocking it.
    Result<vmm::VcpuExit> run(std::chrono::seconds limit = std::chrono::seconds(20)) {
        std::mutex mutex;
        std::condition_variable changed;
        bool done = false;
        std::thread watchdog([&] {
            std::unique_lock lock(mutex);
            if (changed.wait_for(lock, limit, [&] { return done; })) return;
            ADD_FAILURE() << "the guest did not end in time";
            for (auto& vcpu : vcpus) vcpu->kick();
        });
        auto result = cpu().run();
        {
            std::scoped_lock lock(mutex);
            done = true;
        }
        changed.notify_all();
        watchdog.join();
        return result;
    }
    void run_to_end() {
        auto exit = run();
        ASSERT_TRUE(exit) << exit.error().message();
        EXPECT_EQ(*exit, vmm::VcpuExit::Kicked);
        EXPECT_TRUE(ended);
    }
    uint64_t gpr(Gpr name) { return must(cpu().get_state()).gpr[static_cast<size_t>(name)]; }

    Ram ram;
    RecordingIo io;
    std::unique_ptr<vmm::Partition> partition;
    std::vector<std::unique_ptr<vmm::Vcpu>> vcpus;
    std::atomic<bool> ended = false;
};

} // namespace coffer::tests
