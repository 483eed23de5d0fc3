// Backup: the running VM's home, at one point in time, written to a file that the client opened.
#pragma once

#include <string>

#include "keyprovider/registry.hpp"
#include "vmm/control/request.hpp"

namespace coffer::vmm::control {

struct BackupRequest {
    static constexpr RequestType k_type = RequestType::Backup;
    static constexpr RequestTraits k_traits{.exclusive = true, .descriptor = CarriedDescriptor::File};
    using Answer = NoAnswer;

    // Of the home's provider, for whoever reads the backup's header: this process does not look providers up.
    std::string provider_name;
    ProviderKind provider_kind = ProviderKind::Native;

    template <class V>
    void fields(V& v) {
        v.required(1, provider_name);
        v.required(2, provider_kind);
    }
};

} // namespace coffer::vmm::control
