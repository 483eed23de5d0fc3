// Status: what the process that runs a VM says of it.
#pragma once

#include "vmm/control/request.hpp"

namespace coffer::vmm::control {

enum class RunState : uint8_t {
    Running = 1,
    Ending = 2, // it powers off, or was stopped
};

struct StatusAnswer {
    std::string backend; // "kvm" or "soft"
    uint32_t pid = 0;
    uint64_t uptime_ms = 0; // since the guest was powered on
    RunState state = RunState::Running;

    template <class V>
    void fields(V& v) {
        v.required(1, backend);
        v.required(2, pid);
        v.required(3, uptime_ms);
        v.required(4, state);
    }
};

struct StatusRequest {
    static constexpr RequestType k_type = RequestType::Status;
    static constexpr RequestTraits k_traits{};
    using Answer = StatusAnswer;

    template <class V>
    void fields(V&) {}
};

} // namespace coffer::vmm::control
