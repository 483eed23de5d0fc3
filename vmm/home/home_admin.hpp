// Making, removing and looking at homes.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmm/home/home_history.hpp"
#include "vmm/home/home_location.hpp"
#include "vmm/home/home_seal.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm {

// The encrypted disks of a new home.
struct NewDisks {
    Bytes secrets; // content of HomeFile::Disks; empty where there are none
    // Makes the images, durable, in the folder that becomes the home.
    std::function<Result<void>(std::filesystem::path const& folder)> make_images;
};

// What a new home holds besides its configuration.
struct HomeContents {
    Bytes nvram;
    Bytes tpm; // state of the TPM; empty where the VM has none
    NewDisks disks = {};
    // What befell the home that this one continues, and what made it this one.
    std::vector<HistoryEvent> history = {};
    HistoryKind event = HistoryKind::Created;
    std::string event_text = {}; // empty: the VM's UUID
};

// The home appears whole or not at all. No seal: an unencrypted home, which cannot have a TPM. AlreadyExists,
// InvalidArgument, Io, NoSpace.
Result<void> create_home(HomeLocation const& location, VmConfig const& config, HomeContents const& contents,
                         std::optional<HomeSeal> seal);
Result<void> create_home(HomeLocation const& location, VmConfig const& config, Bytes nvram,
                         std::optional<HomeSeal> seal, Bytes tpm = {}, NewDisks const& disks = {});

// As create_home(), of a VM that this host may know: the new home counts on from writing `sequence` of its `keys`, or
// from what the host's record of the same VM says where that is more, so that no home of before can take its place.
Result<void> restore_home(HomeLocation const& location, VmConfig const& config, HomeContents const& contents,
                          std::optional<HomeSeal> seal, uint64_t sequence);

// Takes the home's lock (Busy while the VM runs), and needs no key. The host's record goes too.
Result<void> remove_home(HomeLocation const& location);

struct HomeFileSummary {
    std::string name;
    uint64_t content_size = 0; // bytes
    uint64_t generation = 0;
    int64_t written = 0; // seconds since 1970-01-01 UTC
};

// What a home shows without keys; none of it is authenticated.
struct HomeSummary {
    std::string name;
    Uuid uuid;
    bool encrypted = false;
    Uuid provider;      // nil where not encrypted
    std::string key_id; // empty where not encrypted
    uint64_t sequence = 0;
    std::vector<HomeFileSummary> files;
    std::optional<pid_t> running; // the process that holds the lock
};

// Integrity where the home's files are malformed.
Result<HomeSummary> summarize_home(HomeLocation const& location);

// The process that holds the home's lock, as HomeLock::holder().
Result<std::optional<pid_t>> home_user(HomeLocation const& location);

// NotFound; says where the VM is where it has moved to another root of this host.
Error no_such_home(HomeLocation const& location);

// Names of the homes in a root, sorted; folders whose names cannot be VMs' names are left out.
Result<std::vector<std::string>> list_homes(HomeRoot const& root);

} // namespace coffer::vmm
