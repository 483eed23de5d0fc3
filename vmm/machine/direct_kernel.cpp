#include "vmm/machine/direct_kernel.hpp"

#include "base/file.hpp"

namespace coffer::vmm {

namespace {

// Offsets in the boot sector (boot.rst, "The Real-Mode Kernel Header").
constexpr size_t k_setup_sects = 0x1F1;
constexpr size_t k_boot_flag = 0x1FE;
constexpr size_t k_header_magic = 0x202;
constexpr size_t k_protocol_version = 0x206;
constexpr size_t k_header_end = 0x268;
constexpr uint16_t k_boot_flag_value = 0xAA55;
constexpr uint32_t k_header_magic_value = 0x53726448; // "HdrS"
constexpr uint16_t k_first_protocol_with_efi_handover = 0x20B;
constexpr size_t k_sector = 512;

} // namespace

Result<DirectKernel> DirectKernel::load(std::filesystem::path const& kernel, std::filesystem::path const& initrd,
                                        std::string cmdline) {
    auto refuse = [&](std::string_view why) {
        return make_error(ErrorCode::Corrupt, "{} is not a kernel that the firmware can start: {}", kernel.native(),
                          why);
    };
    auto image = TRY(read_file(kernel, k_max_kernel_size));
    if (image.size() < k_header_end || load_le<uint16_t>(image, k_boot_flag) != k_boot_flag_value ||
        load_le<uint32_t>(image, k_header_magic) != k_header_magic_value)
        return refuse("it has no Linux boot header (give a bzImage, such as /boot/vmlinuz-*)");
    if (load_le<uint16_t>(image, k_protocol_version) < k_first_protocol_with_efi_handover ||
        image[0] != std::byte{'M'} || image[1] != std::byte{'Z'})
        return refuse("it has no EFI stub (CONFIG_EFI_STUB)");
    // 0 means 4, for the sake of very old kernels.
    size_t sectors = std::to_integer<size_t>(image[k_setup_sects]);
    size_t setup_size = ((sectors == 0 ? 4 : sectors) + 1) * k_sector;
    if (image.size() <= setup_size) return refuse("it ends within its setup code");

    if (cmdline.size() > k_max_cmdline_size)
        return make_error(ErrorCode::InvalidArgument, "the kernel command line has {} characters; at most {} fit",
                          cmdline.size(), k_max_cmdline_size);
    if (cmdline.find('\0') != std::string::npos)
        return make_error(ErrorCode::InvalidArgument, "the kernel command line holds a NUL character");

    DirectKernel result;
    auto setup_end = image.begin() + static_cast<ptrdiff_t>(setup_size);
    result.setup.assign(image.begin(), setup_end);
    result.kernel.assign(setup_end, image.end());
    if (!initrd.empty()) result.initrd = TRY(read_file(initrd, k_max_initrd_size));
    result.cmdline = std::move(cmdline);
    return result;
}

} // namespace coffer::vmm
