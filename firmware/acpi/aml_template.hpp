// AML that iasl compiled at build time, with placeholders for what only the machine knows.
#pragma once

#include "base/bytes.hpp"

namespace coffer::firmware::acpi {

// A copy of a compiled table in which placeholders are replaced by values of the same width. A placeholder is a number
// that occurs exactly `occurrences` times in the whole table, so that it can be found without reading AML; anything
// else is a mistake in the ASL source and asserts (test_acpi builds every table).
class AmlTemplate {
public:
    explicit AmlTemplate(Bytes compiled) : m_compiled(compiled), m_bytes(compiled.begin(), compiled.end()) {}

    AmlTemplate& replace16(uint16_t placeholder, uint16_t value, size_t occurrences);
    AmlTemplate& replace32(uint32_t placeholder, uint32_t value, size_t occurrences = 1);
    AmlTemplate& replace64(uint64_t placeholder, uint64_t value);
    ByteVector take() { return std::move(m_bytes); }

private:
    void replace(Bytes placeholder, Bytes value, size_t occurrences);

    Bytes m_compiled;
    ByteVector m_bytes;
};

// The tables' compiled bytes (asl/*.asl).
Bytes compiled_dsdt() noexcept;
Bytes compiled_ssdt_hpet() noexcept;
Bytes compiled_ssdt_tpm() noexcept;
Bytes compiled_ssdt_tpm_irq() noexcept;

} // namespace coffer::firmware::acpi
