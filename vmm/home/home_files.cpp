#include "vmm/home/home_files.hpp"

#include <algorithm>

#include "vmm/home/home_spec.hpp"

namespace coffer::vmm {

namespace fs = std::filesystem;

Result<std::vector<HomeFileOnDisk>> list_home_files(fs::path const& folder) {
    std::vector<HomeFileOnDisk> files;
    std::error_code error;
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
        auto const name = it->path().filename().native();
        if (name == home_spec::k_lock_file || name.starts_with('.')) continue;
        // A running VM may drop a file meanwhile.
        std::error_code unknown;
        auto const status = it->symlink_status(unknown);
        if (!fs::exists(status)) continue;
        if (!fs::is_regular_file(status))
            return make_error(ErrorCode::InvalidArgument,
                              "{} is no regular file, and no part of a home: put it elsewhere first",
                              it->path().native());
        auto const size = it->file_size(unknown);
        if (!unknown) files.push_back({name, size});
    }
    if (error) return make_error(ErrorCode::Io, "cannot read {}: {}", folder.native(), error.message());
    std::ranges::sort(files, {}, &HomeFileOnDisk::name);
    return files;
}

} // namespace coffer::vmm
