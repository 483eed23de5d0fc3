#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

Error damaged(std::filesystem::path const& path, std::string_view what) {
    return make_error(ErrorCode::Integrity,
                      "{}: {}: it was changed or damaged. Nothing was overwritten; put back an intact copy of the "
                      "whole home",
                      path.native(), what);
}

} // namespace coffer::vmm
