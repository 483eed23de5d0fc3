// One writer a home: an open-file-description lock on its `lock` file (fcntl(2), F_OFD_SETLK). The kernel releases it
// when the process ends in any way, so no lock is ever stale.
#pragma once

#include <filesystem>
#include <optional>

#include <sys/types.h>

#include "base/file.hpp"

namespace coffer::vmm {

class HomeLock {
public:
    // Busy, naming the holder, where another process (or another lock of this one) has it.
    static Result<HomeLock> acquire(std::filesystem::path const& folder);

    // The process that holds the lock; 0 where it is held and the holder is not known; nothing where it is free.
    static Result<std::optional<pid_t>> holder(std::filesystem::path const& folder);

private:
    explicit HomeLock(UniqueFd fd) : m_fd(std::move(fd)) {}

    UniqueFd m_fd;
};

} // namespace coffer::vmm
