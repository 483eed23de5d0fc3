#include "firmware/acpi/acpi.hpp"

#include "firmware/acpi/table_loader.hpp"
#include "firmware/acpi/tables.hpp"
#include "firmware/item_names.hpp"

namespace coffer::firmware::acpi {

namespace {

constexpr uint32_t k_facs_alignment = 64; // section 5.2.10
constexpr uint32_t k_table_alignment = 8;
constexpr uint32_t k_rsdp_alignment = 16; // section 5.2.5.1
constexpr uint32_t k_log_alignment = 0x1000;

// Puts tables one after the other into etc/acpi/tables, and lists what the loader has to do about each.
class TableSet {
public:
    explicit TableSet(TableLoader& loader) : m_loader(loader) {}

    // The table's offset.
    uint32_t add_raw(Bytes table) {
        m_bytes.resize(align_up(m_bytes.size(), k_table_alignment));
        auto offset = static_cast<uint32_t>(m_bytes.size());
        append(m_bytes, table);
        return offset;
    }

    // Sets the pointer of `size` bytes at `field` of the table at `table` to the table at `target`.
    void point(uint32_t table, size_t field, uint8_t size, uint32_t target) {
        auto at = static_cast<uint32_t>(table + field);
        if (size == 8)
            store_le<uint64_t>(m_bytes, at, target);
        else
            store_le<uint32_t>(m_bytes, at, target);
        m_loader.add_pointer(k_item_acpi_tables, at, size, k_item_acpi_tables);
    }

    // Comes after everything that changes the table. Compiled tables carry a checksum that no longer holds.
    void checksum(uint32_t table) {
        auto at = static_cast<uint32_t>(table + offsetof(TableHeader, checksum));
        m_bytes[at] = std::byte{0};
        m_loader.add_checksum(k_item_acpi_tables, at, table,
                              load_le<uint32_t>(m_bytes, table + offsetof(TableHeader, length)));
    }

    // A table with nothing to point to, listed in the XSDT.
    void add_listed(Bytes table) {
        uint32_t offset = add_raw(table);
        checksum(offset);
        list(offset);
    }
    void list(uint32_t table) { m_listed.push_back(table); }

    uint32_t add_xsdt() {
        struct [[gnu::packed]] Xsdt {
            TableHeader header;
        };
        ByteVector xsdt = table_bytes(Xsdt{table_header({'X', 'S', 'D', 'T'}, 1)});
        xsdt.resize(xsdt.size() + 8 * m_listed.size());
        store_le<uint32_t>(xsdt, offsetof(TableHeader, length), static_cast<uint32_t>(xsdt.size()));
        uint32_t offset = add_raw(xsdt);
        for (size_t i = 0; i < m_listed.size(); ++i) point(offset, sizeof(TableHeader) + 8 * i, 8, m_listed[i]);
        checksum(offset);
        return offset;
    }

    ByteVector take() { return std::move(m_bytes); }

private:
    TableLoader& m_loader;
    ByteVector m_bytes;
    std::vector<uint32_t> m_listed;
};

ByteVector build_rsdp(TableLoader& loader, uint32_t xsdt) {
    Rsdp rsdp{};
    rsdp.signature = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '};
    rsdp.oem_id = k_oem_id;
    rsdp.revision = 2;
    rsdp.length = sizeof rsdp;
    rsdp.xsdt_address = xsdt;
    loader.add_pointer(k_item_acpi_rsdp, offsetof(Rsdp, xsdt_address), 8, k_item_acpi_tables);
    loader.add_checksum(k_item_acpi_rsdp, offsetof(Rsdp, checksum), 0, k_rsdp_first_part);
    loader.add_checksum(k_item_acpi_rsdp, offsetof(Rsdp, extended_checksum), 0, sizeof rsdp);
    Bytes bytes = object_bytes(rsdp);
    return ByteVector(bytes.begin(), bytes.end());
}

} // namespace

AcpiItems build_acpi(MachineDescription const& machine) {
    bool has_tpm = machine.tpm.kind != TpmKind::None;
    AcpiItems items;
    TableLoader loader;
    loader.allocate(k_item_acpi_rsdp, k_rsdp_alignment, TableLoader::Zone::FSegment);
    loader.allocate(k_item_acpi_tables, k_facs_alignment, TableLoader::Zone::High);
    if (has_tpm) {
        items.tpm_log.resize(k_tpm_log_size);
        loader.allocate(k_item_tpm_log, k_log_alignment, TableLoader::Zone::High);
    }

    TableSet tables(loader);
    uint32_t facs = tables.add_raw(build_facs());
    COFFER_ASSERT(facs % k_facs_alignment == 0);
    uint32_t dsdt = tables.add_raw(build_dsdt(machine));
    tables.checksum(dsdt);
    uint32_t fadt = tables.add_raw(build_fadt(machine));
    tables.point(fadt, offsetof(Fadt, firmware_ctrl), 4, facs);
    tables.point(fadt, offsetof(Fadt, dsdt), 4, dsdt);
    tables.point(fadt, offsetof(Fadt, x_dsdt), 8, dsdt);
    tables.checksum(fadt);
    tables.list(fadt);
    tables.add_listed(build_madt(machine));
    tables.add_listed(build_mcfg(machine));
    tables.add_listed(build_waet());
    tables.add_listed(build_ssdt_cpus(machine));
    if (machine.hpet) {
        tables.add_listed(build_hpet(machine));
        tables.add_listed(build_ssdt_hpet(machine));
    }
    if (has_tpm) {
        uint32_t tpm2 = tables.add_raw(build_tpm2(machine));
        loader.add_pointer(k_item_acpi_tables, static_cast<uint32_t>(tpm2 + offsetof(Tpm2, log_area_start_address)), 8,
                           k_item_tpm_log);
        tables.checksum(tpm2);
        tables.list(tpm2);
        tables.add_listed(build_ssdt_tpm(machine));
    }
    items.rsdp = build_rsdp(loader, tables.add_xsdt());
    items.tables = tables.take();
    items.table_loader = loader.take();
    return items;
}

} // namespace coffer::firmware::acpi
