#include "firmware/e820.hpp"

namespace coffer::firmware {

namespace {

enum class E820Type : uint32_t { Ram = 1, Reserved = 2 };

struct [[gnu::packed]] E820Entry {
    uint64_t base;
    uint64_t length;
    E820Type type;
};
static_assert(sizeof(E820Entry) == 20);

constexpr uint64_t k_four_gib = 0x1'0000'0000;
constexpr uint64_t k_page = 0x1000;

} // namespace

ByteVector build_e820(MachineDescription const& machine) {
    ByteVector map;
    auto add = [&](AddressRange range, E820Type type) {
        if (range.size != 0) append(map, object_bytes(E820Entry{range.base, range.size, type}));
    };
    add({0, machine.low_ram_size}, E820Type::Ram);
    add({k_four_gib, machine.high_ram_size}, E820Type::Ram);
    if (machine.tpm.kind != TpmKind::None) add({machine.tpm.ppi_base, k_page}, E820Type::Reserved);
    for (AddressRange const& range : machine.reserved) add(range, E820Type::Reserved);
    return map;
}

} // namespace coffer::firmware
