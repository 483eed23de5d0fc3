#include "firmware/acpi/aml_template.hpp"
#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

namespace {

constexpr uint32_t k_base = 0x95D7'0000; // placeholder of asl/ssdt_hpet.asl

} // namespace

ByteVector build_ssdt_hpet(MachineDescription const& machine) {
    COFFER_ASSERT(machine.hpet);
    return AmlTemplate(compiled_ssdt_hpet()).replace32(k_base, static_cast<uint32_t>(*machine.hpet)).take();
}

} // namespace coffer::firmware::acpi
