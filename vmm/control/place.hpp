// Where a running VM's control socket lies: NAME in $XDG_RUNTIME_DIR/coffer/ROOT, or, where that is not to be had, in
// the folder .run of the root's state folder. ROOT is the name of the state folder: a hash of the root's path.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "vmm/home/home_location.hpp"

namespace coffer::vmm::control {

// A folder that is this user's alone (checked: owner and mode 0700), and the socket's name in it.
struct Place {
    UniqueFd folder;
    std::string name;
    std::filesystem::path path; // for messages

    // By way of the folder's descriptor, so that no home is too deep for the 108 bytes of sun_path (unix(7)).
    std::string address(std::string_view file) const;
};

// Where the process that runs the VM makes its socket; makes the folder. Permission where the folder is open to others.
Result<Place> make_place(HomeLocation const& location);
// Where it may lie, in the order to look: this process may have another environment. Folders that are not there, or
// are open to others, are left out.
std::vector<Place> find_places(HomeLocation const& location);

} // namespace coffer::vmm::control
