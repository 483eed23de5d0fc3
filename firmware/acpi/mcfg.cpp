#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

ByteVector build_mcfg(MachineDescription const& machine) {
    Mcfg mcfg{};
    mcfg.header = table_header({'M', 'C', 'F', 'G'}, 1);
    mcfg.base = machine.ecam_base;
    mcfg.last_bus = 0xFF;
    return table_bytes(mcfg);
}

} // namespace coffer::firmware::acpi
