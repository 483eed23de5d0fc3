// Stock OVMF from the reset vector under KVM, up to its first fw_cfg reads. Slow where KVM emulates ring 0: it unpacks
// itself first (about 500 million instructions).
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

// fw_cfg's signature and nothing else (QEMU docs/specs/fw_cfg): a selector register, and a byte of "QEMU" each read.
class FwCfgSignature final : public vmm::GuestIo {
public:
    void pio_read(uint16_t port, MutBytes to) noexcept override {
        fill_all_ones(to);
        if (port != vmm::layout::k_fw_cfg.value() + 1 || !selected) return;
        constexpr std::string_view k_signature = "QEMU";
        to[0] = static_cast<std::byte>(*selected == 0 && position < k_signature.size() ? k_signature[position] : 0);
        ++position;
        if (position == k_signature.size() && vcpu) vcpu->kick();
    }
    void pio_write(uint16_t port, Bytes from) noexcept override {
        if (port != vmm::layout::k_fw_cfg.value() || from.size() != 2) return;
        if (!first_selected) first_selected = load_le<uint16_t>(from);
        selected = load_le<uint16_t>(from);
        position = 0;
    }
    void mmio_read(GuestPhysAddr, MutBytes to) noexcept override { fill_all_ones(to); }
    void mmio_write(GuestPhysAddr, Bytes) noexcept override {}

    vmm::Vcpu* vcpu = nullptr;
    std::optional<uint16_t> first_selected, selected;
    size_t position = 0;
};

TEST(KvmFirmware, OvmfReachesFwCfg) {
    SKIP_WITHOUT_KVM();
    if (::access(k_firmware, R_OK) != 0) GTEST_SKIP() << k_firmware << " is absent: install Debian's ovmf";
    auto code = must(read_file(k_firmware, k_flash_size));
    Ram ram(k_ram), flash(k_flash_size);
    fill_all_ones(flash.bytes());  // no variables
    std::copy(code.begin(), code.end(), flash.data() + (k_flash_size - code.size()));

    auto partition = must(vmm::create_kvm_partition({}));
    must(partition->map({GuestPhysAddr(0), vmm::layout::k_legacy_video.value(), ram.data(), false}));
    must(partition->map({GuestPhysAddr(k_video_end), k_ram - k_video_end, ram.data() + k_video_end, false}));
    must(partition->map({GuestPhysAddr(vmm::layout::k_flash_end - k_flash_size), k_flash_size, flash.data(), true}));
    FwCfgSignature io;
    auto vcpu = must(partition->create_vcpu(0, io, nullptr));
    io.vcpu = vcpu.get();

    std::atomic<bool> done = false;
    std::thread watchdog([&] {
        for (int second = 0; second < 3300 && !done; ++second) std::this_thread::sleep_for(std::chrono::seconds(1));
        vcpu->kick();
    });
    Nanoseconds start = monotonic_now();
    auto exit = vcpu->run();
    done = true;
    watchdog.join();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(*exit, vmm::VcpuExit::Kicked);
    auto statistics = vcpu->statistics();
    std::printf("seconds: %.1f, completed instructions: %llu\n",
                static_cast<double>(monotonic_now() - start) / static_cast<double>(k_ns_per_s),
                static_cast<unsigned long long>(statistics.completed_instructions));
    for (auto const& [kind, count] : statistics.exits_by_kind)
        std::printf("  %s: %llu\n", kind.c_str(), static_cast<unsigned long long>(count));
    ASSERT_TRUE(io.first_selected) << "at RIP " << std::hex << must(vcpu->get_state()).rip;
    EXPECT_EQ(*io.first_selected, 0u);  // the signature comes first
    EXPECT_GE(io.position, 4u);
    EXPECT_TRUE(partition->capabilities().native_ring0 || statistics.completed_instructions > 0);
}

}  // namespace
}  // namespace coffer::tests
