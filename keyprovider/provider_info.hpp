// What is known of a key provider without its keys: the content of its descriptor, and no secret.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/tagged.hpp"
#include "base/uuid.hpp"

namespace coffer {

enum class ProviderKind : uint8_t { Native = 1, Kmip = 2 };
std::string_view to_string(ProviderKind kind) noexcept;

struct ProviderInfo {
    Uuid id;
    std::string name;
    ProviderKind kind = ProviderKind::Native;
    bool needs_passphrase = false;
    int64_t created = 0; // seconds since 1970-01-01 UTC

    // Native providers alone, from here on.
    uint32_t kdk_version = 1;       // of new KEKs
    uint32_t backed_up_version = 0; // the newest KDK version that is in a backup; 0: there is no backup
    int64_t backed_up = 0;          // time of the last backup, as `created`
    bool require_backup = false;    // no new KEKs of a version that is in no backup

    std::string host_tpm; // the TCTI of the TPM that its keys are sealed to; empty: none

    // Whether whoever copies this host's disk has the provider's keys.
    bool keys_on_disk() const noexcept { return kind == ProviderKind::Native && !needs_passphrase && host_tpm.empty(); }
    // Whether new VMs get keys that are in no backup.
    bool lacks_backup() const noexcept { return kind == ProviderKind::Native && backed_up_version < kdk_version; }

    template <class V>
    void fields(V& v) {
        v.required(1, id);
        v.required(2, name);
        v.required(3, kind);
        v.required(4, needs_passphrase);
        v.required(5, created);
        v.field(6, kdk_version);
        v.field(7, backed_up_version);
        v.field(8, backed_up);
        v.field(9, require_backup);
        v.field(10, host_tpm);
    }
};

} // namespace coffer
