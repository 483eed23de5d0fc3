// Backup: the running VM's home, at one point in time, written to a file that the client opened.
#pragma once

#include "vmm/control/request.hpp"

namespace coffer::vmm::control {

struct BackupRequest {
    static constexpr RequestType k_type = RequestType::Backup;
    static constexpr RequestTraits k_traits{.exclusive = true, .descriptor = CarriedDescriptor::File};
    using Answer = NoAnswer;

    template <class V>
    void fields(V&) {}
};

} // namespace coffer::vmm::control
