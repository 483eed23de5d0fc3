#include "devices/pci/msix.hpp"

#include <algorithm>
#include <bit>

#include "devices/pci/pci_function.hpp"
#include "devices/pci/pci_spec.hpp"

namespace coffer::devices {

using pci::MsiXEntry;

MsiX::MsiX(PciFunction& function, unsigned vectors)
    : m_function(function), m_vectors(vectors), m_table(size_t{vectors} * sizeof(MsiXEntry)),
      m_pending(align_up(vectors, 64) / 8) {
    COFFER_ASSERT(vectors >= 1 && vectors <= pci::k_msix_max_vectors);
    // A page of its own for the pending bits lets a guest map the two apart (6.8.2, "4-KB aligned").
    m_pba_offset = static_cast<uint32_t>(align_up(m_table.size(), 0x1000));
    m_region_size = std::bit_ceil(uint64_t{m_pba_offset} + m_pending.size());
    reset();
}

void MsiX::reset() noexcept {
    std::fill(m_table.begin(), m_table.end(), std::byte{0});
    std::fill(m_pending.begin(), m_pending.end(), std::byte{0});
    for (unsigned vector = 0; vector < m_vectors; ++vector)
        store_le<uint32_t>(m_table, vector * sizeof(MsiXEntry) + offsetof(MsiXEntry, vector_control),
                           pci::k_msix_vector_masked);
}

bool MsiX::masked(unsigned vector) const noexcept {
    uint32_t control = load_le<uint32_t>(m_table, vector * sizeof(MsiXEntry) + offsetof(MsiXEntry, vector_control));
    return (control & pci::k_msix_vector_masked) != 0 || m_function.msix_function_masked();
}

bool MsiX::is_pending(unsigned vector) const noexcept {
    return (std::to_integer<unsigned>(m_pending[vector / 8]) >> (vector % 8) & 1U) != 0;
}

void MsiX::set_pending(unsigned vector, bool pending) noexcept {
    auto bit = static_cast<std::byte>(1U << (vector % 8));
    if (pending)
        m_pending[vector / 8] |= bit;
    else
        m_pending[vector / 8] &= ~bit;
}

void MsiX::send(unsigned vector) noexcept {
    size_t at = vector * sizeof(MsiXEntry);
    uint64_t address = load_le<uint32_t>(m_table, at + offsetof(MsiXEntry, address)) |
                       uint64_t{load_le<uint32_t>(m_table, at + offsetof(MsiXEntry, address_high))} << 32;
    m_function.send_message(address, load_le<uint32_t>(m_table, at + offsetof(MsiXEntry, data)));
}

void MsiX::trigger(unsigned vector) noexcept {
    if (vector >= m_vectors) return;
    if (masked(vector))
        set_pending(vector, true);
    else
        send(vector);
}

void MsiX::deliver_pending() noexcept {
    if (!m_function.msix_enabled()) return;
    for (unsigned vector = 0; vector < m_vectors; ++vector) {
        if (!is_pending(vector) || masked(vector)) continue;
        set_pending(vector, false);
        send(vector);
    }
}

bool MsiX::sizes_match(MsiX const& msix, Bytes table, Bytes pending) noexcept {
    return table.size() == msix.m_table.size() && pending.size() == msix.m_pending.size();
}

void MsiX::set_content(Bytes table, Bytes pending) noexcept {
    COFFER_ASSERT(sizes_match(*this, table, pending));
    std::copy(table.begin(), table.end(), m_table.begin());
    std::copy(pending.begin(), pending.end(), m_pending.begin());
}

IoStatus MsiX::mmio_read(uint64_t offset, MutBytes to) {
    // 6.8.2: naturally aligned DWORD or QWORD accesses only.
    if (to.size() != 4 && to.size() != 8) return IoStatus::BadSize;
    if (offset % to.size() != 0) return IoStatus::Unaligned;
    ByteVector const& content = offset >= m_pba_offset ? m_pending : m_table;
    uint64_t first = offset >= m_pba_offset ? offset - m_pba_offset : offset;
    if (first >= content.size()) return IoStatus::NoSuchRegister;
    std::memcpy(to.data(), content.data() + first, to.size());
    return IoStatus::Ok;
}

IoStatus MsiX::mmio_write(uint64_t offset, Bytes from) {
    if (from.size() != 4 && from.size() != 8) return IoStatus::BadSize;
    if (offset % from.size() != 0) return IoStatus::Unaligned;
    if (offset >= m_table.size()) return IoStatus::NoSuchRegister; // the pending bits are read-only
    std::memcpy(m_table.data() + offset, from.data(), from.size());
    auto vector = static_cast<unsigned>(offset / sizeof(MsiXEntry));
    if (m_function.msix_enabled() && is_pending(vector) && !masked(vector)) {
        set_pending(vector, false);
        send(vector);
    }
    return IoStatus::Ok;
}

} // namespace coffer::devices
