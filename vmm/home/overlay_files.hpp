// Overlays of disks in a home's folder, as they show without keys (docs/formats/snapshot.md, "Disks").
#pragma once

#include <string_view>

#include "vmm/home/home_location.hpp"

namespace coffer::vmm {

constexpr std::string_view k_overlay_prefix = "overlay-";

// Whether some of what a VM wrote to its disks may be in its home.
inline bool has_overlay_files(HomeLocation const& location) {
    std::error_code failed;
    for (auto const& entry : std::filesystem::directory_iterator(location.folder(), failed))
        if (entry.path().filename().native().starts_with(k_overlay_prefix)) return true;
    return false;
}

} // namespace coffer::vmm
