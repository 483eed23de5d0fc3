#include "firmware/acpi/table_loader.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace coffer::firmware::acpi {

namespace {

using FileName = std::array<char, 56>; // NUL-terminated

enum class Command : uint32_t { Allocate = 1, AddPointer = 2, AddChecksum = 3 };

struct [[gnu::packed]] Allocate {
    Command command = Command::Allocate;
    FileName file;
    uint32_t alignment;
    TableLoader::Zone zone;
};
struct [[gnu::packed]] AddPointer {
    Command command = Command::AddPointer;
    FileName pointer_file;
    FileName target_file;
    uint32_t offset;
    uint8_t size;
};
struct [[gnu::packed]] AddChecksum {
    Command command = Command::AddChecksum;
    FileName file;
    uint32_t at;
    uint32_t start;
    uint32_t length;
};
constexpr size_t k_entry_size = 128;
static_assert(sizeof(Allocate) == 65 && sizeof(AddPointer) == 121 && sizeof(AddChecksum) == 72);

FileName file_name(std::string_view name) {
    FileName file{};
    COFFER_ASSERT(name.size() < file.size());
    std::copy(name.begin(), name.end(), file.begin());
    return file;
}

template <class Entry>
void append_entry(ByteVector& commands, Entry const& entry) {
    append(commands, object_bytes(entry));
    commands.resize(commands.size() + k_entry_size - sizeof entry);
}

} // namespace

void TableLoader::allocate(std::string_view file, uint32_t alignment, Zone zone) {
    COFFER_ASSERT(is_power_of_two(alignment));
    append_entry(m_commands, Allocate{.file = file_name(file), .alignment = alignment, .zone = zone});
}

void TableLoader::add_pointer(std::string_view file, uint32_t offset, uint8_t size, std::string_view target) {
    COFFER_ASSERT(size == 4 || size == 8);
    append_entry(
        m_commands,
        AddPointer{.pointer_file = file_name(file), .target_file = file_name(target), .offset = offset, .size = size});
}

void TableLoader::add_checksum(std::string_view file, uint32_t at, uint32_t start, uint32_t length) {
    COFFER_ASSERT(at >= start && at - start < length);
    append_entry(m_commands, AddChecksum{.file = file_name(file), .at = at, .start = start, .length = length});
}

} // namespace coffer::firmware::acpi
