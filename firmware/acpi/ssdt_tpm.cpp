#include "firmware/acpi/aml_template.hpp"
#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

namespace {

// The placeholders of asl/ssdt_tpm.asl.
constexpr uint32_t k_base = 0x95D8'0000;
constexpr uint32_t k_size = 0x0119'E000;
constexpr uint32_t k_ppi = 0x95D9'0000;
constexpr size_t k_ppi_places = 2;
constexpr uint32_t k_gsi = 0x95DA'0000;

} // namespace

ByteVector build_ssdt_tpm(MachineDescription const& machine) {
    COFFER_ASSERT(machine.tpm.kind != TpmKind::None);
    AmlTemplate table(machine.tpm.gsi ? compiled_ssdt_tpm_irq() : compiled_ssdt_tpm());
    table.replace32(k_base, static_cast<uint32_t>(machine.tpm.base))
        .replace32(k_size, static_cast<uint32_t>(machine.tpm.size()))
        .replace32(k_ppi, static_cast<uint32_t>(machine.tpm.ppi_base), k_ppi_places);
    if (machine.tpm.gsi) table.replace32(k_gsi, *machine.tpm.gsi);
    return table.take();
}

} // namespace coffer::firmware::acpi
