#include "firmware/acpi/acpi.hpp"
#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

// The log area's address is filled by the table loader.
ByteVector build_tpm2(MachineDescription const& machine) {
    COFFER_ASSERT(machine.tpm.kind != TpmKind::None);
    bool crb = machine.tpm.kind == TpmKind::Crb;
    Tpm2 tpm2{};
    tpm2.header = table_header({'T', 'P', 'M', '2'}, 4);
    tpm2.platform_class = k_tpm2_platform_client;
    tpm2.control_area = crb ? machine.tpm.base + k_crb_control_area_offset : 0;
    tpm2.start_method = static_cast<uint32_t>(crb ? Tpm2StartMethod::Crb : Tpm2StartMethod::Tis);
    tpm2.log_area_minimum_length = k_tpm_log_size;
    return table_bytes(tpm2);
}

} // namespace coffer::firmware::acpi
