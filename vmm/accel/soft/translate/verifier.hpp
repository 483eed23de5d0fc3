// The last line of defence: emitted code is decoded again before it can run.
#pragma once

#include <span>

#include "vmm/accel/soft/translate/block.hpp"

namespace coffer::vmm::soft {

// Ends the process with a clear line where `code` holds anything but what a block may hold.
void verify_block(std::span<uint8_t const> code, Block const& block);

} // namespace coffer::vmm::soft
