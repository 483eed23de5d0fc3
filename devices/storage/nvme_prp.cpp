#include "devices/storage/nvme_prp.hpp"

#include <algorithm>
#include <array>

namespace coffer::devices::nvme {

namespace {

constexpr uint64_t k_entries_a_page = k_page_size / sizeof(uint64_t);

void add(std::vector<Extent>& to, uint64_t address, size_t size) {
    if (!to.empty() && to.back().first.value() + to.back().size == address)
        to.back().size += size;
    else
        to.push_back({GuestPhysAddr{address}, size});
}

Status resolve_list(GuestMemory const& memory, uint64_t list, size_t left, std::vector<Extent>& to) {
    // Only the pointer in the command may have an offset, and chain pointers may not (4.3, figure 109), so that every
    // page but the first and the second moves on by 511 entries.
    if (list % sizeof(uint64_t) != 0) return Status::PrpOffsetInvalid;
    std::array<uint64_t, k_entries_a_page> entries;
    while (left > 0) {
        uint64_t pages = align_up(left, k_page_size) / k_page_size;
        uint64_t room = (k_page_size - list % k_page_size) / sizeof(uint64_t);
        uint64_t count = std::min(pages, room);
        MutBytes raw = std::as_writable_bytes(std::span(entries)).first(count * sizeof(uint64_t));
        if (!memory.read(GuestPhysAddr{list}, raw)) return Status::DataTransferError;
        bool chained = pages > room;
        for (uint64_t i = 0; i < count - (chained ? 1 : 0); ++i) {
            if (entries[i] % k_page_size != 0) return Status::PrpOffsetInvalid;
            size_t size = std::min<size_t>(left, k_page_size);
            add(to, entries[i], size);
            left -= size;
        }
        if (!chained) break;
        list = entries[count - 1];
        if (list % k_page_size != 0) return Status::PrpOffsetInvalid;
    }
    return Status::Success;
}

} // namespace

Status resolve_prps(GuestMemory const& memory, uint64_t prp1, uint64_t prp2, size_t length, std::vector<Extent>& to) {
    to.clear();
    if (length == 0 || length > k_max_transfer) return Status::InvalidField;
    if (prp1 % 4 != 0) return Status::PrpOffsetInvalid;
    size_t first = std::min<size_t>(length, k_page_size - prp1 % k_page_size);
    add(to, prp1, first);
    size_t left = length - first;
    if (left == 0) return Status::Success;
    if (left > k_page_size) return resolve_list(memory, prp2, left, to);
    if (prp2 % k_page_size != 0) return Status::PrpOffsetInvalid;
    add(to, prp2, left);
    return Status::Success;
}

bool copy_to_guest(GuestMemory& memory, std::vector<Extent> const& extents, Bytes from) {
    for (auto const& extent : extents) {
        size_t size = std::min(extent.size, from.size());
        if (!memory.write(extent.first, from.first(size))) return false;
        from = from.subspan(size);
    }
    return true;
}

bool copy_from_guest(GuestMemory const& memory, std::vector<Extent> const& extents, MutBytes to) {
    for (auto const& extent : extents) {
        size_t size = std::min(extent.size, to.size());
        if (!memory.read(extent.first, to.first(size))) return false;
        to = to.subspan(size);
    }
    return true;
}

} // namespace coffer::devices::nvme
