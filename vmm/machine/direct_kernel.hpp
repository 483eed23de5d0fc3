// A Linux kernel given on the command line, as fw_cfg hands it to OVMF (which boots and measures it).
#pragma once

#include <filesystem>
#include <string>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer::vmm {

constexpr size_t k_max_kernel_size = size_t{512} << 20;
constexpr size_t k_max_initrd_size = size_t{1} << 30;
constexpr size_t k_max_cmdline_size = 2047; // COMMAND_LINE_SIZE of x86 Linux, less the final NUL

// The two parts of a bzImage and what goes with it. Empty `kernel`: the firmware boots from disk.
struct DirectKernel {
    ByteVector setup;  // boot sector and real-mode setup code: (setup_sects + 1) * 512 bytes
    ByteVector kernel; // the rest
    ByteVector initrd;
    std::string cmdline;

    // Refuses what is not a bzImage with an EFI stub (Linux Documentation/arch/x86/boot.rst, protocol 2.11 or later),
    // since OVMF starts it as an EFI image. `initrd` may be empty.
    static Result<DirectKernel> load(std::filesystem::path const& kernel, std::filesystem::path const& initrd,
                                     std::string cmdline);
};

} // namespace coffer::vmm
