// Which backups of homes were made on this host, and which key of which provider opens each: such a key is in use,
// though no home is under it any more. Kept in the host's state folder; copies and backups that were moved are not
// known of.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/uuid.hpp"
#include "vmm/home/home_location.hpp"

namespace coffer::cli {

struct KnownBackup {
    std::string path; // absolute
    Uuid provider;
    std::string key_id;

    template <class V>
    void fields(V& v) {
        v.required(1, path);
        v.required(2, provider);
        v.required(3, key_id);
    }
};

// Adds it, or replaces what was known of that path; forgets backups whose files are gone.
Result<void> note_backup(vmm::HomeRoot const& root, KnownBackup backup);

// Those whose files are where they were made. Integrity where the record is damaged.
Result<std::vector<KnownBackup>> known_backups(vmm::HomeRoot const& root);

} // namespace coffer::cli
