#include "firmware/acpi/aml_template.hpp"

#include <algorithm>
#include <utility>

namespace coffer::firmware::acpi {

namespace {

// Written by iasl -tc: one array named <file>_aml_code each.
#include "dsdt.hex"
#include "ssdt_hpet.hex"
#include "ssdt_tpm.hex"
#include "ssdt_tpm_irq.hex"

} // namespace

Bytes compiled_dsdt() noexcept {
    return std::as_bytes(std::span(dsdt_aml_code));
}
Bytes compiled_ssdt_hpet() noexcept {
    return std::as_bytes(std::span(ssdt_hpet_aml_code));
}
Bytes compiled_ssdt_tpm() noexcept {
    return std::as_bytes(std::span(ssdt_tpm_aml_code));
}
Bytes compiled_ssdt_tpm_irq() noexcept {
    return std::as_bytes(std::span(ssdt_tpm_irq_aml_code));
}

// Places are looked up in the compiled bytes, so that a value put in earlier is never taken for a placeholder.
void AmlTemplate::replace(Bytes placeholder, Bytes value, size_t occurrences) {
    size_t found = 0;
    for (auto from = m_compiled.begin();; ++found) {
        auto at = std::search(from, m_compiled.end(), placeholder.begin(), placeholder.end());
        if (at == m_compiled.end()) break;
        std::copy(value.begin(), value.end(), m_bytes.begin() + (at - m_compiled.begin()));
        from = at + 1;
    }
    COFFER_ASSERT(found == occurrences);
}

AmlTemplate& AmlTemplate::replace16(uint16_t placeholder, uint16_t value, size_t occurrences) {
    replace(object_bytes(placeholder), object_bytes(value), occurrences);
    return *this;
}
AmlTemplate& AmlTemplate::replace32(uint32_t placeholder, uint32_t value, size_t occurrences) {
    replace(object_bytes(placeholder), object_bytes(value), occurrences);
    return *this;
}
AmlTemplate& AmlTemplate::replace64(uint64_t placeholder, uint64_t value) {
    replace(object_bytes(placeholder), object_bytes(value), 1);
    return *this;
}

} // namespace coffer::firmware::acpi
