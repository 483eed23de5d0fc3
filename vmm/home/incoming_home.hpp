// A home that comes from another host, file by file as it is stored there. It grows in the hidden folder of a home in
// the making; publish() makes it a home that this host knows to be on its way (Standing::Arriving), which no writer
// opens but open_arriving().
//
// One thread at a time.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "base/file.hpp"
#include "crypto/keys.hpp"
#include "vmm/home/file_copy.hpp"
#include "vmm/home/home_location.hpp"
#include "vmm/home/home_lock.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::vmm {

class HomeInTheMaking;

// Whether a home of this VM may come here under the name. Leftovers of an earlier attempt, which never started, are
// removed on the way. AlreadyExists where another VM has the name, or this host runs the VM already, under whatever
// name; Busy where a process has it; Integrity where this host has seen a newer state of the VM than `sequence`.
Result<void> check_may_arrive(HomeLocation const& location, Uuid const& vm, uint64_t sequence);

class IncomingHome {
public:
    // Busy where another process makes or receives a home of this name.
    static Result<IncomingHome> begin(HomeLocation const& location);

    IncomingHome(IncomingHome&&) noexcept;
    IncomingHome& operator=(IncomingHome&&) = delete;
    // Removes what was not published.
    ~IncomingHome();

    // An empty file in place of one of that name, if any. The name has no folder in it; the caller checks it.
    Result<void> begin_file(std::string const& name);
    Result<void> append(Bytes bytes);
    Result<void> end_file();
    // Where a file of that name is to be made by the caller, who makes it durable before publish(): none is there.
    Result<std::filesystem::path> place_of(std::string const& name);
    // As begin_file() to end_file() of a file that this host has.
    Result<void> copy_file(std::string const& name, std::filesystem::path const& from, CopyProgress const& progress);

    // Where it grows.
    std::filesystem::path folder() const;

    // Disks of the configuration that are elsewhere on this host, by their number: written as the next writing of
    // `config`, which whoever opens the home settles.
    Result<void> move_disks(crypto::BundleKey const& key, std::map<size_t, std::filesystem::path> const& places);

    // Durable, under its name, in place of a home that was handed over; the host's record says that it is arriving,
    // with the home at writing `sequence`. Errors as check_may_arrive(), and Io. Gives the home's lock, which nobody
    // else had since begin().
    Result<HomeLock> publish(Uuid const& vm, uint64_t sequence, Uuid const& migration, bool encrypted = true);

private:
    explicit IncomingHome(HomeLocation location, std::unique_ptr<HomeInTheMaking> making);

    HomeLocation m_location;
    std::unique_ptr<HomeInTheMaking> m_making;
    std::filesystem::path m_path;
    UniqueFd m_file;
    uint64_t m_size = 0;
};

// An arriving home goes, with its record. No error where there is none of that migration. Busy where a process has it.
Result<void> remove_arriving(HomeLocation const& location, Uuid const& migration);

// A home that was handed over by this migration is this host's again, with no process at it; no key is needed. Busy
// where there is one. The caller knows that the other host never runs it.
Result<void> reclaim(HomeLocation const& location, Uuid const& migration);

} // namespace coffer::vmm
