// Moving a home to another root of this host, such as other storage. No key is needed: its files are copied as they
// are.
//
// The copy is made and synced in the new root first. Then the VM changes hands as between two hosts
// (docs/migration.md), of which each root is one: the new root's record says Arriving, its journal Prepared; the old
// root's record says HandedOver, which is the moment of change; the journal says Started; and only then the old home is
// removed. Stopped anywhere, at most one of the two homes can be opened to write, and move_home() goes on where it was
// stopped.
#pragma once

#include <functional>

#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_location.hpp"
#include "vmm/home/migration_journal.hpp"

namespace coffer::vmm {

// Bytes copied; an error stops the copy, and the home stays where it was.
using MoveProgress = std::function<Result<void>(uint64_t done, uint64_t total)>;

// Busy while a process uses the home, or where it is on its way between hosts; AlreadyExists where `to` has a VM of the
// name, or this VM under another; KeyUnavailable where `to` has not the key provider that opens it; InvalidArgument
// where the folder holds what no home does; NoSpace.
Result<void> move_home(HomeLocation const& from, HomeRoot const& to, MoveProgress const& progress);

// Parts of it, for moves of open homes (vmm/home/open_home_move.hpp).

// KeyUnavailable where `to` has not the provider that opens the home.
Result<void> check_provider(HomeSummary const& summary, HomeRoot const& to);
// What a move that was stopped right before its end left of a home that is elsewhere now. True where there was
// something.
Result<bool> forget_moved(HomeLocation const& location);
// Removes a home that has moved, and says where it went from then on. The caller has its lock.
Result<void> leave_home(HomeLocation const& from, Uuid const& id);
// What the two roots' journals say of a move.
IncomingMigration incoming_move(Uuid const& id, Uuid const& vm, std::string name);
OutgoingMigration outgoing_move(Uuid const& id, Uuid const& vm, std::string name, HomeRoot const& to);

} // namespace coffer::vmm
