// Stock OVMF under KVM: from the reset vector past its FPU set-up, from its first fw_cfg reads on, and the way between,
// which is slow where KVM emulates ring 0: OVMF unpacks itself first (about 500 million instructions).
#include <array>

#include <gtest/gtest.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "tests/unit/kvm/micro_guest.hpp"
#include "vmm/layout.hpp"

namespace coffer::tests {
namespace {

constexpr char const* k_firmware = "/usr/share/OVMF/OVMF_CODE_4M.fd";
constexpr size_t k_flash_size = 4 << 20;  // variables below code
constexpr size_t k_ram = 128 << 20;
constexpr uint64_t k_video_end = 0xC0000;

// fw_cfg (QEMU docs/specs/fw_cfg) with its signature and its version, and no files: a selector register, and one byte
// of the selected item with each read.
class FwCfg final : public vmm::GuestIo {
public:
    void pio_read(uint16_t port, MutBytes to) noexcept override {
        fill_all_ones(to);
        if (port != vmm::layout::k_fw_cfg.value() + 1 || !selected) return;
        constexpr std::array<std::string_view, 2> k_items{"QEMU", "\x01"};  // signature; the interface without DMA
        std::string_view item = *selected < k_items.size() ? k_items[*selected] : "";
        to[0] = static_cast<std::byte>(position < item.size() ? item[position] : 0);
        if (++position == 4) stop_if_complete();
    }
    void pio_write(uint16_t port, Bytes from) noexcept override {
        if (port != vmm::layout::k_fw_cfg.value() || from.size() != 2) return;
        selected = load_le<uint16_t>(from);
        if (!first_selected) first_selected = selected;
        ++selections;
        position = 0;
    }
    void mmio_read(GuestPhysAddr, MutBytes to) noexcept override { fill_all_ones(to); }
    void mmio_write(GuestPhysAddr, Bytes) noexcept override {}

    bool complete() const { return selections >= wanted_selections && position >= 4; }
    void stop_if_complete() {
        if (complete() && vcpu) vcpu->kick();
    }

    vmm::Vcpu* vcpu = nullptr;
    std::optional<uint16_t> first_selected, selected;
    size_t position = 0;
    unsigned selections = 0, wanted_selections = 1;
};

class FirmwareRig {
public:
    FirmwareRig() : ram(k_ram), flash(k_flash_size) {
        auto code = must(read_file(k_firmware, k_flash_size));
        fill_all_ones(flash.bytes());  // no variables
        std::copy(code.begin(), code.end(), flash.data() + (k_flash_size - code.size()));
    }
    void map(vmm::Partition& partition) {
        must(partition.map({GuestPhysAddr(0), vmm::layout::k_legacy_video.value(), ram.data(), false}));
        must(partition.map({GuestPhysAddr(k_video_end), k_ram - k_video_end, ram.data() + k_video_end, false}));
        must(partition.map({GuestPhysAddr(vmm::layout::k_flash_end - k_flash_size), k_flash_size, flash.data(), true}));
    }
    // Until `io` kicks the vCPU, or for so many seconds.
    static void run(vmm::Vcpu& vcpu, FwCfg& io, int seconds) {
        io.vcpu = &vcpu;
        std::atomic<bool> done = false;
        std::thread watchdog([&] {
            for (int i = 0; i < seconds * 10 && !done; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(100));
            vcpu.kick();
        });
        Nanoseconds start = monotonic_now();
        auto exit = vcpu.run();
        done = true;
        watchdog.join();
        ASSERT_TRUE(exit) << exit.error().message();
        EXPECT_EQ(*exit, vmm::VcpuExit::Kicked);
        auto statistics = vcpu.statistics();
        std::printf("seconds: %.1f, completed instructions: %llu\n",
                    static_cast<double>(monotonic_now() - start) / static_cast<double>(k_ns_per_s),
                    static_cast<unsigned long long>(statistics.completed_instructions));
        for (auto const& [kind, count] : statistics.exits_by_kind)
            std::printf("  %s: %llu\n", kind.c_str(), static_cast<unsigned long long>(count));
    }

    Ram ram, flash;
};

bool have_firmware() { return ::access(k_firmware, R_OK) == 0; }
#define SKIP_WITHOUT_FIRMWARE() \
    if (!have_firmware()) GTEST_SKIP() << k_firmware << " is absent: install Debian's ovmf"

TEST(KvmFirmware, OvmfGoesOnFromTheSoftwareCpu) {
    SKIP_WITHOUT_KVM();
    SKIP_WITHOUT_FIRMWARE();
    FirmwareRig rig;
    FwCfg io;
    auto soft = must(vmm::create_soft_partition({}));
    rig.map(*soft);
    auto first = must(soft->create_vcpu(0, io, nullptr));
    ASSERT_NO_FATAL_FAILURE(FirmwareRig::run(*first, io, 120));
    ASSERT_TRUE(io.complete());
    auto state = must(first->get_state());

    // KVM reads the fields that come next.
    auto kvm = must(vmm::create_kvm_partition({}));
    rig.map(*kvm);
    auto second = must(kvm->create_vcpu(0, io, nullptr));
    must(second->set_state(state));
    io.wanted_selections = io.selections + 2;
    ASSERT_NO_FATAL_FAILURE(FirmwareRig::run(*second, io, 120));
    EXPECT_TRUE(io.complete()) << "at RIP " << std::hex << must(second->get_state()).rip;
}

TEST(KvmFirmware, OvmfPassesItsFpuSetUp) {
    SKIP_WITHOUT_KVM();
    SKIP_WITHOUT_FIRMWARE();
    FirmwareRig rig;
    FwCfg io;
    auto partition = must(vmm::create_kvm_partition({}));
    rig.map(*partition);
    auto vcpu = must(partition->create_vcpu(0, io, nullptr));
    if (partition->capabilities().native_ring0) GTEST_SKIP() << "ring 0 runs on the CPU: nothing is refused";
    // The x87 control word and MXCSR are among the first things that it loads.
    for (int second = 0; second < 40 && vcpu->statistics().completed_instructions < 3; ++second)
        ASSERT_NO_FATAL_FAILURE(FirmwareRig::run(*vcpu, io, 1));
    EXPECT_GE(vcpu->statistics().completed_instructions, 3u);
    auto state = must(vcpu->get_state());
    // FLDCW's value (edk2 UefiCpuPkg/Library/BaseUefiCpuLib/Ia32/InitializeFpu.nasm); FINIT alone leaves 0x37F.
    EXPECT_EQ(state.fxsave[0] | state.fxsave[1] << 8, 0x027F);
    EXPECT_NE(state.cr4 & 0x200, 0u);  // OSFXSR
}

TEST(KvmFirmware, OvmfReachesFwCfg) {
    SKIP_WITHOUT_KVM();
    SKIP_WITHOUT_FIRMWARE();
    FirmwareRig rig;
    FwCfg io;
    auto partition = must(vmm::create_kvm_partition({}));
    rig.map(*partition);
    auto vcpu = must(partition->create_vcpu(0, io, nullptr));
    ASSERT_NO_FATAL_FAILURE(FirmwareRig::run(*vcpu, io, 3300));
    ASSERT_TRUE(io.complete()) << "at RIP " << std::hex << must(vcpu->get_state()).rip;
    EXPECT_EQ(io.first_selected, 0u);  // the signature comes first
    EXPECT_TRUE(partition->capabilities().native_ring0 || vcpu->statistics().completed_instructions > 0);
}

}  // namespace
}  // namespace coffer::tests
