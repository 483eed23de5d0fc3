#include "vmm/migrate/message.hpp"

#include <algorithm>

#include "vmm/home/home_spec.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm::migrate {

namespace {

constexpr size_t k_max_disks = 64;
constexpr size_t k_max_path = 4096;
constexpr size_t k_max_cpuid = 64;
constexpr size_t k_max_keys =
    home_spec::keys::k_prefix_size + home_spec::keys::k_max_header + home_spec::keys::k_max_sealed;
constexpr uint32_t k_max_cpus = 1024;
constexpr uint64_t k_max_memory = uint64_t{1} << 43;

Error malformed() {
    return make_error(ErrorCode::Corrupt, "the other host sent what is no message of a migration");
}

bool is_plain(std::string_view text, size_t limit) {
    return text.size() <= limit && std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

Result<void> check_protocol(uint16_t protocol) {
    if (protocol == k_protocol) return {};
    return make_error(ErrorCode::Unsupported,
                      "the other host speaks version {} of the migration protocol, and this one version {}: use one "
                      "version of coffer on both",
                      protocol, k_protocol);
}

} // namespace

size_t max_body(MessageType type) noexcept {
    switch (type) {
    case MessageType::Channel:
    case MessageType::Hello:
    case MessageType::Welcome:
    case MessageType::Proof:
    case MessageType::File:
    case MessageType::FilePart:
    case MessageType::Prepare:
    case MessageType::Ready:
    case MessageType::Go:
    case MessageType::Started:
    case MessageType::Settled:
    case MessageType::Failure:
    case MessageType::Ask:
    case MessageType::Standing:
    case MessageType::Mark:
    case MessageType::Reached: return k_max_fields;
    case MessageType::Firmware:
    case MessageType::FileData:
    case MessageType::State: return k_max_chunk;
    case MessageType::Memory: return k_max_memory_batch;
    }
    return 0;
}

std::array<std::byte, k_header_size> encode_header(FrameHeader const& header) {
    std::array<std::byte, k_header_size> bytes{};
    store_le<uint32_t>(bytes, 0, k_magic);
    store_le<uint16_t>(bytes, 4, static_cast<uint16_t>(header.type));
    store_le<uint32_t>(bytes, 8, header.size);
    return bytes;
}

Result<FrameHeader> decode_header(Bytes header) {
    if (header.size() != k_header_size || load_le<uint32_t>(header) != k_magic || load_le<uint16_t>(header, 6) != 0)
        return malformed();
    FrameHeader decoded{static_cast<MessageType>(load_le<uint16_t>(header, 4)), load_le<uint32_t>(header, 8)};
    auto const most = max_body(decoded.type);
    if (most == 0 || decoded.size > most) return malformed();
    return decoded;
}

bool is_home_file_name(std::string_view name) noexcept {
    auto allowed = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-'; };
    return !name.empty() && name.size() <= home_spec::k_max_file_name && name.front() != '.' &&
           name != home_spec::k_lock_file && std::all_of(name.begin(), name.end(), allowed);
}

Result<ChannelMessage> decode_channel(Bytes body) {
    ChannelMessage message;
    TRY(decode_fields(body, message));
    if (!is_plain(message.peer_name, k_max_text)) return malformed();
    return message;
}

Result<HelloMessage> decode_hello(Bytes body) {
    HelloMessage message;
    // The version comes first: what else a later one has is not to be misread.
    FieldReader reader(body);
    uint16_t protocol = 0;
    reader.required(1, protocol);
    TRY(reader.status());
    TRY(check_protocol(protocol));
    TRY(decode_fields(body, message));
    TRY(check_vm_name(message.name));
    if (!is_plain(message.version, 64) || !is_plain(message.backend, 64) || message.keys.size() > k_max_keys ||
        message.cpuid.size() > k_max_cpuid || message.disks.size() > k_max_disks || message.platform.cpus == 0 ||
        message.platform.cpus > k_max_cpus || message.platform.memory == 0 || message.platform.memory > k_max_memory ||
        message.firmware_size == 0 || message.firmware_size > k_max_firmware ||
        message.platform.disk_sizes.size() != message.disks.size() || message.migration.is_nil() || message.vm.is_nil())
        return malformed();
    for (auto const& disk : message.disks) {
        bool const printable = std::all_of(disk.path.begin(), disk.path.end(),
                                           [](char c) { return static_cast<unsigned char>(c) >= ' ' && c != 0x7F; });
        if (disk.path.size() > k_max_path || !printable || disk.size > k_max_file) return malformed();
        if (!disk.in_home && (disk.path.empty() || disk.path.front() != '/')) return malformed();
    }
    return message;
}

Result<FileMessage> decode_file(Bytes body) {
    FileMessage message;
    TRY(decode_fields(body, message));
    bool const named = message.disk == 0 ? is_home_file_name(message.name) : message.name.empty();
    if (!named || message.size > k_max_file || message.disk > k_max_disks) return malformed();
    return message;
}

Result<FilePartMessage> decode_file_part(Bytes body) {
    FilePartMessage message;
    TRY(decode_fields(body, message));
    bool const named = message.disk == 0 ? is_home_file_name(message.name) : message.name.empty();
    if (!named || message.disk > k_max_disks || message.size == 0 || message.size > k_max_file ||
        message.offset > k_max_file - message.size)
        return malformed();
    return message;
}

Result<PrepareMessage> decode_prepare(Bytes body) {
    PrepareMessage message;
    TRY(decode_fields(body, message));
    if (message.state_size > k_max_state) return malformed();
    return message;
}

Result<AskMessage> decode_ask(Bytes body) {
    AskMessage message;
    TRY(decode_fields(body, message));
    TRY(check_protocol(message.protocol));
    TRY(check_vm_name(message.name));
    if (message.migration.is_nil()) return malformed();
    return message;
}

Result<StandingMessage> decode_standing(Bytes body) {
    StandingMessage message;
    TRY(decode_fields(body, message));
    if (message.fate < Fate::Prepared || message.fate > Fate::Abandoned) return malformed();
    return message;
}

Error decode_failure(Bytes body) {
    FailureMessage message;
    if (!decode_fields(body, message) || message.code > ErrorCode::Cancelled || message.text.size() > k_max_text)
        return malformed();
    for (char& c : message.text)
        if (static_cast<unsigned char>(c) < ' ' || c == 0x7F) c = '?';
    return make_error(message.code, "the other host: {}", message.text);
}

} // namespace coffer::vmm::migrate
