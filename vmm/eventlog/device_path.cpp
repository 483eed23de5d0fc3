#include "vmm/eventlog/device_path.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace coffer::vmm {

namespace {

constexpr size_t k_max_nodes = 64;
constexpr size_t k_max_text = 1024; // bytes of text that one string gives

// UEFI 2.10, 10.3.2 to 10.3.5 and 10.3.1: types and sub-types.
constexpr uint8_t k_hardware = 1, k_acpi = 2, k_messaging = 3, k_media = 4, k_end = 0x7F;

std::string hex_of(Bytes bytes) {
    std::string text;
    for (std::byte b : bytes.first(std::min<size_t>(bytes.size(), 64)))
        text += fmt::format("{:02X}", std::to_integer<unsigned>(b));
    return text;
}

std::string hardware_node(uint8_t subtype, Bytes data) {
    if (subtype == 1 && data.size() == 2)
        return fmt::format("Pci(0x{:X},0x{:X})", load_le<uint8_t>(data, 1), load_le<uint8_t>(data, 0));
    if (subtype == 3 && data.size() == 20)
        return fmt::format("MemoryMapped(0x{:X},0x{:X},0x{:X})", load_le<uint32_t>(data, 0), load_le<uint64_t>(data, 4),
                           load_le<uint64_t>(data, 12));
    if (subtype == 4 && data.size() >= 16) {
        auto const rest = hex_of(data.subspan(16));
        return fmt::format("VenHw({}{}{})", guid_text(data.first(16)), rest.empty() ? "" : ",", rest);
    }
    return {};
}

std::string acpi_node(uint8_t subtype, Bytes data) {
    if (subtype != 1 || data.size() != 8) return {};
    auto const hid = load_le<uint32_t>(data, 0);
    auto const uid = load_le<uint32_t>(data, 4);
    constexpr uint32_t k_eisa = 0x41D0; // "PNP"
    if ((hid & 0xFFFF) != k_eisa) return fmt::format("Acpi(0x{:08X},0x{:X})", hid, uid);
    switch (hid >> 16) {
    case 0x0A03: return fmt::format("PciRoot(0x{:X})", uid);
    case 0x0A08: return fmt::format("PcieRoot(0x{:X})", uid);
    case 0x0604: return fmt::format("Floppy(0x{:X})", uid);
    case 0x0301: return fmt::format("Keyboard(0x{:X})", uid);
    case 0x0501: return fmt::format("Serial(0x{:X})", uid);
    default: return fmt::format("Acpi(PNP{:04X},0x{:X})", hid >> 16, uid);
    }
}

std::string messaging_node(uint8_t subtype, Bytes data) {
    if (subtype == 2 && data.size() == 4)
        return fmt::format("Scsi(0x{:X},0x{:X})", load_le<uint16_t>(data, 0), load_le<uint16_t>(data, 2));
    if (subtype == 5 && data.size() == 2)
        return fmt::format("USB(0x{:X},0x{:X})", load_le<uint8_t>(data, 0), load_le<uint8_t>(data, 1));
    if (subtype == 10 && data.size() >= 16) return fmt::format("VenMsg({})", guid_text(data.first(16)));
    if (subtype == 11 && data.size() == 33) return fmt::format("MAC({})", hex_of(data.first(6)));
    if (subtype == 18 && data.size() == 6)
        return fmt::format("Sata(0x{:X},0x{:X},0x{:X})", load_le<uint16_t>(data, 0), load_le<uint16_t>(data, 2),
                           load_le<uint16_t>(data, 4));
    if (subtype == 23 && data.size() == 12) {
        // The identifier is big-endian as a number, and its octets are written from the last to the first.
        std::string id;
        for (size_t i = 12; i-- > 4;)
            id += fmt::format("{}{:02X}", id.empty() ? "" : "-", std::to_integer<unsigned>(data[i]));
        return fmt::format("NVMe(0x{:X},{})", load_le<uint32_t>(data, 0), id);
    }
    if (subtype == 24) return fmt::format("Uri({})", ascii_text(data));
    return {};
}

std::string media_node(uint8_t subtype, Bytes data) {
    if (subtype == 1 && data.size() == 38) {
        auto const number = load_le<uint32_t>(data, 0);
        auto const kind = load_le<uint8_t>(data, 37);
        if (kind == 2) return fmt::format("HD({},GPT,{})", number, guid_text(data.subspan(20, 16)));
        return fmt::format("HD({},MBR,0x{:08X})", number, load_le<uint32_t>(data, 20));
    }
    if (subtype == 2 && data.size() == 20) return fmt::format("CDROM(0x{:X})", load_le<uint32_t>(data, 0));
    if (subtype == 3 && data.size() >= 16) return fmt::format("VenMedia({})", guid_text(data.first(16)));
    if (subtype == 4) return utf16_text(data);
    if (subtype == 6 && data.size() == 16) return fmt::format("FvFile({})", guid_text(data));
    if (subtype == 7 && data.size() == 16) return fmt::format("Fv({})", guid_text(data));
    return {};
}

} // namespace

std::string device_path_text(Bytes path) {
    std::string text;
    for (size_t nodes = 0; !path.empty(); ++nodes) {
        size_t const size = path.size() < 4 ? 0 : load_le<uint16_t>(path, 2);
        if (size < 4 || size > path.size() || nodes == k_max_nodes) return text + "...";
        auto const type = load_le<uint8_t>(path, 0);
        auto const subtype = load_le<uint8_t>(path, 1);
        auto const data = path.subspan(4, size - 4);
        path = path.subspan(size);
        if (type == k_end && subtype == 0xFF) break;
        if (type == k_end) { // one of several paths ends
            text += ",";
            continue;
        }
        std::string node = type == k_hardware    ? hardware_node(subtype, data)
                           : type == k_acpi      ? acpi_node(subtype, data)
                           : type == k_messaging ? messaging_node(subtype, data)
                           : type == k_media     ? media_node(subtype, data)
                                                 : std::string();
        if (node.empty()) node = fmt::format("Path({},{},{})", type, subtype, hex_of(data));
        text += (text.empty() || text.back() == ',' ? "" : "/") + node;
    }
    return text;
}

std::string guid_text(Bytes guid) {
    if (guid.size() != 16) return "?";
    return fmt::format("{:08X}-{:04X}-{:04X}-{}-{}", load_le<uint32_t>(guid, 0), load_le<uint16_t>(guid, 4),
                       load_le<uint16_t>(guid, 6), hex_of(guid.subspan(8, 2)), hex_of(guid.subspan(10)));
}

std::string utf16_text(Bytes text) {
    std::string result;
    for (size_t at = 0; at + 2 <= text.size() && result.size() < k_max_text; at += 2) {
        uint32_t code = load_le<uint16_t>(text, at);
        if (code == 0) break;
        if (code >= 0xD800 && code < 0xDC00 && at + 4 <= text.size()) {
            uint32_t const low = load_le<uint16_t>(text, at + 2);
            if (low >= 0xDC00 && low < 0xE000) {
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                at += 2;
            }
        }
        auto add = [&](uint32_t byte) { result += static_cast<char>(byte); };
        // C1 controls are as little wanted on a terminal as C0's and DEL.
        if (code < 0x20 || (code >= 0x7F && code < 0xA0) || (code >= 0xD800 && code < 0xE000)) {
            add('?');
        } else if (code < 0x80) {
            add(code);
        } else if (code < 0x800) {
            add(0xC0 | code >> 6);
            add(0x80 | (code & 0x3F));
        } else if (code < 0x10000) {
            add(0xE0 | code >> 12);
            add(0x80 | (code >> 6 & 0x3F));
            add(0x80 | (code & 0x3F));
        } else {
            add(0xF0 | code >> 18);
            add(0x80 | (code >> 12 & 0x3F));
            add(0x80 | (code >> 6 & 0x3F));
            add(0x80 | (code & 0x3F));
        }
    }
    return result;
}

std::string ascii_text(Bytes text) {
    std::string result;
    for (std::byte b : text) {
        auto const c = static_cast<char>(b);
        if (c == '\0' || result.size() == k_max_text) break;
        result += c >= ' ' && c <= '~' ? c : '?';
    }
    return result;
}

} // namespace coffer::vmm
