// Suspend and snapshots of a running VM. The VM's process does it all; what was written is durable when it answers.
#pragma once

#include <string>

#include "base/uuid.hpp"
#include "vmm/control/request.hpp"

namespace coffer::vmm::control {

// The machine is saved, and its process ends.
struct SuspendRequest {
    static constexpr RequestType k_type = RequestType::Suspend;
    static constexpr RequestTraits k_traits{.exclusive = true};
    using Answer = NoAnswer;

    bool compress = false;

    template <class V>
    void fields(V& v) {
        v.required(1, compress);
    }
};

enum class SnapshotVerb : uint8_t { Take = 1, Delete = 2 };

struct SnapshotAnswer {
    std::string tag;
    uint64_t stopped_ms = 0; // how long the guest stood still

    template <class V>
    void fields(V& v) {
        v.required(1, tag);
        v.required(2, stopped_ms);
    }
};

struct SnapshotRequest {
    static constexpr RequestType k_type = RequestType::Snapshot;
    static constexpr RequestTraits k_traits{.exclusive = true};
    using Answer = SnapshotAnswer;

    SnapshotVerb verb = SnapshotVerb::Take;
    std::string tag;
    std::string description;
    bool compress = false;

    template <class V>
    void fields(V& v) {
        v.required(1, verb);
        v.required(2, tag);
        v.required(3, description);
        v.required(4, compress);
    }
};

} // namespace coffer::vmm::control
