#include "vmm/memory/guest_ram.hpp"

#include <algorithm>
#include <cerrno>
#include <sys/mman.h>
#include <utility>

#include "vmm/layout.hpp"

namespace coffer::vmm {

namespace {
constexpr size_t k_huge_page = 2U << 20;
}

HostMapping::HostMapping(HostMapping&& other) noexcept
    : m_data(std::exchange(other.m_data, nullptr)), m_size(std::exchange(other.m_size, 0)) {}

HostMapping& HostMapping::operator=(HostMapping&& other) noexcept {
    if (this != &other) {
        if (m_data) ::munmap(m_data, m_size);
        m_data = std::exchange(other.m_data, nullptr);
        m_size = std::exchange(other.m_size, 0);
    }
    return *this;
}

HostMapping::~HostMapping() {
    if (m_data) ::munmap(m_data, m_size);
}

Result<HostMapping> HostMapping::create(size_t size) {
    HostMapping mapping;
    if (size == 0) return mapping;
    // Aligned to 2 MiB, so that the host can back the guest with huge pages (KVM API 4.35: gpa and hva alike below
    // bit 21).
    size_t reserved = size + k_huge_page;
    void* base = ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return errno_error(errno, fmt::format("cannot map {} MiB for the guest", size >> 20));
    // SAFETY: address arithmetic within the mapping just made.
    auto* start = static_cast<std::byte*>(base);
    auto aligned = align_up(reinterpret_cast<uintptr_t>(start), k_huge_page);
    size_t head = aligned - reinterpret_cast<uintptr_t>(start);
    if (head > 0) ::munmap(start, head);
    if (reserved - head > size) ::munmap(start + head + size, reserved - head - size);
    mapping.m_data = start + head;
    mapping.m_size = size;
    // Advice only: a kernel without huge pages is slower, not wrong.
    ::madvise(mapping.m_data, size, MADV_HUGEPAGE);
    if (::madvise(mapping.m_data, size, MADV_DONTDUMP) != 0)
        return errno_error(errno, "cannot keep guest memory out of core dumps");
    return mapping;
}

void HostMapping::discard() noexcept {
    if (!m_data) return;
    if (::madvise(m_data, m_size, MADV_DONTNEED) == 0) return;
    // Locked memory (`run --lock-memory`) has advice of its own, from Linux 5.18.
    if (::madvise(m_data, m_size, MADV_DONTNEED_LOCKED) != 0) std::fill_n(m_data, m_size, std::byte{0});
}

Result<GuestRam> GuestRam::create(uint64_t size) {
    if (size == 0 || size % (1U << 20) != 0)
        return make_error(ErrorCode::InvalidArgument, "guest memory of {} bytes is not a whole number of MiB", size);
    uint64_t low = std::min(size, layout::k_low_ram_max);
    auto low_mapping = TRY(HostMapping::create(low));
    auto high_mapping = TRY(HostMapping::create(size - low));
    return GuestRam(std::move(low_mapping), std::move(high_mapping));
}

std::vector<MemoryRegion> GuestRam::regions() const {
    std::vector<MemoryRegion> regions;
    auto low = m_low.bytes();
    uint64_t hole = layout::k_legacy_video.value();
    uint64_t behind = hole + layout::k_legacy_video_size;
    regions.push_back({GuestPhysAddr{0}, std::min<size_t>(low.size(), hole), low.data()});
    if (low.size() > behind) regions.push_back({GuestPhysAddr{behind}, low.size() - behind, low.data() + behind});
    auto high = m_high.bytes();
    if (!high.empty()) regions.push_back({layout::k_high_ram, high.size(), high.data()});
    return regions;
}

void GuestRam::wipe() noexcept {
    m_low.discard();
    m_high.discard();
    for (auto const& region : regions()) written(region.gpa, region.size);
}

MutBytes GuestRam::find(GuestPhysAddr first, size_t size) const noexcept {
    auto within = [size](MutBytes ram, uint64_t offset) {
        return offset <= ram.size() && size <= ram.size() - offset ? ram.subspan(offset, size) : MutBytes{};
    };
    uint64_t address = first.value();
    if (address >= layout::k_high_ram.value()) return within(m_high.bytes(), address - layout::k_high_ram.value());
    uint64_t hole = layout::k_legacy_video.value();
    uint64_t behind = hole + layout::k_legacy_video_size;
    if (address < behind && (address >= hole || size > hole - address)) return {};
    return within(m_low.bytes(), address);
}

bool GuestRam::read(GuestPhysAddr from, MutBytes to) const noexcept {
    if (to.empty()) return true;
    auto source = find(from, to.size());
    if (source.empty()) return false;
    std::memcpy(to.data(), source.data(), to.size());
    return true;
}

bool GuestRam::write(GuestPhysAddr to, Bytes from) noexcept {
    if (from.empty()) return true;
    auto target = find(to, from.size());
    if (target.empty()) return false;
    std::memcpy(target.data(), from.data(), from.size());
    written(to, from.size());
    return true;
}

MutBytes GuestRam::span(GuestPhysAddr first, size_t size) noexcept {
    return find(first, size);
}

void GuestRam::written(GuestPhysAddr first, size_t size) noexcept {
    if (m_on_write) m_on_write(first, size);
}

} // namespace coffer::vmm
