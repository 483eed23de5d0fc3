#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

ByteVector build_waet() {
    Waet waet{};
    waet.header = table_header({'W', 'A', 'E', 'T'}, 1);
    waet.flags = k_waet_pm_timer_good;
    return table_bytes(waet);
}

} // namespace coffer::firmware::acpi
