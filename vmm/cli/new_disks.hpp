// The disks of a VM that is being created, as `--disk`, `--encrypt-disks` and `--integrity` say.
#pragma once

#include <string>
#include <vector>

#include "vmm/disk/disk_secrets.hpp"
#include "vmm/home/home_admin.hpp"

namespace coffer::cli {

class NewDisks {
public:
    // `given` are the values of --disk. Writes nothing. InvalidArgument, NotFound.
    static Result<NewDisks> plan(std::vector<std::string> const& given, vmm::DiskProtection protection);

    std::vector<vmm::DiskConfig> const& configs() const noexcept { return m_configs; }
    // For create_home(); `vm` is the VM's UUID. Refers to this object.
    vmm::NewDisks for_home(Uuid const& vm) const;
    // What was encrypted, and lies unencrypted where it was.
    std::vector<std::string> imported() const;

private:
    struct Source {
        std::string path;  // absolute; empty: a new, empty disk
        uint64_t size = 0; // bytes
    };
    Result<void> make_images(Uuid const& vm, std::filesystem::path const& folder) const;

    std::vector<vmm::DiskConfig> m_configs;
    std::vector<Source> m_sources;          // where encrypted: one for each disk
    std::vector<vmm::DiskSecret> m_secrets; // the same
    crypto::SecretBytes m_encoded;
};

// "10 GiB, encrypted, unauthenticated", for people.
std::string_view describe(vmm::DiskProtection protection) noexcept;

} // namespace coffer::cli
