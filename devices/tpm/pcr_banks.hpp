// PCR banks, and which of them a TPM keeps active. Algorithm identifiers are those of the TCG Algorithm Registry 1.34,
// 6.10.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace coffer::devices {

struct PcrBank {
    uint16_t algorithm; // TPM_ALG_ID
    uint8_t bit;        // in a PcrBankMask
    uint8_t digest_size;
    std::string_view name;
};

// A set of banks, as a VM's configuration keeps it: bits are never given another meaning.
using PcrBankMask = uint8_t;

constexpr std::array k_pcr_banks{
    PcrBank{0x0004, 0x1, 20, "sha1"},
    PcrBank{0x000B, 0x2, 32, "sha256"},
    PcrBank{0x000C, 0x4, 48, "sha384"},
    PcrBank{0x000D, 0x8, 64, "sha512"},
};
constexpr PcrBankMask k_all_pcr_banks = 0xF;
constexpr unsigned k_pcr_count = 24;
constexpr size_t k_pcr_select_size = 3; // bytes of a TPMS_PCR_SELECTION's bit map

constexpr PcrBank const* find_pcr_bank(uint16_t algorithm) noexcept {
    for (auto const& bank : k_pcr_banks)
        if (bank.algorithm == algorithm) return &bank;
    return nullptr;
}

// "sha256,sha384" and back. InvalidArgument for an unknown, doubled or missing name.
Result<PcrBankMask> parse_pcr_banks(std::string_view list);
std::string format_pcr_banks(PcrBankMask banks);

} // namespace coffer::devices
