#include "vmm/cli/output.hpp"

#include <unistd.h>

#include "base/file.hpp"
#include "vmm/cli/exit_codes.hpp"

namespace coffer::cli {

Result<int> write_or_print(std::string const& path, std::string_view text) {
    constexpr mode_t k_public = 0644;
    if (path.empty())
        TRY(write_all(STDOUT_FILENO, as_bytes(text), "standard output"));
    else
        TRY(replace_file(path, as_bytes(text), k_public));
    return to_int(ExitCode::Ok);
}

} // namespace coffer::cli
