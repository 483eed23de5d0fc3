// Distinct instruction encodings in real programs.
#pragma once

#include <filesystem>
#include <vector>

#include "vmm/accel/soft/translate/decode.hpp"

namespace coffer::tests {

// Those in the executable segments of an ELF file, by linear sweep, one for each form (same opcode, prefixes and
// registers; displacements and immediates aside), at most `limit`.
std::vector<vmm::soft::Decoded> distinct_encodings(std::filesystem::path const& elf, size_t limit);

// Those of them that are of class Plain.
std::vector<vmm::soft::Decoded> plain_encodings(std::filesystem::path const& elf, size_t limit);

} // namespace coffer::tests
