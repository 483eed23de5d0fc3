#include "vmm/home/disk_copies.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.hpp"

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;

Error taken(fs::path const& path) {
    return make_error(ErrorCode::AlreadyExists,
                      "{} is there already, where a copy of a disk would go: move it away, or choose another folder "
                      "with --disk-folder",
                      path.native());
}

} // namespace

Result<DiskCopies> DiskCopies::plan(std::vector<DiskConfig> const& source, std::string const& name,
                                    fs::path const& folder, Opener const& open_content) {
    DiskCopies copies;
    copies.m_disks = source;
    for (auto& disk : copies.m_disks) {
        if (disk.protection != DiskProtection::None || disk.read_only) continue;
        fs::path const from = disk.path;
        struct stat info {};
        if (::stat(from.c_str(), &info) != 0) return errno_error(errno, fmt::format("disk {}", from.native()));
        if (!S_ISREG(info.st_mode))
            return make_error(ErrorCode::InvalidArgument,
                              "disk {} is no file and cannot be copied; --no-disks makes a VM without disks",
                              from.native());
        auto to = (folder.empty() ? from.parent_path() : folder) / (name + "-" + from.filename().native());
        auto fill = [from, disk, open_content](int target, fs::path const& target_name,
                                               CopyProgress const& progress) -> Result<void> {
            if (auto content = open_content ? TRY(open_content(disk)) : nullptr)
                return copy_disk_content(*content, target, target_name, progress);
            auto opened = TRY(open_file(from, O_RDONLY | O_NOCTTY));
            return copy_file_content(opened.get(), from, target, target_name, progress);
        };
        disk.path = to.native();
        TRY(copies.add(std::move(to), static_cast<uint64_t>(info.st_size), fill));
    }
    return copies;
}

Result<void> DiskCopies::add(fs::path to, uint64_t size, Fill fill) {
    struct stat info {};
    bool const twice = std::any_of(m_copies.begin(), m_copies.end(), [&](Copy const& other) { return other.to == to; });
    if (twice || ::lstat(to.c_str(), &info) == 0) return taken(to);
    m_copies.push_back({std::move(to), size, std::move(fill)});
    return {};
}

DiskCopies::~DiskCopies() {
    // What led here is the error to report.
    for (auto const& copy : m_copies) {
        ::unlink(copy.hidden().c_str());
        if (copy.placed) ::unlink(copy.to.c_str());
    }
}

uint64_t DiskCopies::total() const noexcept {
    uint64_t sum = 0;
    for (auto const& copy : m_copies) sum += copy.size;
    return sum;
}

Result<void> DiskCopies::copy(CopyProgress const& progress) {
    uint64_t before = 0;
    for (auto const& copy : m_copies) {
        auto const hidden = copy.hidden();
        TRY(remove_file(hidden)); // what an interrupted attempt left
        auto to = TRY(open_file(hidden, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW));
        auto count = [&](uint64_t done) { return progress(before + done); };
        TRY(copy.fill(to.get(), hidden, count));
        before += copy.size;
    }
    return {};
}

Result<void> DiskCopies::place() {
    for (auto& copy : m_copies) {
        auto const hidden = copy.hidden();
        if (::renameat2(AT_FDCWD, hidden.c_str(), AT_FDCWD, copy.to.c_str(), RENAME_NOREPLACE) != 0) {
            if (errno == EEXIST) return taken(copy.to);
            return errno_error(errno, fmt::format("cannot rename {} to {}", hidden.native(), copy.to.native()));
        }
        copy.placed = true;
        TRY(sync_folder(copy.to.parent_path()));
    }
    return {};
}

} // namespace coffer::vmm
