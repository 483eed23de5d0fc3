// The encrypted disks of a clone: content of another VM's, under keys of their own.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "vmm/disk/disk_secrets.hpp"
#include "vmm/disk/encrypted_disk.hpp"
#include "vmm/home/home_admin.hpp"

namespace coffer::cli {

// Opens a disk of the VM that is copied. `folder` is the new home in the making; what is made there for this, the
// caller of the function removes: it is `folder / k_disk_source`.
using DiskSource =
    std::function<Result<std::unique_ptr<vmm::EncryptedDisk>>(vmm::DiskConfig const&, std::filesystem::path const&)>;
constexpr std::string_view k_disk_source = ".disk-source.tmp";

class ClonedDisks {
public:
    // Gives the encrypted disks of `config`, which is the new VM's, UUIDs and keys of their own. Unsupported where
    // there are some and `source` is empty.
    static Result<ClonedDisks> plan(vmm::VmConfig& config, DiskSource source);

    // This object must outlive what it gives.
    vmm::NewDisks for_home(Uuid const& vm) const;

private:
    struct Item {
        vmm::DiskConfig from;
        vmm::DiskConfig to;
        vmm::DiskSecret secret;
    };

    ClonedDisks() = default;
    Result<void> make(Uuid const& vm, std::filesystem::path const& folder) const;

    std::vector<Item> m_items;
    crypto::SecretBytes m_secrets;
    DiskSource m_source;
};

} // namespace coffer::cli
