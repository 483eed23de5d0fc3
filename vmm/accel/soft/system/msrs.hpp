// Model-specific registers of the software CPU. What is not listed in msrs.cpp is #GP, logged at a limited rate.
#pragma once

#include "vmm/accel/soft/system/architecture.hpp"

namespace coffer::vmm::soft {

// False: #GP(0).
bool read_msr(Cpu& cpu, uint32_t index, uint64_t& value) noexcept;
bool write_msr(Cpu& cpu, uint32_t index, uint64_t value) noexcept;

// Saved state: plain values, without side effects on others. load_msr() also accepts a constant's own value.
std::vector<MsrValue> save_msrs(Cpu const& cpu);
bool load_msr(Cpu& cpu, uint32_t index, uint64_t value) noexcept;

} // namespace coffer::vmm::soft
