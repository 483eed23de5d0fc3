// The MSI-X table and pending bits of a function, as the content of a BAR (PCI Local Bus Specification 3.0, 6.8.2).
// The capability's registers live in the function's configuration space. Under the device lock.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "devices/core/device.hpp"

namespace coffer::devices {

class PciFunction;

class MsiX final : public MmioDevice {
public:
    // 1 to 2048 vectors.
    MsiX(PciFunction& function, unsigned vectors);

    unsigned vectors() const noexcept { return m_vectors; }
    // Bytes of the BAR, a power of two: the table from 0, the pending bits from pba_offset().
    uint64_t region_size() const noexcept { return m_region_size; }
    uint32_t pba_offset() const noexcept { return m_pba_offset; }

    // Sends the vector's message, or notes it as pending while it is masked. No effect past vectors().
    void trigger(unsigned vector) noexcept;
    // After the function mask or a restore: sends what is pending and no longer masked.
    void deliver_pending() noexcept;
    void reset() noexcept;

    ByteVector const& table() const noexcept { return m_table; }
    ByteVector const& pending() const noexcept { return m_pending; }
    // Refuses other sizes than this table's, changing nothing.
    static bool sizes_match(MsiX const& msix, Bytes table, Bytes pending) noexcept;
    void set_content(Bytes table, Bytes pending) noexcept;

    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;

private:
    bool masked(unsigned vector) const noexcept;
    void send(unsigned vector) noexcept;
    bool is_pending(unsigned vector) const noexcept;
    void set_pending(unsigned vector, bool pending) noexcept;

    PciFunction& m_function;
    unsigned m_vectors;
    uint32_t m_pba_offset;
    uint64_t m_region_size;
    ByteVector m_table;
    ByteVector m_pending;
};

} // namespace coffer::devices
