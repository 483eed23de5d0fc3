#include "vmm/eventlog/event_text.hpp"

#include <algorithm>

#include "vmm/eventlog/device_path.hpp"

namespace coffer::vmm {

namespace {

using namespace std::string_view_literals;

constexpr size_t k_guid_size = 16;
constexpr size_t k_shown_bytes = 32;
constexpr size_t k_max_shown = 16; // partitions, tables, boot options of one event

std::string hex_text(Bytes bytes) {
    std::string text;
    for (std::byte b : bytes.first(std::min(bytes.size(), k_shown_bytes)))
        text += fmt::format("{:02x}", std::to_integer<unsigned>(b));
    if (bytes.size() > k_shown_bytes) text += fmt::format("... ({} bytes)", bytes.size());
    return text;
}

std::string malformed(Bytes data) {
    return "malformed: " + hex_text(data);
}

bool looks_like_ascii(Bytes data) {
    auto const end = std::ranges::find(data, std::byte{0});
    if (end == data.begin() || std::any_of(end, data.end(), [](std::byte b) { return b != std::byte{0}; }))
        return false;
    return std::all_of(data.begin(), end, [](std::byte b) {
        auto const c = std::to_integer<unsigned>(b);
        return (c >= 0x20 && c < 0x7F) || c == '\t' || c == '\n' || c == '\r';
    });
}

// Latin letters and the like: every second byte is zero.
bool looks_like_utf16(Bytes data) {
    if (data.size() < 2 || data.size() % 2 != 0) return false;
    for (size_t at = 0; at < data.size(); at += 2) {
        auto const unit = load_le<uint16_t>(data, at);
        if (unit == 0) return at > 0;
        if (unit >= 0x100) return false;
    }
    return true;
}

// Boot loaders write ASCII or UTF-16 as they like.
std::string loose_text(Bytes data) {
    if (looks_like_ascii(data)) return ascii_text(data);
    if (looks_like_utf16(data)) return utf16_text(data);
    return hex_text(data);
}

// UEFI 2.10, 3.1.3: EFI_LOAD_OPTION.
std::string load_option_text(Bytes option) {
    if (option.size() < 6) return malformed(option);
    size_t const path_size = load_le<uint16_t>(option, 4);
    auto rest = option.subspan(6);
    auto const description = utf16_text(rest);
    size_t at = 0;
    while (at + 2 <= rest.size() && load_le<uint16_t>(rest, at) != 0) at += 2;
    if (at + 2 > rest.size()) return malformed(option);
    rest = rest.subspan(at + 2);
    if (path_size > rest.size()) return malformed(option);
    return fmt::format("\"{}\" {}", description, device_path_text(rest.first(path_size)));
}

// A load option's name: four hexadecimal digits behind Boot, Driver or SysPrep.
bool names_load_option(std::string_view name) {
    for (auto prefix : {"Boot"sv, "Driver"sv, "SysPrep"sv}) {
        if (!name.starts_with(prefix) || name.size() != prefix.size() + 4) continue;
        auto const digits = name.substr(prefix.size());
        if (std::ranges::all_of(digits, [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); }))
            return true;
    }
    return false;
}

std::string variable_content(std::string_view name, Bytes data) {
    if (names_load_option(name)) return load_option_text(data);
    if (name == "BootOrder" && data.size() % 2 == 0) {
        std::string order;
        for (size_t at = 0; at < std::min(data.size(), 2 * k_max_shown); at += 2)
            order += fmt::format("{}{:04X}", order.empty() ? "" : ",", load_le<uint16_t>(data, at));
        return order;
    }
    if ((name == "SecureBoot" || name == "AuditMode" || name == "DeployedMode" || name == "SetupMode") &&
        data.size() == 1)
        return data[0] == std::byte{1} ? "on" : "off";
    if (data.empty()) return "empty";
    return hex_text(data);
}

// 10.4.2.6: UEFI_VARIABLE_DATA.
std::string variable_text(Bytes data) {
    constexpr size_t k_head = k_guid_size + 8 + 8;
    if (data.size() < k_head) return malformed(data);
    auto const characters = load_le<uint64_t>(data, k_guid_size);
    auto const size = load_le<uint64_t>(data, k_guid_size + 8);
    auto const rest = data.subspan(k_head);
    if (characters > rest.size() / 2 || size > rest.size() - 2 * characters) return malformed(data);
    auto const name = utf16_text(rest.first(2 * characters));
    return fmt::format("{} ({}): {}", name, guid_text(data.first(k_guid_size)),
                       variable_content(name, rest.subspan(2 * characters, size)));
}

// 10.4.2.3.1: UEFI_IMAGE_LOAD_EVENT.
std::string image_text(Bytes data) {
    constexpr size_t k_head = 4 * 8;
    if (data.size() < k_head) return malformed(data);
    auto const path_size = load_le<uint64_t>(data, 24);
    if (path_size > data.size() - k_head) return malformed(data);
    return fmt::format("{} bytes at {:#x}: {}", load_le<uint64_t>(data, 8), load_le<uint64_t>(data, 0),
                       device_path_text(data.subspan(k_head, path_size)));
}

std::string blob_text(Bytes data) {
    if (data.size() != 16) return malformed(data);
    return fmt::format("{} bytes at {:#x}", load_le<uint64_t>(data, 8), load_le<uint64_t>(data, 0));
}

// A u8 size and that many characters in front of what the older event is.
template <class Rest>
std::string described(Bytes data, Rest&& rest) {
    size_t const size = data.empty() ? 0 : load_le<uint8_t>(data);
    if (data.empty() || size > data.size() - 1) return malformed(data);
    return fmt::format("{}: {}", ascii_text(data.subspan(1, size)), rest(data.subspan(1 + size)));
}

std::string tables_text(Bytes data) {
    constexpr size_t k_entry = k_guid_size + 8;
    if (data.size() < 8) return malformed(data);
    auto const count = load_le<uint64_t>(data);
    if (count > (data.size() - 8) / k_entry) return malformed(data);
    std::string text = fmt::format("{} tables", count);
    for (size_t i = 0; i < std::min<size_t>(count, k_max_shown); ++i) {
        auto const entry = data.subspan(8 + i * k_entry, k_entry);
        text += fmt::format("{} {} at {:#x}", i == 0 ? ":" : ",", guid_text(entry.first(k_guid_size)),
                            load_le<uint64_t>(entry, k_guid_size));
    }
    return text;
}

// 10.4.2.4: UEFI_GPT_DATA. Offsets of the header and of entries: UEFI 2.10, 5.3.2 and 5.3.3.
std::string gpt_text(Bytes data) {
    constexpr size_t k_header = 92;
    constexpr size_t k_entry = 128;
    constexpr size_t k_disk_guid = 56;
    constexpr size_t k_entry_size_at = 84;
    if (data.size() < k_header + 8) return malformed(data);
    auto const count = load_le<uint64_t>(data, k_header);
    if (load_le<uint32_t>(data, k_entry_size_at) != k_entry || count > (data.size() - k_header - 8) / k_entry)
        return malformed(data);
    std::string text = fmt::format("disk {}", guid_text(data.subspan(k_disk_guid, k_guid_size)));
    for (size_t i = 0; i < std::min<size_t>(count, k_max_shown); ++i) {
        auto const entry = data.subspan(k_header + 8 + i * k_entry, k_entry);
        text +=
            fmt::format(", partition {} \"{}\" blocks {}-{}", guid_text(entry.subspan(16, k_guid_size)),
                        utf16_text(entry.subspan(56, 72)), load_le<uint64_t>(entry, 32), load_le<uint64_t>(entry, 40));
    }
    return text;
}

std::string separator_text(Bytes data) {
    if (data.size() != 4) return loose_text(data);
    auto const value = load_le<uint32_t>(data);
    if (value == 1) return "an error";
    return value == 0 || value == 0xFFFF'FFFF ? "" : fmt::format("{:#x}", value);
}

// 10.4.2.1: TCG_PCClientTaggedEvent.
std::string tag_text(Bytes data) {
    if (data.size() < 8) return malformed(data);
    auto const size = load_le<uint32_t>(data, 4);
    if (size > data.size() - 8) return malformed(data);
    return fmt::format("{:#010x}: {}", load_le<uint32_t>(data), loose_text(data.subspan(8, size)));
}

std::string no_action_text(Bytes data) {
    constexpr auto k_locality = "StartupLocality\0"sv;
    if (data.size() == k_locality.size() + 1 && std::ranges::equal(data.first(k_locality.size()), as_bytes(k_locality)))
        return fmt::format("startup locality {}", std::to_integer<unsigned>(data.back()));
    return loose_text(data);
}

} // namespace

std::string event_text(Event const& event) {
    auto const data = event.data;
    switch (event.type) {
    case EventType::VariableDriverConfig:
    case EventType::VariableBoot:
    case EventType::VariableBoot2:
    case EventType::VariableAuthority: return variable_text(data);
    case EventType::BootServicesApplication:
    case EventType::BootServicesDriver:
    case EventType::RuntimeServicesDriver: return image_text(data);
    case EventType::FirmwareBlob: return blob_text(data);
    case EventType::FirmwareBlob2: return described(data, blob_text);
    case EventType::HandoffTables: return tables_text(data);
    case EventType::HandoffTables2: return described(data, tables_text);
    case EventType::GptEvent:
    case EventType::GptEvent2: return gpt_text(data);
    case EventType::Separator: return separator_text(data);
    case EventType::EventTag: return tag_text(data);
    case EventType::NoAction: return no_action_text(data);
    // Some firmware logs a blob's place without saying so (PFP 1.05, 10.4.1 note to EV_POST_CODE).
    case EventType::PostCode: return data.size() == 16 && !looks_like_ascii(data) ? blob_text(data) : loose_text(data);
    case EventType::CrtmVersion:
        return data.size() == k_guid_size && !looks_like_utf16(data) ? guid_text(data) : loose_text(data);
    default: return loose_text(data);
    }
}

} // namespace coffer::vmm
