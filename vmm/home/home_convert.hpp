// An unencrypted home becomes an encrypted one, and the reverse.
#pragma once

#include <optional>

#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_session.hpp"

namespace coffer::vmm {

// Replaces the home that `session` has open to write by one with this configuration (of the same VM), the same UEFI
// variables, this TPM state (empty: none), and, with `seal`, under a new bundle key and data encryption key; without,
// unencrypted. Its history goes on with `event`. One of the two homes must be encrypted and the other not. After a
// crash at any point, or an error, the home is the old or the new one, whole. InvalidArgument where the home has
// snapshots. `session` must not be used afterwards, but to end it.
Result<void> convert_home(HomeLocation const& location, HomeSession& session, VmConfig const& config, Bytes tpm,
                          std::optional<HomeSeal> seal, HistoryKind event);

// InvalidArgument: a TPM neither comes nor goes in a VM with snapshots, which are of the VM as it was.
Error has_snapshots(std::string_view vm);

} // namespace coffer::vmm
