#include "vmm/home/home_location.hpp"

#include <cstdlib>

#include "base/bytes.hpp"
#include "crypto/mac.hpp"

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;

// The value of an environment variable that holds an absolute path. XDG asks that others be ignored (XDG Base
// Directory Specification 0.8, "Environment variables").
fs::path absolute_from_environment(char const* name) {
    char const* value = std::getenv(name);
    if (!value) return {};
    fs::path path(value);
    return path.is_absolute() ? path : fs::path();
}

Result<fs::path> xdg_folder(char const* variable, char const* below_home) {
    if (auto path = absolute_from_environment(variable); !path.empty()) return path / "coffer";
    auto home = absolute_from_environment("HOME");
    if (home.empty())
        return make_error(ErrorCode::InvalidArgument,
                          "no place for homes is known: set HOME or {}, or give --home-root DIR", variable);
    return home / below_home / "coffer";
}

// The path without symbolic links and dots, so that one folder has one name.
Result<fs::path> one_name(fs::path const& path) {
    std::error_code error;
    auto absolute = fs::absolute(path, error);
    if (!error) absolute = fs::weakly_canonical(absolute, error);
    if (error) return make_error(ErrorCode::Io, "cannot resolve {}: {}", path.native(), error.message());
    // A trailing slash makes an empty last component.
    return absolute.has_filename() || absolute == absolute.root_path() ? absolute : absolute.parent_path();
}

} // namespace

Result<HomeRoot> HomeRoot::resolve(fs::path const& root) {
    HomeRoot resolved;
    fs::path chosen = root;
    if (chosen.empty()) {
        if (char const* value = std::getenv("COFFER_HOME"); value && *value)
            chosen = value;
        else
            chosen = TRY(xdg_folder("XDG_DATA_HOME", ".local/share"));
    }
    resolved.root = TRY(one_name(chosen));
    auto digest = TRY(crypto::sha256({as_bytes(resolved.root.native())}));
    std::string id;
    for (std::byte byte : Bytes(digest).first(8)) id += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
    resolved.state = TRY(xdg_folder("XDG_STATE_HOME", ".local/state")) / id;
    return resolved;
}

} // namespace coffer::vmm
