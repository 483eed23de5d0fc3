// Processor devices. Their number varies, so this table alone is encoded here and not by iasl: one
//   Device (Cxx) { Name (_HID, "ACPI0007") Name (_UID, n) }
// per CPU, in \_SB. ACPI Specification 6.4, section 20.2 (AML grammar) and 8.4 (processor devices).
#include <string_view>

#include <fmt/format.h>

#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

namespace {

enum class Opcode : uint8_t { Name = 0x08, BytePrefix = 0x0A, StringPrefix = 0x0D, Scope = 0x10, ExtPrefix = 0x5B };
constexpr uint8_t k_ext_device = 0x82;

void put(ByteVector& to, Opcode opcode) {
    to.push_back(static_cast<std::byte>(opcode));
}
void put(ByteVector& to, std::string_view text) {
    append(to, as_bytes(text));
}

// PkgLength counts its own bytes. The form with a nibble and up to three bytes, section 20.2.4.
void put_package(ByteVector& to, Bytes content) {
    size_t extra = content.size() + 1 < 0x40 ? 0 : content.size() + 2 < 0x1000 ? 1 : 2;
    size_t length = content.size() + 1 + extra;
    COFFER_ASSERT(length < 0x10'0000);
    if (extra == 0) {
        to.push_back(static_cast<std::byte>(length));
    } else {
        to.push_back(static_cast<std::byte>((extra << 6) | (length & 0xF)));
        for (size_t i = 0; i < extra; ++i) to.push_back(static_cast<std::byte>((length >> (4 + 8 * i)) & 0xFF));
    }
    append(to, content);
}

ByteVector cpu_device(uint32_t cpu) {
    ByteVector body;
    put(body, fmt::format("C{:03X}", cpu));
    put(body, Opcode::Name);
    put(body, "_HID");
    put(body, Opcode::StringPrefix);
    put(body, std::string_view("ACPI0007\0", 9));
    put(body, Opcode::Name);
    put(body, "_UID");
    put(body, Opcode::BytePrefix);
    body.push_back(static_cast<std::byte>(cpu));
    ByteVector device;
    put(device, Opcode::ExtPrefix);
    device.push_back(std::byte{k_ext_device});
    put_package(device, body);
    return device;
}

} // namespace

ByteVector build_ssdt_cpus(MachineDescription const& machine) {
    ByteVector scope;
    put(scope, "\\_SB_");
    for (uint32_t cpu = 0; cpu < machine.cpu_count; ++cpu) append(scope, cpu_device(cpu));

    struct [[gnu::packed]] Table {
        TableHeader header;
    };
    Table head{table_header({'S', 'S', 'D', 'T'}, 2)};
    head.header.oem_table_id = {'C', 'P', 'U', 'S', 0, 0, 0, 0};
    ByteVector table = table_bytes(head);
    put(table, Opcode::Scope);
    put_package(table, scope);
    store_le<uint32_t>(table, offsetof(TableHeader, length), static_cast<uint32_t>(table.size()));
    return table;
}

} // namespace coffer::firmware::acpi
