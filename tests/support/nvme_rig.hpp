// An NVMe controller on a PCI bus with a guest's queues, driven as a driver does.
#pragma once

#include <algorithm>
#include <thread>

#include <gtest/gtest.h>

#include "devices/storage/nvme.hpp"
#include "tests/support/pci_rig.hpp"

namespace coffer::tests {

struct NvmeRig {
    static constexpr unsigned k_slot = 4;
    static constexpr uint64_t k_bar = 0xC000'0000;
    static constexpr uint32_t k_msix_table = 0xC010'0000;
    static constexpr uint64_t k_queues_base = 0x10'0000; // queue n: SQ at +n * 0x20000, CQ 64 KiB further
    static constexpr uint16_t k_entries = 8;
    using Command = devices::nvme::Command;
    using Completion = devices::nvme::Completion;

    PciRig rig;
    FakeMemory memory{8 << 20};
    ManualScheduler scheduler;
    FakeBlock disk{4 << 20};
    devices::NvmeController nvme{
        {.unit = "nvme.0", .serial = "TEST", .nguid = {std::byte{1}, std::byte{2}}}, disk, memory, scheduler};
    std::array<uint16_t, devices::nvme::k_queues> sq_tail{};
    std::array<uint16_t, devices::nvme::k_queues> cq_head{};
    std::array<bool, devices::nvme::k_queues> cq_phase{};
    uint16_t next_id = 1;

    NvmeRig() {
        for (size_t i = 0; i < disk.content.size(); ++i)
            disk.content[i] = static_cast<std::byte>(i / 512 * 7 + i % 251);
        EXPECT_TRUE(rig.host.add(k_slot, 0, nvme).has_value());
        rig.config_write<uint32_t>(k_slot, 0x10, k_bar);
        rig.enable(k_slot);
    }

    static uint64_t sq_base(unsigned id) { return k_queues_base + id * 0x2'0000; }
    static uint64_t cq_base(unsigned id) { return sq_base(id) + 0x1'0000; }

    // Admin queues and enable.
    void start() {
        sq_tail = {};
        cq_head = {};
        cq_phase.fill(true);
        // As a driver does: entries of an earlier life would look new.
        for (unsigned id = 0; id < 2; ++id) std::ranges::fill(ram(cq_base(id), 0x1000), std::byte{0});
        write32(devices::nvme::AQA, (k_entries - 1U) << 16 | (k_entries - 1U));
        rig.write<uint64_t>(k_bar + devices::nvme::ASQ, sq_base(0));
        rig.write<uint64_t>(k_bar + devices::nvme::ACQ, cq_base(0));
        write32(devices::nvme::CC, 0x0046'0001);
        ASSERT_EQ(csts(), 1U);
    }
    void write32(uint64_t offset, uint32_t value) { rig.write<uint32_t>(k_bar + offset, value); }
    uint32_t read32(uint64_t offset) { return rig.read<uint32_t>(k_bar + offset); }
    uint32_t csts() { return read32(devices::nvme::CSTS); }

    void put(unsigned queue, Command const& command) {
        ASSERT_TRUE(
            memory.write(GuestPhysAddr{sq_base(queue) + sq_tail[queue] * sizeof command}, object_bytes(command)));
        sq_tail[queue] = static_cast<uint16_t>((sq_tail[queue] + 1) % k_entries);
    }
    void ring(unsigned queue) { write32(devices::nvme::DOORBELLS + 8 * queue, sq_tail[queue]); }
    void ring_completion(unsigned queue) { write32(devices::nvme::DOORBELLS + 8 * queue + 4, cq_head[queue]); }
    // The next completion if it is there; the head doorbell is left to the caller.
    std::optional<Completion> poll(unsigned queue) {
        Completion completion;
        EXPECT_TRUE(memory.read(GuestPhysAddr{cq_base(queue) + cq_head[queue] * sizeof completion},
                                std::as_writable_bytes(std::span(&completion, 1))));
        if (((completion.status & 1) != 0) != cq_phase[queue]) return std::nullopt;
        cq_head[queue] = static_cast<uint16_t>((cq_head[queue] + 1) % k_entries);
        if (cq_head[queue] == 0) cq_phase[queue] = !cq_phase[queue];
        return completion;
    }
    // Runs posted tasks until a completion is there; five seconds at most.
    std::optional<Completion> wait(unsigned queue) {
        for (int i = 0; i < 50'000; ++i) {
            scheduler.run_tasks();
            if (auto completion = poll(queue)) {
                ring_completion(queue);
                return completion;
            }
            std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
        return std::nullopt;
    }
    // Status without DNR and phase; 0xFFFF where nothing came.
    uint16_t run(unsigned queue, Command command, uint32_t* result = nullptr) {
        command.id = next_id++;
        put(queue, command);
        ring(queue);
        auto completion = wait(queue);
        if (!completion) return 0xFFFF;
        EXPECT_EQ(completion->command_id, command.id);
        EXPECT_EQ(completion->sq_id, queue);
        if (result) *result = completion->result;
        return static_cast<uint16_t>(completion->status >> 1 & 0x7FF);
    }
    static Command command(uint8_t opcode, uint32_t nsid = 0, uint64_t prp1 = 0, uint64_t prp2 = 0) {
        Command result{};
        result.opcode = opcode;
        result.nsid = nsid;
        result.prp1 = prp1;
        result.prp2 = prp2;
        return result;
    }
    static Command transfer(uint8_t opcode, uint64_t lba, uint32_t blocks, uint64_t prp1, uint64_t prp2 = 0) {
        Command result = command(opcode, 1, prp1, prp2);
        result.cdw10 = static_cast<uint32_t>(lba);
        result.cdw11 = static_cast<uint32_t>(lba >> 32);
        result.cdw12 = blocks - 1;
        return result;
    }
    uint16_t create_queues(unsigned id, uint16_t vector = 1) {
        Command cq = command(devices::nvme::CREATE_IO_CQ, 0, cq_base(id));
        cq.cdw10 = id | (k_entries - 1U) << 16;
        cq.cdw11 = 3U | static_cast<uint32_t>(vector) << 16;
        if (uint16_t status = run(0, cq)) return status;
        Command sq = command(devices::nvme::CREATE_IO_SQ, 0, sq_base(id));
        sq.cdw10 = id | (k_entries - 1U) << 16;
        sq.cdw11 = 1U | id << 16;
        return run(0, sq);
    }
    MutBytes ram(uint64_t first, size_t size) { return memory.ram().subspan(first, size); }
};

} // namespace coffer::tests
