#include "devices/chipset/linux_boot.hpp"

#include <utility>

namespace coffer::devices {

using namespace fwcfg;

namespace {
constexpr size_t k_sector = 512;
constexpr size_t k_setup_sects = 0x1F1;
constexpr size_t k_boot_flag = 0x1FE;
constexpr size_t k_header_magic = 0x202;
constexpr size_t k_protocol_version = 0x206;
constexpr size_t k_cmdline_size = 0x238;
constexpr size_t k_header_end = 0x268;
constexpr uint32_t k_hdrs = 0x5372'6448;      // "HdrS"
constexpr uint16_t k_oldest_protocol = 0x206; // the first with cmdline_size
} // namespace

Result<void> add_linux_boot(FwCfg& fw_cfg, Bytes kernel, ByteVector initrd, std::string_view command_line) {
    if (kernel.size() < k_header_end || load_le<uint16_t>(kernel, k_boot_flag) != 0xAA55 ||
        load_le<uint32_t>(kernel, k_header_magic) != k_hdrs ||
        load_le<uint16_t>(kernel, k_protocol_version) < k_oldest_protocol)
        return make_error(ErrorCode::InvalidArgument, "the kernel is not a Linux bzImage for x86");
    size_t sectors = static_cast<uint8_t>(kernel[k_setup_sects]);
    if (sectors == 0) sectors = 4; // by the protocol's history
    size_t setup_size = (sectors + 1) * k_sector;
    if (setup_size >= kernel.size() || kernel.size() > UINT32_MAX)
        return make_error(ErrorCode::InvalidArgument, "the kernel is truncated: {} bytes with {} setup sectors",
                          kernel.size(), sectors);
    if (initrd.size() > UINT32_MAX) return make_error(ErrorCode::InvalidArgument, "the initrd is larger than 4 GiB");
    auto limit = load_le<uint32_t>(kernel, k_cmdline_size);
    if (command_line.size() > limit || command_line.find('\0') != std::string_view::npos)
        return make_error(ErrorCode::InvalidArgument, "the kernel takes a command line of {} characters, this has {}",
                          limit, command_line.size());

    Bytes setup = kernel.first(setup_size);
    Bytes rest = kernel.subspan(setup_size);
    fw_cfg.set_key_u32(SETUP_SIZE, static_cast<uint32_t>(setup.size()));
    fw_cfg.set_key(SETUP_DATA, ByteVector(setup.begin(), setup.end()));
    fw_cfg.set_key_u32(KERNEL_SIZE, static_cast<uint32_t>(rest.size()));
    fw_cfg.set_key(KERNEL_DATA, ByteVector(rest.begin(), rest.end()));
    fw_cfg.set_key_u32(INITRD_SIZE, static_cast<uint32_t>(initrd.size()));
    fw_cfg.set_key(INITRD_DATA, std::move(initrd));
    ByteVector text;
    append(text, as_bytes(command_line));
    text.push_back(std::byte{0});
    fw_cfg.set_key_u32(CMDLINE_SIZE, static_cast<uint32_t>(text.size()));
    fw_cfg.set_key(CMDLINE_DATA, std::move(text));
    return {};
}

} // namespace coffer::devices
