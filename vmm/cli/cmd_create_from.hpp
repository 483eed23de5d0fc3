// `coffer create NAME --from TEMPLATE`, as `create` calls it.
#pragma once

#include <optional>

#include "vmm/cli/cloning.hpp"
#include "vmm/cli/context.hpp"

namespace coffer::cli {

struct CreateFrom {
    std::string name;
    std::string source;
    CloneOptions options;
    std::optional<uint64_t> memory; // bytes; nothing: the template's
    std::optional<uint32_t> cpus;
    bool encrypt = false; // the home, where the template's is not
    int passphrase_fd = -1;
};

Result<int> create_from(Context const& context, CreateFrom const& request);

} // namespace coffer::cli
