#include "linked_tables.hpp"

#include <cstring>

#include "firmware/ovmf_layout.hpp"

namespace coffer::tests {

namespace {

struct File {
    ByteVector bytes;
    uint64_t address = 0;
};

std::string text(Bytes bytes) {
    auto const* chars = reinterpret_cast<char const*>(bytes.data()); // SAFETY: any bytes may be read as char
    return std::string(chars, strnlen(chars, bytes.size()));
}

class Memory {
public:
    explicit Memory(firmware::FirmwareItems const& items) {
        for (auto const& item : items) m_files[item.name].bytes = item.bytes;
    }
    File& file(std::string const& name) {
        auto found = m_files.find(name);
        COFFER_ASSERT(found != m_files.end());
        return found->second;
    }
    void place(std::string const& name, uint32_t alignment, uint8_t zone) {
        File& placed = file(name);
        COFFER_ASSERT(placed.address == 0);
        uint64_t& next = zone == 2 ? m_next_low : m_next_high;
        placed.address = align_up(next, alignment);
        next = placed.address + placed.bytes.size();
        m_placed[name] = placed.address;
    }
    MutBytes at(uint64_t address, size_t size) {
        for (auto& [name, placed] : m_files) {
            if (placed.address == 0 || address < placed.address) continue;
            uint64_t offset = address - placed.address;
            if (offset <= placed.bytes.size() && placed.bytes.size() - offset >= size)
                return MutBytes(placed.bytes).subspan(offset, size);
        }
        abort_with("a table pointer leads nowhere");
    }
    std::map<std::string, uint64_t> const& placed() const { return m_placed; }

private:
    std::map<std::string, File> m_files;
    std::map<std::string, uint64_t> m_placed;
    // Odd on purpose: only the alignment that is asked for may be relied on.
    uint64_t m_next_low = 0xF'0001;
    uint64_t m_next_high = 0x3FAB'C001;
};

LinkedTable table_at(Memory& memory, uint64_t address) {
    uint32_t length = load_le<uint32_t>(memory.at(address, 8), 4);
    Bytes bytes = memory.at(address, length);
    LinkedTable table{text(bytes.first(4)), {}, ByteVector(bytes.begin(), bytes.end())};
    if (table.signature != "FACS") table.oem_table_id = text(bytes.subspan(16, 8));
    return table;
}

} // namespace

uint8_t byte_sum(Bytes bytes) {
    uint8_t sum = 0;
    for (std::byte byte : bytes) sum = static_cast<uint8_t>(sum + static_cast<uint8_t>(byte));
    return sum;
}

LinkedTable LinkedTables::find(std::string_view signature, std::string_view oem_table_id) const {
    for (LinkedTable const& table : tables)
        if (table.signature == signature && (oem_table_id.empty() || table.oem_table_id == oem_table_id)) return table;
    return {};
}

LinkedTables link_tables(firmware::FirmwareItems const& items) {
    Memory memory(items);
    ByteVector commands = memory.file("etc/table-loader").bytes;
    COFFER_ASSERT(commands.size() % 128 == 0);
    for (size_t start = 0; start < commands.size(); start += 128) {
        Bytes entry = Bytes(commands).subspan(start, 128);
        std::string name = text(entry.subspan(4, 56));
        switch (load_le<uint32_t>(entry)) {
        case 1: memory.place(name, load_le<uint32_t>(entry, 60), load_le<uint8_t>(entry, 64)); break;
        case 2: {
            uint64_t target = memory.file(text(entry.subspan(60, 56))).address;
            uint8_t size = load_le<uint8_t>(entry, 120);
            COFFER_ASSERT(target != 0 && memory.file(name).address != 0);
            MutBytes pointer = memory.at(memory.file(name).address + load_le<uint32_t>(entry, 116), size);
            uint64_t value = load_le_sized(pointer) + target;
            COFFER_ASSERT(size == 8 || value >> (8 * size) == 0);
            store_le_sized(pointer, value);
            break;
        }
        case 3: {
            uint64_t base = memory.file(name).address;
            MutBytes range = memory.at(base + load_le<uint32_t>(entry, 64), load_le<uint32_t>(entry, 68));
            MutBytes result = memory.at(base + load_le<uint32_t>(entry, 60), 1);
            result[0] = static_cast<std::byte>(-byte_sum(range));
            break;
        }
        default: abort_with("unknown loader command");
        }
    }

    LinkedTables linked;
    linked.placed = memory.placed();
    linked.rsdp = memory.file("etc/acpi/rsdp").bytes;
    LinkedTable xsdt = table_at(memory, load_le<uint64_t>(linked.rsdp, 24));
    linked.tables.push_back(xsdt);
    for (size_t at = 36; at < xsdt.bytes.size(); at += 8)
        linked.tables.push_back(table_at(memory, load_le<uint64_t>(xsdt.bytes, at)));
    LinkedTable fadt = linked.find("FACP");
    linked.tables.push_back(table_at(memory, load_le<uint64_t>(fadt.bytes, 140)));
    linked.tables.push_back(table_at(memory, load_le<uint32_t>(fadt.bytes, 36)));
    return linked;
}

firmware::MachineDescription test_machine() {
    firmware::MachineDescription machine;
    machine.name = "test";
    for (size_t i = 0; i < machine.uuid.size(); ++i) machine.uuid[i] = static_cast<std::byte>(i);
    machine.low_ram_size = 0x4000'0000;
    machine.pci_window32 = firmware::k_ovmf_pci_window32;
    machine.pci_window64 = firmware::ovmf_pci_window64({firmware::CpuVendor::Amd, 40, true}, machine.low_ram_size);
    machine.tpm.kind = firmware::TpmKind::Crb;
    return machine;
}

} // namespace coffer::tests
