// A guest that does anything to a PCI function: registers of its BAR, its configuration space, and the memory that it
// reads by DMA. The input is a sequence of operations, each a byte and its arguments:
//
//     0 o16 s8 v64    write 1 << (s & 3) bytes of v to the BAR at o
//     1 o16 s8        read them
//     2 a24 n8 b*n    write n bytes to memory
//     3               let the device finish what it does
//     4 o16 s8 v32    write 1, 2 or 4 bytes to configuration space
//     5               save, restore: accepted, and equal
//     6               reset
#pragma once

#include "tests/support/fakes.hpp"

#include "devices/pci/pci_function.hpp"

namespace coffer::tests {

class PciFuzzer {
public:
    static constexpr size_t k_memory = 256 * 1024;
    static constexpr size_t k_max_operations = 4096;

    PciFuzzer(devices::PciFunction& function, devices::MmioDevice& bar, uint64_t bar_size, FakeMemory& memory,
              std::function<void()> settle)
        : m_function(function), m_bar(bar), m_bar_size(bar_size), m_memory(memory), m_settle(std::move(settle)) {
        uint16_t enable = devices::pci::COMMAND_MEMORY | devices::pci::COMMAND_BUS_MASTER;
        m_function.config_write(devices::pci::COMMAND, object_bytes(enable));
    }

    void run(Bytes input) {
        m_input = input;
        for (size_t i = 0; i < k_max_operations && !m_input.empty(); ++i) operation(next<uint8_t>() % 7);
        m_settle();
        save_and_restore();
    }

private:
    template <class T>
    T next() {
        ByteVector bytes(sizeof(T));
        size_t size = std::min(sizeof(T), m_input.size());
        std::copy_n(m_input.begin(), size, bytes.begin());
        m_input = m_input.subspan(size);
        return load_le<T>(bytes);
    }
    void operation(unsigned kind) {
        switch (kind) {
        case 0:
        case 1: {
            uint64_t offset = next<uint16_t>() % m_bar_size;
            size_t size = size_t{1} << (next<uint8_t>() & 3);
            if (size > m_bar_size - offset) return;
            ByteVector bytes(size);
            if (kind == 0) {
                store_le_sized(bytes, next<uint64_t>() & (size == 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * size)) - 1));
                (void)m_bar.mmio_write(offset, bytes);
            } else {
                (void)m_bar.mmio_read(offset, bytes);
            }
            return;
        }
        case 2: {
            uint64_t address = next<uint16_t>() | uint64_t{next<uint8_t>()} << 16;
            size_t size = std::min<size_t>(next<uint8_t>(), m_input.size());
            (void)m_memory.write(GuestPhysAddr{address}, m_input.first(size));
            m_input = m_input.subspan(size);
            return;
        }
        case 3: m_settle(); return;
        case 4: {
            auto offset = static_cast<uint16_t>(next<uint16_t>() % 256);
            size_t size = size_t{1} << (next<uint8_t>() % 3);
            ByteVector bytes(4);
            store_le<uint32_t>(bytes, 0, next<uint32_t>());
            if (offset % 4 + size > 4) return;
            m_function.config_write(offset, Bytes(bytes).first(size));
            m_function.config_read(offset, MutBytes(bytes).first(size));
            return;
        }
        case 5:
            m_settle();
            save_and_restore();
            return;
        default: m_function.reset(devices::ResetKind::Warm); return;
        }
    }
    void save_and_restore() {
        ByteVector state = m_function.save().value();
        m_function.restore(state).value();
        COFFER_ASSERT(m_function.save().value() == state);
    }

    devices::PciFunction& m_function;
    devices::MmioDevice& m_bar;
    uint64_t m_bar_size;
    FakeMemory& m_memory;
    std::function<void()> m_settle;
    Bytes m_input;
};

} // namespace coffer::tests
