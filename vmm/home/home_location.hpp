// Where homes, key providers and the host's own record of homes lie.
#pragma once

#include <filesystem>
#include <string>

#include "base/result.hpp"
#include "base/uuid.hpp"

namespace coffer::vmm {

// One root is one host as far as homes and providers go: a provider in it serves the homes in it. The host's records
// (last sequence number seen of each home) lie apart, so that copying or restoring a root does not carry them along.
struct HomeRoot {
    std::filesystem::path root;  // absolute: vms/NAME are homes, providers/UUID are key providers
    std::filesystem::path state; // absolute: the host's records for this root

    std::filesystem::path vms() const { return root / "vms"; }
    std::filesystem::path providers() const { return root / "providers"; }

    // `root` empty: $COFFER_HOME, $XDG_DATA_HOME/coffer or ~/.local/share/coffer. The state folder is in
    // $XDG_STATE_HOME/coffer or ~/.local/state/coffer, a folder of its own for each root.
    static Result<HomeRoot> resolve(std::filesystem::path const& root);
};

struct HomeLocation {
    HomeRoot root;
    std::string name; // checked by check_vm_name

    std::filesystem::path folder() const { return root.vms() / name; }
    std::filesystem::path host_record() const { return root.state / name; }
};

} // namespace coffer::vmm
