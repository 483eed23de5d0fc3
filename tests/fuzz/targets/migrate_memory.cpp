// Batches of another host's memory as hostile bytes. The input is a row of batches, each behind a little-endian u32
// size; they go to one receiver of 2 MiB of RAM with guards around it.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vmm/migrate/memory_receiver.hpp"

namespace {

using namespace coffer;
using namespace coffer::vmm;

constexpr size_t k_guard = 4096;
constexpr size_t k_part = size_t{1} << 20;

bool holds(MutBytes bytes, std::byte value) {
    return std::all_of(bytes.begin(), bytes.end(), [value](std::byte byte) { return byte == value; });
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    static ByteVector memory(2 * k_part + 3 * k_guard);
    std::fill(memory.begin(), memory.end(), std::byte{0xA5});
    MutBytes const all(memory);
    MutBytes const first = all.subspan(k_guard, k_part);
    MutBytes const second = all.subspan(2 * k_guard + k_part, k_part);
    std::fill(first.begin(), first.end(), std::byte{0});
    std::fill(second.begin(), second.end(), std::byte{0});
    auto receiver = MemoryReceiver::create({first, second});
    if (!receiver) return 0;

    Bytes input = std::as_bytes(std::span(data, size));
    while (input.size() >= 4) {
        size_t const length = std::min<size_t>(load_le<uint32_t>(input), input.size() - 4);
        auto const before = (*receiver)->digest();
        auto taken = (*receiver)->take(input.subspan(4, length));
        if (!taken) {
            COFFER_ASSERT((*receiver)->digest() == before);
            break;
        }
        input = input.subspan(4 + length);
    }
    COFFER_ASSERT((*receiver)->pages_seen() <= (*receiver)->ram_pages());
    (void)(*receiver)->finish({}).has_value();
    COFFER_ASSERT(holds(all.first(k_guard), std::byte{0xA5}));
    COFFER_ASSERT(holds(all.subspan(k_guard + k_part, k_guard), std::byte{0xA5}));
    COFFER_ASSERT(holds(all.last(k_guard), std::byte{0xA5}));
    return 0;
}
