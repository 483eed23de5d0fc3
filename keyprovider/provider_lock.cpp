#include "keyprovider/provider_lock.hpp"

#include <cerrno>
#include <fcntl.h>
#include <sys/file.h>

namespace coffer {

Result<UniqueFd> lock_provider(std::filesystem::path const& folder, ProviderUse use) {
    auto path = folder / "lock";
    auto fd = open_file(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NOCTTY, 0600);
    if (!fd && fd.error().code() == ErrorCode::NotFound)
        return make_error(ErrorCode::KeyUnavailable, "the key provider is gone: {} is missing", folder.native());
    auto lock = TRY(std::move(fd));
    int const how = use == ProviderUse::Shared ? LOCK_SH : LOCK_EX | LOCK_NB;
    while (::flock(lock.get(), how) != 0) {
        if (errno == EWOULDBLOCK)
            return make_error(ErrorCode::Busy,
                              "another process makes or changes keys of this provider: try again when it is done ({})",
                              path.native());
        if (errno != EINTR) return errno_error(errno, fmt::format("cannot lock {}", path.native()));
    }
    return lock;
}

} // namespace coffer
