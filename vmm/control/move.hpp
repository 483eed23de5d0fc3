// Move: the home of the running VM goes to another root of this host, and the VM runs on. The client has checked that
// the home's key provider is there.
#pragma once

#include <string>

#include "base/uuid.hpp"
#include "vmm/control/request.hpp"

namespace coffer::vmm::control {

struct MoveAnswer {
    uint64_t stopped_us = 0; // how long the guest stood still
    uint64_t bytes = 0;      // of disks, copied again because the guest wrote them meanwhile
    uint32_t rounds = 0;     // of copying them while the guest ran
    std::string left;        // not empty: why the old home is there still; it is not run any more

    template <class V>
    void fields(V& v) {
        v.required(1, stopped_us);
        v.required(2, bytes);
        v.required(3, rounds);
        v.required(4, left);
    }
};

struct MoveRequest {
    static constexpr RequestType k_type = RequestType::Move;
    static constexpr RequestTraits k_traits{.exclusive = true};
    using Answer = MoveAnswer;

    // HomeRoot: absolute paths, as the client's environment has them.
    std::string root;
    std::string state;
    // That opens the home, as the client saw it; nil where it is unencrypted.
    Uuid provider;

    template <class V>
    void fields(V& v) {
        v.required(1, root);
        v.required(2, state);
        v.required(3, provider);
    }
};

} // namespace coffer::vmm::control
