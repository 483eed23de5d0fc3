// The header of an encrypted disk image (docs/formats/disk.md, "Header").
#pragma once

#include <filesystem>

#include "vmm/disk/disk_seal.hpp"
#include "vmm/disk/disk_spec.hpp"

namespace coffer::vmm {

struct DiskHeader {
    DiskProtection protection = DiskProtection::Unauthenticated;
    disk_spec::Layout layout;
    uint64_t epoch = 0;      // one more at each writing of the header
    uint64_t generation = 0; // of the next writing of a unit; authenticated disks
    Uuid disk;
    Uuid vm;
    int64_t created = 0; // seconds since 1970-01-01 UTC
    crypto::Digest root{};
};

// What the bytes say, unauthenticated; geometry is within its limits. Integrity where it is no header; `path` is for
// the message.
Result<DiskHeader> parse_disk_header(Bytes header, std::filesystem::path const& path);
// The same, and its MAC is right.
Result<DiskHeader> open_disk_header(Bytes header, DiskSeal& seal, std::filesystem::path const& path);
Result<ByteVector> seal_disk_header(DiskHeader const& header, DiskSeal& seal);

} // namespace coffer::vmm
