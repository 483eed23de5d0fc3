// The tree of a VM's snapshots, and whether it is suspended: the content of the home's file `snapshots`
// (docs/formats/snapshot.md). Tags are never reused.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/uuid.hpp"
#include "vmm/disk/disk_layers.hpp"

namespace coffer::vmm {

constexpr size_t k_max_snapshots = 64;
constexpr size_t k_max_tag = 64;
constexpr size_t k_max_description = 400;

struct SnapshotRecord {
    Uuid id;
    std::string tag;
    std::string description;
    Uuid parent; // all zeros: none
    int64_t created = 0;
    bool running = false;     // with memory and devices; else the VM was off
    uint64_t memory_size = 0; // where running
    uint32_t disks = 0;       // numbered from 0 as the configuration's writable ones
    // Where each of them was at; a layer of all zeros is its own file. Empty: the home has copies of them.
    std::vector<DiskTop> layers;

    template <class V>
    void fields(V& v) {
        v.required(1, id);
        v.required(2, tag);
        v.required(3, description);
        v.required(4, parent);
        v.required(5, created);
        v.required(6, running);
        v.required(7, memory_size);
        v.required(8, disks);
        v.field(9, layers);
    }
    bool operator==(SnapshotRecord const&) const = default;
};

// What a VM that is not off, and not running either, goes on from.
struct SuspendedRecord {
    std::string image; // file of the home; empty: the VM is not suspended
    int64_t since = 0; // seconds since 1970-01-01 UTC
    bool keep = false; // the image is a snapshot's, and stays when the VM goes on

    template <class V>
    void fields(V& v) {
        v.required(1, image);
        v.required(2, since);
        v.required(3, keep);
    }
};

struct SnapshotIndex {
    std::vector<SnapshotRecord> snapshots; // the oldest first
    Uuid current;                          // the snapshot that the VM's state descends from; all zeros: none
    SuspendedRecord suspended;
    DiskLayers disks;

    template <class V>
    void fields(V& v) {
        v.required(1, snapshots);
        v.required(2, current);
        v.required(3, suspended);
        v.field(4, disks);
    }

    SnapshotRecord const* find(std::string_view tag) const noexcept;
    SnapshotRecord const* find(Uuid const& id) const noexcept;
};

// A tag is 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or digit.
Result<void> check_tag(std::string_view tag);

} // namespace coffer::vmm
