// Writes a machine's ACPI tables, linked, and its raw fw_cfg items into a folder: dump_tables DIR none|crb|tis CPUS.
// test_iasl.sh feeds the tables to iasl; the items can be given to QEMU (-fw_cfg, -machine acpi=off).
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <map>

#include "base/file.hpp"
#include "linked_tables.hpp"

int main(int argc, char** argv) {
    using namespace coffer;
    std::map<std::string_view, firmware::TpmKind> const kinds{
        {"none", firmware::TpmKind::None}, {"crb", firmware::TpmKind::Crb}, {"tis", firmware::TpmKind::Tis}};
    if (argc != 4 || !kinds.contains(argv[2])) {
        std::fputs("usage: dump_tables DIR none|crb|tis CPUS\n", stderr);
        return 2;
    }
    firmware::MachineDescription machine = tests::test_machine();
    machine.tpm.kind = kinds.at(argv[2]);
    if (machine.tpm.kind == firmware::TpmKind::Tis) machine.tpm.gsi = 5;
    std::string_view cpus = argv[3];
    std::from_chars(cpus.data(), cpus.data() + cpus.size(), machine.cpu_count);

    std::filesystem::path folder = argv[1];
    auto write = [&](std::string name, Bytes bytes) {
        for (char& c : name)
            if (c == '/') c = '_';
        auto written = replace_file(folder / name, bytes);
        if (!written) abort_with(written.error().message());
    };
    auto items = firmware::build_firmware_items(machine);
    if (!items) abort_with(items.error().message());
    for (auto const& item : *items) write(item.name, item.bytes);
    std::map<std::string, int> seen;
    for (auto const& table : tests::link_tables(*items).tables) {
        int index = seen[table.signature]++;
        write(table.signature + (index == 0 ? "" : std::to_string(index)) + ".dat", table.bytes);
    }
    return 0;
}
