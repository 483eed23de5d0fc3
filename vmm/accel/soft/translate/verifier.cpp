#include "vmm/accel/soft/translate/verifier.hpp"

namespace coffer::vmm::soft {

void verify_block(std::span<uint8_t const>, Block const&) {}

} // namespace coffer::vmm::soft
