// A guest of a few instructions on the software backend: RAM, page tables, a port that ends the run.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "vmm/accel/accelerator.hpp"

// Guest code written in the test's source: GUEST_CODE(name, "mov ..."), then name_code().
#define GUEST_CODE(name, text)                                                                                         \
    extern "C" const uint8_t guest_##name##_begin[], guest_##name##_end[];                                             \
    asm(".pushsection .rodata\n .p2align 8\n guest_" #name "_begin:\n" text "\n guest_" #name                          \
        "_end:\n .code64\n .popsection\n");                                                                            \
    inline coffer::Bytes name##_code() {                                                                               \
        return std::as_bytes(std::span(guest_##name##_begin, guest_##name##_end));                                     \
    }

namespace coffer::tests {

using namespace coffer::vmm;

constexpr uint64_t k_guest_code = 0x10'0000;
constexpr uint64_t k_guest_stack = 0x8'0000;
constexpr uint64_t k_guest_tables = 0x1'0000;
constexpr uint16_t k_done_port = 0xF4;
constexpr uint64_t k_done_address = 0x3fff'f000; // the same for CPL 3

class FakeApic final : public devices::CpuInterrupts {
public:
    std::vector<uint8_t> pending;
    bool has_pending() const noexcept override { return !pending.empty(); }
    std::optional<uint8_t> acknowledge() noexcept override {
        uint8_t vector = pending.front();
        pending.erase(pending.begin());
        return vector;
    }
    uint8_t read_cr8() const noexcept override { return 0; }
    void write_cr8(uint8_t) noexcept override {}
    uint64_t read_apic_base() const noexcept override { return 0xFEE00900; }
    bool write_apic_base(uint64_t) noexcept override { return true; }
    uint64_t read_tsc_deadline() const noexcept override { return 0; }
    void write_tsc_deadline(uint64_t) noexcept override {}
    bool read_x2apic(uint32_t, uint64_t&) noexcept override { return false; }
    bool write_x2apic(uint32_t, uint64_t) noexcept override { return false; }
};

class MicroGuest : public GuestIo {
public:
    std::vector<std::byte> storage;
    std::byte* ram;
    size_t size;
    FakeApic apic;
    std::unique_ptr<Partition> partition;
    std::unique_ptr<Vcpu> vcpu;
    CpuState state;
    bool done = false;
    std::vector<std::pair<uint16_t, uint64_t>> out;
    std::vector<std::tuple<bool, uint64_t, size_t, uint64_t>> mmio; // write, address, size, value
    std::function<void(uint16_t, uint64_t)> on_out;

    using Create = Result<std::unique_ptr<Partition>> (*)(PartitionConfig const&);
    explicit MicroGuest(size_t bytes = size_t{16} << 20, Create create = create_soft_partition)
        : storage(bytes + 4096), size(bytes) {
        ram = storage.data() + (4096 - reinterpret_cast<uintptr_t>(storage.data()) % 4096);
        auto made = create({});
        EXPECT_TRUE(made) << made.error().message();
        partition = std::move(*made);
        EXPECT_TRUE(partition->map({GuestPhysAddr(0), bytes, ram, false}));
        auto made_vcpu = partition->create_vcpu(0, *this, partition->capabilities().kernel_irqchip ? nullptr : &apic);
        EXPECT_TRUE(made_vcpu) << made_vcpu.error().message();
        vcpu = std::move(*made_vcpu);
        auto reset = vcpu->get_state();
        EXPECT_TRUE(reset);
        state = *reset;
    }

    void pio_read(uint16_t, MutBytes to) noexcept override { fill_all_ones(to); }
    void pio_write(uint16_t port, Bytes from) noexcept override {
        uint64_t value = load_le_sized(from);
        if (port == k_done_port) {
            done = true;
            vcpu->kick();
            return;
        }
        out.emplace_back(port, value);
        if (on_out) on_out(port, value);
    }
    void mmio_read(GuestPhysAddr from, MutBytes to) noexcept override {
        for (size_t i = 0; i < to.size(); ++i) to[i] = static_cast<std::byte>(from.value() + i);
        mmio.emplace_back(false, from.value(), to.size(), 0);
    }
    void mmio_write(GuestPhysAddr to, Bytes from) noexcept override {
        if (to.value() == k_done_address) {
            done = true;
            vcpu->kick();
            return;
        }
        mmio.emplace_back(true, to.value(), from.size(), load_le_sized(from));
    }

    void put(uint64_t gpa, Bytes bytes) {
        if (!bytes.empty()) std::memcpy(ram + gpa, bytes.data(), bytes.size());
    }
    template <class T>
    void put_value(uint64_t gpa, T value) {
        std::memcpy(ram + gpa, &value, sizeof value);
    }
    template <class T = uint64_t>
    T value(uint64_t gpa) const {
        T result;
        std::memcpy(&result, ram + gpa, sizeof result);
        return result;
    }

    // 64-bit mode at CPL 0, the first GiB mapped to itself by 2 MiB pages (the first 2 MiB by 4 KiB pages).
    void long_mode() {
        uint64_t pml4 = k_guest_tables, pdpt = pml4 + 0x1000, pd = pdpt + 0x1000, pt = pd + 0x1000;
        put_value<uint64_t>(pml4, pdpt | 7);
        put_value<uint64_t>(pdpt, pd | 7);
        put_value<uint64_t>(pd, pt | 7);
        for (uint64_t i = 1; i < 512; ++i) put_value<uint64_t>(pd + i * 8, i << 21 | 0x87);
        for (uint64_t i = 0; i < 512; ++i) put_value<uint64_t>(pt + i * 8, i << 12 | 7);
        state.cr0 = 0x80010033;
        state.cr3 = pml4;
        state.cr4 = 0x620; // PAE, OSFXSR, OSXMMEXCPT
        state.efer = 0xD01;
        for (Segment& segment : state.segments) segment = Segment{0x10, 0xC093, 0xFFFFFFFF, 0};
        state.segment(SegmentName::Cs) = Segment{0x08, 0xA09B, 0xFFFFFFFF, 0};
        state.tr = Segment{0x30, 0x008B, 0x67, 0x6000};
        state.rip = k_guest_code;
        state.gpr[4] = k_guest_stack;
        descriptors();
    }
    void user_mode() {
        for (Segment& segment : state.segments) segment = Segment{0x2B, 0xC0F3, 0xFFFFFFFF, 0};
        state.segment(SegmentName::Cs) = Segment{0x23, 0xA0FB, 0xFFFFFFFF, 0};
    }
    // Flat 32-bit protected mode without paging.
    void protected_mode() {
        state.cr0 = 0x33;
        state.cr4 = 0x600;
        for (Segment& segment : state.segments) segment = Segment{0x10, 0xC093, 0xFFFFFFFF, 0};
        state.segment(SegmentName::Cs) = Segment{0x18, 0xC09B, 0xFFFFFFFF, 0};
        state.rip = k_guest_code;
        state.gpr[4] = k_guest_stack;
        descriptors();
    }
    // GDT: 08 code64, 10 data, 18 code32, 20 code64 user, 28 data user, 30 TSS. IDT at 0x5000, TSS at 0x6000.
    void descriptors() {
        uint64_t const gdt[] = {0,
                                0x00AF9B000000FFFF,
                                0x00CF93000000FFFF,
                                0x00CF9B000000FFFF,
                                0x00AFFB000000FFFF,
                                0x00CFF3000000FFFF,
                                0x0000890060000067,
                                0};
        std::memcpy(ram + 0x4000, gdt, sizeof gdt);
        state.gdtr = {0x4000, sizeof gdt - 1};
        state.idtr = {0x5000, 0xFFF};
        put_value<uint64_t>(0x6004, k_guest_stack + 0x4000);  // RSP0
        put_value<uint64_t>(0x6024, k_guest_stack + 0x10000); // IST1
    }
    void gate(unsigned vector, uint64_t handler, uint8_t type = 0x8E, uint8_t stack = 0) {
        constexpr uint16_t selector = 0x08;
        put_value<uint64_t>(0x5000 + vector * 16, (handler & 0xFFFF) | uint64_t{selector} << 16 |
                                                      uint64_t{stack} << 32 | uint64_t{type} << 40 |
                                                      (handler >> 16 & 0xFFFF) << 48);
        put_value<uint64_t>(0x5008 + vector * 16, handler >> 32);
    }

    void run(Bytes code) {
        put(k_guest_code, code);
        run();
    }
    void run() {
        done = false;
        auto set = vcpu->set_state(state);
        ASSERT_TRUE(set) << set.error().message();
        resume();
    }
    void resume() {
        auto exit = vcpu->run();
        ASSERT_TRUE(exit) << exit.error().message();
        auto now = vcpu->get_state();
        ASSERT_TRUE(now);
        state = *now;
        ASSERT_EQ(*exit, VcpuExit::Kicked) << "shutdown at " << std::hex << state.rip;
    }
    uint64_t reg(Gpr name) const { return state.gpr[static_cast<size_t>(name)]; }
};

} // namespace coffer::tests
