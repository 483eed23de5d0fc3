// Small files of tagged fields, providers' and others': magic (8 bytes), format version, size of the fields (u32 each,
// little-endian), fields, SHA-256 over all before it. The digest finds damage; it keeps nobody from changing a file.
#pragma once

#include <filesystem>
#include <string_view>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer {

struct CheckedFileFormat {
    std::string_view magic; // 8 characters
    uint32_t version;
    size_t max_size; // of the whole file
};

// The file gets mode 0600.
Result<void> write_checked_file(std::filesystem::path const& path, CheckedFileFormat const& format, Bytes fields);
// The fields. Integrity where the file is damaged or of another format.
Result<ByteVector> read_checked_file(std::filesystem::path const& path, CheckedFileFormat const& format);

// Integrity, for fields that make no sense either.
Error damaged_provider_file(std::filesystem::path const& path);

} // namespace coffer
