// What `clone`, `create --from` and `restore` share: a new VM made of another one's content.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "keyprovider/registry.hpp"
#include "vmm/cli/cloned_disks.hpp"
#include "vmm/cli/home_opener.hpp"
#include "vmm/cli/new_tpm.hpp"
#include "vmm/home/disk_copies.hpp"
#include "vmm/home/settings.hpp"

namespace CLI {
class App;
}

namespace coffer::cli {

struct CloneOptions {
    std::string tpm; // copy, replace, add, or the kind of TPM to add; empty: as the setting says
    std::string pcr_banks;
    std::string provider; // empty: the source's
    std::string disk_folder;
    bool no_disks = false;
};
// Adds --disk-folder and --no-disks.
void add_clone_options(CLI::App& verb, CloneOptions& options);

// What the new VM is made of.
struct CloneSource {
    vmm::VmConfig config;
    ByteVector nvram;
    TpmStateBytes tpm;            // empty where the VM has no TPM
    std::optional<Uuid> provider; // of an encrypted home
    vmm::HistoryKind event = vmm::HistoryKind::Cloned;
    std::string event_text; // what the new home's history begins with; empty: of which VM it is a copy
    // Where the disks come from, and the new configuration's disks; empty: copies of the source's images.
    std::function<Result<vmm::DiskCopies>(vmm::VmConfig& config)> plan_disks;
    DiskSource open_disk; // of encrypted disks
    vmm::DiskCopies::Opener open_layers;
};
// Everything a home holds but its disks.
Result<CloneSource> read_source(vmm::HomeSession& home);

// What becomes of the TPM.
enum class CloneTpm : uint8_t { None, Copy, Replace, Add };
std::string_view to_string(CloneTpm tpm) noexcept;
// InvalidArgument where what was asked for does not go with what the source has. `kind` is the new VM's.
Result<CloneTpm> decide_tpm(CloneOptions const& options, vmm::Settings const& settings, vmm::VmConfig const& source,
                            vmm::TpmKind& kind);

// The new VM's configuration: another name, UUID and time, and no template.
Result<vmm::VmConfig> clone_config(vmm::VmConfig const& source, std::string const& name);

// The provider that the new home comes under; nothing where it is unencrypted.
Result<std::optional<ProviderInfo>> clone_provider(vmm::HomeRoot const& root, CloneOptions const& options,
                                                   CloneSource const& source, vmm::VmConfig const& config);

// Makes the VM `location.name` of `source`, whose home the caller keeps locked while this runs, and says what was done
// and what it means. `change` may change the new configuration (memory, CPUs).
Result<void> make_clone(vmm::HomeLocation const& location, CloneSource source, CloneOptions const& options,
                        HomeOpener& opener, std::function<void(vmm::VmConfig&)> const& change = {});

// What make_clone() says of the TPM, on standard output and as a warning.
void report_clone_tpm(CloneTpm tpm, std::string_view source, std::string_view clone);

} // namespace coffer::cli
