// Moving a home to another root of this host while its session is open, as that of a VM that runs. The states are those
// of home_move.hpp, and what is stopped on the way is finished by move_home().
//
// The home's files are copied while the session goes on to write them; then, with no commit under way, those that were
// written meanwhile. Files of disks that are in use are their user's to copy.
//
// One thread at a time.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <string>

#include "vmm/home/home_lock.hpp"
#include "vmm/home/home_move.hpp"
#include "vmm/home/home_session.hpp"
#include "vmm/home/incoming_home.hpp"

namespace coffer::vmm {

class OpenHomeMove {
public:
    // Names of files in the home that somebody else copies.
    using Others = std::set<std::string>;

    // Makes the hidden folder of a home in the making. Errors as move_home(), but that nobody looks for the key
    // provider: InvalidArgument too where a disk that is none of the home's lies in its folder. `home` outlives this.
    static Result<OpenHomeMove> begin(HomeSession& home, HomeRoot const& to);

    // Where the copies go until finish().
    std::filesystem::path folder() const { return m_copy->folder(); }
    HomeLocation const& target() const noexcept { return m_to; }

    // Brings the copies up to the files that are there, but for `others`. Any number of times.
    Result<void> copy(Others const& others, MoveProgress const& progress);

    // Copies what has changed, calls `rest`, after which `others` are copied and durable, and makes the copy the home:
    // the session is there from then on. Nobody writes to `others` meanwhile. After an error the home is where it was;
    // where is_lost(), it cannot be told where it is until the VM has ended and move_home() was called.
    Result<void> finish(Others const& others, std::function<Result<void>()> const& rest, MoveProgress const& progress);
    bool is_lost() const noexcept { return m_lost; }

    // After finish(): removes the old home. Where that fails, move_home() does it.
    Result<void> remove_old();

private:
    OpenHomeMove(HomeSession& home, HomeLocation to, IncomingHome copy)
        : m_home(&home), m_from(home.location()), m_to(std::move(to)), m_copy(std::move(copy)) {}

    Result<NewPlace> switch_over(HostRecord const& record);
    Result<NewPlace> stay(HostRecord const& record, Error reason);
    NewPlace lose(Error const& reason);
    void undo() noexcept;

    HomeSession* m_home;
    HomeLocation m_from;
    HomeLocation m_to;
    std::optional<IncomingHome> m_copy;
    Uuid m_id;
    std::optional<HomeLock> m_new_lock;
    std::optional<HomeLock> m_old_lock;
    bool m_arrived = false; // the record there says so
    bool m_lost = false;
};

} // namespace coffer::vmm
