// Migration of a running VM: the client has a TLS connection to another host, and hands over the VM's end of it; bytes
// that come and go there are the other host's. The VM's process never sees the host's own key, nor the network.
#pragma once

#include "base/uuid.hpp"
#include "crypto/mac.hpp"
#include "vmm/control/request.hpp"

namespace coffer::vmm::control {

// What the client knows of the other end.
struct MigrationPeer {
    crypto::Digest fingerprint{}; // SHA-256 of the other host's certificate
    std::string name;
    std::string place; // HOST:PORT
    std::array<std::byte, 32> exporter{};

    template <class V>
    void fields(V& v) {
        v.required(1, fingerprint);
        v.required(2, name);
        v.required(3, place);
        v.required(4, exporter);
    }
};

enum class MigrationOutcome : uint8_t {
    Moved = 1,     // the other host runs the VM, and this process ends
    StillHere = 2, // it runs here
    Undecided = 3, // it stands still here, and the other host may run it: SettleRequest asks
};

struct MigrateAnswer {
    MigrationOutcome outcome = MigrationOutcome::StillHere;
    uint64_t downtime_us = 0; // from the guest's stop to the other host's word that it runs
    uint64_t total_ms = 0;
    uint64_t bytes = 0; // of memory
    uint32_t rounds = 0;
    uint64_t disk_bytes = 0;

    template <class V>
    void fields(V& v) {
        v.required(1, outcome);
        v.required(2, downtime_us);
        v.required(3, total_ms);
        v.required(4, bytes);
        v.required(5, rounds);
        v.required(6, disk_bytes);
    }
};

struct MigrateRequest {
    static constexpr RequestType k_type = RequestType::Migrate;
    static constexpr RequestTraits k_traits{.exclusive = true, .descriptor = CarriedDescriptor::Socket};
    using Answer = MigrateAnswer;

    MigrationPeer peer;
    bool copy_disks = false;
    bool compress = false;
    uint64_t downtime_ms = 30; // to aim at, of memory

    template <class V>
    void fields(V& v) {
        v.required(1, peer);
        v.required(2, copy_disks);
        v.required(3, compress);
        v.required(4, downtime_ms);
    }
};

struct SettleAnswer {
    MigrationOutcome outcome = MigrationOutcome::Undecided;

    template <class V>
    void fields(V& v) {
        v.required(1, outcome);
    }
};

// To a source that stands still: the descriptor leads to the other host. To a destination that waits for the source: it
// leads to the source, whose question was heard already.
struct SettleRequest {
    static constexpr RequestType k_type = RequestType::Settle;
    static constexpr RequestTraits k_traits{.descriptor = CarriedDescriptor::Socket};
    using Answer = SettleAnswer;

    Uuid migration;
    MigrationPeer peer;

    template <class V>
    void fields(V& v) {
        v.required(1, migration);
        v.required(2, peer);
    }
};

} // namespace coffer::vmm::control
