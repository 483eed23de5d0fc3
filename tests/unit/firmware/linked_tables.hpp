// Does with a machine's ACPI items what OVMF does: places the files, carries out the loader's commands, and hands out
// the tables that the RSDP leads to. A reading of the interface of its own, apart from firmware/acpi/table_loader.cpp.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "firmware/items.hpp"

namespace coffer::tests {

struct LinkedTable {
    std::string signature;
    std::string oem_table_id;
    ByteVector bytes;
};

struct LinkedTables {
    std::map<std::string, uint64_t> placed; // file name to address
    ByteVector rsdp;
    std::vector<LinkedTable> tables; // XSDT first, then in its order, then DSDT and FACS

    // The first with that signature (and table id, where given); an empty one where there is none.
    LinkedTable find(std::string_view signature, std::string_view oem_table_id = {}) const;
};

// Bad commands, pointers and lengths end the process with a message: for tests of ours only.
LinkedTables link_tables(firmware::FirmwareItems const& items);

// A plausible machine for tests: 1 GiB, one CPU, CRB.
firmware::MachineDescription test_machine();

uint8_t byte_sum(Bytes bytes);

} // namespace coffer::tests
