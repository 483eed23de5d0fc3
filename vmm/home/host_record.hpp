// What this host knows of a home, kept outside of it: which VM it is and the sequence number of its newest `keys` file.
// It catches a home that was rolled back as a whole, and one that was exchanged for another or for an unencrypted one.
// It does not hold against someone who can write the host's state folder, or who rolls back the whole host.
#pragma once

#include <filesystem>
#include <optional>

#include "base/result.hpp"
#include "base/uuid.hpp"

namespace coffer::vmm {

// Who runs the VM, as far as this host knows (docs/migration.md).
enum class Standing : uint8_t {
    Owner,      // this host
    HandedOver, // another host has it, or is being asked whether it has: here it is not run
    Arriving,   // it is all here, and the other host has not let go of it as far as this one knows
};

struct HostRecord {
    Uuid vm;
    bool encrypted = false;
    uint64_t sequence = 0; // 0 in unencrypted homes
    Standing standing = Standing::Owner;
    Uuid migration = {}; // of all standings but Owner

    bool operator==(HostRecord const&) const = default;
};

// Nothing where the host has none. Integrity where it is damaged.
Result<std::optional<HostRecord>> read_host_record(std::filesystem::path const& path);
// Durable on success; makes the folder.
Result<void> write_host_record(std::filesystem::path const& path, HostRecord const& record);
// No error where there is none.
Result<void> remove_host_record(std::filesystem::path const& path);

} // namespace coffer::vmm
