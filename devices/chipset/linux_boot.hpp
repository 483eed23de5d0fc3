// Direct kernel boot: the fw_cfg items from which OVMF makes a virtual file system with kernel and initrd, and boots.
// Source: Linux Documentation/arch/x86/boot.rst ("The real-mode kernel header").
#pragma once

#include <string_view>

#include "devices/chipset/fw_cfg.hpp"

namespace coffer::devices {

// Refuses (InvalidArgument) what is not a bzImage of boot protocol 2.06 or later. `initrd` may be empty.
Result<void> add_linux_boot(FwCfg& fw_cfg, Bytes kernel, ByteVector initrd, std::string_view command_line);

} // namespace coffer::devices
