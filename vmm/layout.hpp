// Every guest-physical address and I/O port of the machine, in one place. A Q35-like PC as OVMF and the ACPI tables
// expect it (edk2 OvmfPkg/Include/IndustryStandard/Q35MchIch9.h; Intel ICH9 datasheet 316972; PC Client PTP 1.05).
#pragma once

#include <cstdint>

#include "base/strong.hpp"

namespace coffer::vmm::layout {

// RAM: low part from 0, the rest from 4 GiB.
constexpr uint64_t k_low_ram_max = 0x8000'0000;
constexpr GuestPhysAddr k_high_ram{0x1'0000'0000};
// No memory slot here: legacy video.
constexpr GuestPhysAddr k_legacy_video{0xA'0000};
constexpr uint64_t k_legacy_video_size = 0x2'0000;

// 32-bit PCI window. The ECAM sits where the firmware programs PCIEXBAR; the window's users look it up at run time.
constexpr GuestPhysAddr k_pci_window_end{0xFC00'0000};

constexpr GuestPhysAddr k_ioapic{0xFEC0'0000};
constexpr uint64_t k_ioapic_size = 0x1000;
constexpr GuestPhysAddr k_hpet{0xFED0'0000};
constexpr uint64_t k_hpet_size = 0x400;
constexpr GuestPhysAddr k_rcba{0xFED1'C000};
constexpr uint64_t k_rcba_size = 0x4000;
constexpr GuestPhysAddr k_tpm{0xFED4'0000};
constexpr uint64_t k_tpm_crb_size = 0x2000; // the registers, and the page of the buffer
constexpr uint64_t k_tpm_tis_size = 0x5000;
constexpr GuestPhysAddr k_tpm_ppi{0xFED4'5000};
constexpr uint64_t k_tpm_ppi_size = 0x400;
constexpr GuestPhysAddr k_local_apic{0xFEE0'0000};
constexpr uint64_t k_local_apic_page = 0x1000;
constexpr uint64_t k_local_apic_size = 0x10'0000;  // with the range of interrupt messages
// KVM's identity-map page and TSS (3 pages): below the flash, reserved in e820.
constexpr GuestPhysAddr k_kvm_identity_map{0xFEFF'C000};
constexpr GuestPhysAddr k_kvm_tss{0xFEFF'D000};
constexpr uint64_t k_kvm_reserved_size = 0x4000;

// Flash ends at 4 GiB: variables below code.
constexpr uint64_t k_flash_end = 0x1'0000'0000;
constexpr uint64_t k_flash_block = 0x1000;

// I/O ports.
constexpr IoPort k_pic_master{0x20};
constexpr IoPort k_pit{0x40};
constexpr IoPort k_system_control_b{0x61};
constexpr IoPort k_keyboard_command{0x64};
constexpr IoPort k_rtc{0x70};
constexpr IoPort k_post_code{0x80};
constexpr IoPort k_system_control_a{0x92};
constexpr IoPort k_pic_slave{0xA0};
constexpr IoPort k_com1{0x3F8};
constexpr IoPort k_apm{0xB2};
constexpr IoPort k_io_delay{0xED};
constexpr IoPort k_elcr{0x4D0};
constexpr IoPort k_fw_cfg{0x510};
constexpr IoPort k_fw_cfg_dma{0x514};
constexpr IoPort k_cpu_hotplug{0xCD8};
constexpr IoPort k_pci_config_address{0xCF8};
constexpr IoPort k_reset_control{0xCF9};
constexpr IoPort k_pci_config_data{0xCFC};
// PMBASE as OVMF programs it; the LPC bridge moves the block when the guest does.
constexpr IoPort k_pm_base{0x600};
constexpr uint64_t k_pm_size = 128;

// GSIs.
constexpr unsigned k_gsi_pit = 0;
constexpr unsigned k_gsi_com1 = 4;
// Free on a PC, and below 16: Linux (drivers/char/tpm/tpm_tis_core.c, tpm_tis_probe_irq_single) writes the interrupt's
// number into TPM_INT_VECTOR, which has four bits.
constexpr unsigned k_gsi_tpm_tis = 5;
constexpr unsigned k_gsi_rtc = 8;
constexpr unsigned k_gsi_sci = 9;
constexpr unsigned k_gsi_pci_first = 16;  // PIRQ A-H on 16-23

}  // namespace coffer::vmm::layout
