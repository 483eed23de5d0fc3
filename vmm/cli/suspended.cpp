#include "vmm/cli/suspended.hpp"

#include "vmm/snapshot/snapshot_store.hpp"

namespace coffer::cli {

Result<void> refuse_suspended(vmm::HomeSession& home, std::string_view wanted) {
    auto const store = TRY(vmm::SnapshotStore::open(home));
    if (!store.suspended()) return {};
    auto const& name = home.config().name;
    return make_error(ErrorCode::Busy,
                      "VM '{}' is suspended, and part of its state is in its memory: 'coffer resume {}' and power it "
                      "off before {}, or give that memory up with 'coffer run {} --discard-suspended'",
                      name, name, wanted, name);
}

Result<bool> has_snapshots(vmm::HomeSession& home) {
    return !TRY(vmm::SnapshotStore::open(home)).index().snapshots.empty();
}

} // namespace coffer::cli
