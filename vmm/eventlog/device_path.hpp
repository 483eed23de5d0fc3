// EFI device paths as short text, as UEFI 2.10, 10.6 ("Device Path Generic Text") has it for the node types that boot
// paths are made of. Hostile input, bounded.
#pragma once

#include <string>

#include "base/bytes.hpp"

namespace coffer::vmm {

// "PciRoot(0x0)/Pci(0x3,0x0)/NVMe(0x1,...)"; nodes without a text of their own are "Path(type,subtype,bytes)". What is
// malformed ends the text with "...".
std::string device_path_text(Bytes path);

// "8BE4DF61-93CA-11D2-AA0D-00E098032B8C": the first three fields of a GUID are little-endian.
std::string guid_text(Bytes guid);

// UTF-16LE up to a NUL, as UTF-8; unpaired surrogates and control characters become '?'.
std::string utf16_text(Bytes text);
// ASCII up to a NUL; other bytes become '?'.
std::string ascii_text(Bytes text);

} // namespace coffer::vmm
