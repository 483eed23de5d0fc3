#include "vmm/machine/memory_use.hpp"

#include <fstream>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace coffer::vmm {

namespace {

std::optional<uint64_t> resident_in(MutBytes range, uint64_t page) {
    std::vector<unsigned char> pages((range.size() + page - 1) / page);
    if (::mincore(range.data(), range.size(), pages.data()) != 0) return std::nullopt;
    uint64_t count = 0;
    for (unsigned char state : pages) count += state & 1U;
    return count * page;
}

} // namespace

std::optional<uint64_t> own_memory(GuestRam const& ram) {
    auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
    // "size resident shared ...", in pages (proc(5), /proc/self/statm).
    std::ifstream statm("/proc/self/statm");
    uint64_t size = 0;
    uint64_t resident = 0;
    if (!(statm >> size >> resident)) return std::nullopt;
    uint64_t guest = 0;
    for (auto const& region : ram.regions()) {
        auto in_region = resident_in({region.host, region.size}, page);
        if (!in_region) return std::nullopt;
        guest += *in_region;
    }
    return resident * page - std::min(resident * page, guest);
}

} // namespace coffer::vmm
