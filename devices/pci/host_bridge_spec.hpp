// Intel 3 Series Express Chipset (Q35) datasheet 316966-002, 5.1: DRAM controller, bus 0 device 0 function 0.
#pragma once

#include <cstdint>

namespace coffer::devices::q35 {

constexpr uint16_t k_vendor = 0x8086;
constexpr uint16_t k_device = 0x29C0;
constexpr uint32_t k_class = 0x06'0000; // host bridge

//                          // access       bytes
enum HostRegister : uint16_t {
    EXT_TSEG_MB = 0x50,    // RO 0         2      a paravirtual register elsewhere: 0 says it is not there
    PCIEXBAR = 0x60,       // RW           8
    PAM0 = 0x90,           // RW           7 x 1
    SMBASE_CONTROL = 0x9C, // RO 0         1      a paravirtual register elsewhere: 0 says it is not there
    SMRAM = 0x9D,          // RW, locks    1
    ESMRAMC = 0x9E,        // RW, locks    1
    TOM = 0xA0,            // RW           2      64 MiB units
    TOUUD = 0xA2,          // RW           2      MiB
    TSEGMB = 0xAC,         // RO 0         4
    TOLUD = 0xB0,          // RW           2      MiB in bits 15:4
};

constexpr unsigned k_pam_count = 7;
constexpr uint8_t k_pam0_mask = 0x30; // PAM0 has the high half only
constexpr uint8_t k_pam_mask = 0x33;

constexpr uint32_t k_pciexbar_enable = 1U << 0;
constexpr uint32_t k_pciexbar_length = 3U << 1; // 0: 256 buses, 1: 128, 2: 64, 3: reserved
constexpr uint32_t k_pciexbar_low_mask = 0xFC00'0007;
constexpr uint32_t k_pciexbar_high_mask = 0x0000'000F; // bits 35:32
constexpr uint64_t k_pciexbar_reset = 0xE000'0000;

constexpr uint8_t k_smram_reset = 0x02;    // C_BASE_SEG is hardwired to 010b
constexpr uint8_t k_smram_writable = 0x78; // D_OPEN, D_CLS, D_LCK, G_SMRAME
constexpr uint8_t k_smram_lock = 1U << 4;
constexpr uint8_t k_esmramc_reset = 0x38;    // SM_CACHE, SM_L1, SM_L2 read 1
constexpr uint8_t k_esmramc_writable = 0x87; // H_SMRAME, TSEG_SZ, T_EN

} // namespace coffer::devices::q35
