// The guest's RAM and ROM as host memory, and the devices' DMA path to it.
//
// Layout: vmm/layout.hpp. RAM is anonymous memory kept out of core dumps: it holds the guest's secrets.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/result.hpp"
#include "devices/core/guest_memory.hpp"
#include "vmm/accel/accelerator.hpp"

namespace coffer::vmm {

// Host memory of a page-aligned size, zero-filled, unmapped at the end.
class HostMapping {
public:
    HostMapping() = default;
    HostMapping(HostMapping&& other) noexcept;
    HostMapping& operator=(HostMapping&& other) noexcept;
    ~HostMapping();

    static Result<HostMapping> create(size_t size);
    MutBytes bytes() const noexcept { return {m_data, m_size}; }
    // Zero again, giving the pages back to the host.
    void discard() noexcept;

private:
    std::byte* m_data = nullptr;
    size_t m_size = 0;
};

// Thread-safe after construction: the set of regions does not change.
class GuestRam final : public devices::GuestMemory {
public:
    // `size` in bytes, a multiple of 1 MiB; the part past layout::k_low_ram_max goes above 4 GiB.
    static Result<GuestRam> create(uint64_t size);

    uint64_t low_size() const noexcept { return m_low.bytes().size(); }
    uint64_t high_size() const noexcept { return m_high.bytes().size(); }

    // What to map into the partition. The legacy video hole below 1 MiB is left out.
    std::vector<MemoryRegion> regions() const;
    // All of it, below and above 4 GiB (the latter may be empty), the part behind the video hole included: what is saved.
    std::vector<MutBytes> parts() const { return {m_low.bytes(), m_high.bytes()}; }
    // Called after every device write, on the writing thread; set before the guest runs.
    void on_write(std::function<void(GuestPhysAddr, size_t)> callback) { m_on_write = std::move(callback); }
    // All zeroes, as after a memory overwrite request. With the vCPUs stopped.
    void wipe() noexcept;

    bool read(GuestPhysAddr from, MutBytes to) const noexcept override;
    bool write(GuestPhysAddr to, Bytes from) noexcept override;
    MutBytes span(GuestPhysAddr first, size_t size) noexcept override;
    void written(GuestPhysAddr first, size_t size) noexcept override;

private:
    GuestRam(HostMapping low, HostMapping high) : m_low(std::move(low)), m_high(std::move(high)) {}
    MutBytes find(GuestPhysAddr first, size_t size) const noexcept;

    HostMapping m_low;
    HostMapping m_high;
    std::function<void(GuestPhysAddr, size_t)> m_on_write;
};

} // namespace coffer::vmm
