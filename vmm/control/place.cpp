#include "vmm/control/place.hpp"

#include <cstdlib>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace coffer::vmm::control {

namespace {

namespace fs = std::filesystem;

// XDG Base Directory Specification 0.8: absolute, the user's own, and mode 0700; anything else is not to be used.
fs::path runtime_folder() {
    char const* value = std::getenv("XDG_RUNTIME_DIR");
    if (!value || !fs::path(value).is_absolute()) return {};
    struct stat info {};
    if (::stat(value, &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != ::geteuid() || (info.st_mode & 0077) != 0)
        return {};
    return value;
}

std::vector<fs::path> folders_of(HomeRoot const& root) {
    std::vector<fs::path> folders;
    if (auto runtime = runtime_folder(); !runtime.empty())
        folders.push_back(runtime / "coffer" / root.state.filename());
    folders.push_back(root.state / ".run"); // no VM's name begins with a dot
    return folders;
}

Result<Place> open_place(fs::path const& folder, std::string const& name) {
    auto fd = TRY(open_file(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return errno_error(errno, fmt::format("cannot stat {}", folder.native()));
    if (info.st_uid != ::geteuid() || (info.st_mode & 0077) != 0)
        return make_error(ErrorCode::Permission,
                          "{} has to be yours and closed to others (chmod 0700): the sockets in it control your VMs",
                          folder.native());
    return Place{std::move(fd), name, folder / name};
}

} // namespace

std::string Place::address(std::string_view file) const {
    return fmt::format("/proc/self/fd/{}/{}", folder.get(), file);
}

Result<Place> make_place(HomeLocation const& location) {
    auto folder = folders_of(location.root).front();
    TRY(make_folders(folder));
    return open_place(folder, location.name);
}

std::vector<Place> find_places(HomeLocation const& location) {
    std::vector<Place> places;
    for (auto const& folder : folders_of(location.root))
        if (auto place = open_place(folder, location.name)) places.push_back(std::move(*place));
    return places;
}

} // namespace coffer::vmm::control
