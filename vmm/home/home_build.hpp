// A home in the making: a folder `.NAME.new` beside the homes, which becomes the home in one step. Private to vmm/home.
#pragma once

#include <filesystem>
#include <optional>
#include <utility>

#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_lock.hpp"
#include "vmm/home/host_record.hpp"
#include "vmm/home/key_bundle.hpp"

namespace coffer::vmm {

// Whether anything is there, a dangling symbolic link included.
bool present(std::filesystem::path const& path);
// With what is in it; no error where it is not there. Does not follow symbolic links.
Result<void> remove_tree(std::filesystem::path const& folder);
// Where remove_home() puts a home before it deletes it.
std::filesystem::path old_folder(HomeLocation const& location);
Error home_exists(HomeLocation const& location);

// Removes what a crash in an earlier making, conversion or removal left beside the home, which may be an unencrypted
// form of it. The caller has the home's lock. A making that another process is at is left alone.
Result<void> sweep_leftovers(HomeLocation const& location);

class HomeInTheMaking {
public:
    // Empties the folder of what a crash left in it. Busy where another process makes a home of this name.
    static Result<HomeInTheMaking> begin(HomeLocation const& location);

    HomeInTheMaking(HomeInTheMaking&& other) noexcept
        : m_location(std::move(other.m_location)), m_lock(std::exchange(other.m_lock, std::nullopt)),
          m_published(other.m_published) {}
    HomeInTheMaking& operator=(HomeInTheMaking&&) = delete;
    // Removes the folder, where there is one still: the unfinished home, or the one it was exchanged for.
    ~HomeInTheMaking();

    // A home of its own data encryption key; unencrypted without `seal`. `sequence` is that of its `keys`.
    Result<void> write(VmConfig const& config, HomeContents const& contents, HomeSeal const* seal, uint64_t sequence);

    // Makes it the home of a name that no home has (AlreadyExists), and `record` what the host knows of it.
    Result<void> publish(HostRecord const& record);
    // Makes it the home in place of the one that is there, whose lock the caller has.
    Result<void> exchange();
    // After either: its lock, which is the home's since, and removes what is left of the making.
    HomeLock end();

    std::filesystem::path folder() const;

private:
    HomeInTheMaking(HomeLocation location, HomeLock lock) : m_location(std::move(location)), m_lock(std::move(lock)) {}
    HomeLocation m_location;
    std::optional<HomeLock> m_lock; // nothing once it is moved from
    bool m_published = false;
};

} // namespace coffer::vmm
