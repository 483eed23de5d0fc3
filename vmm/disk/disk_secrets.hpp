// The keys of a VM's encrypted disks: the content of the home's file `disks` (docs/formats/disk.md, "Keys").
#pragma once

#include <vector>

#include "base/uuid.hpp"
#include "crypto/keys.hpp"

namespace coffer::vmm {

// Root of a disk's keys, random, for the disk's life.
using DiskKey = crypto::Key<struct DiskKeyTag, 64>;

struct DiskSecret {
    Uuid disk;
    DiskKey key;
    uint64_t epoch = 0; // the least that the header of an authenticated disk may have

    static Result<DiskSecret> random();
};

class DiskSecrets {
public:
    // Corrupt where it is not what encode() makes.
    static Result<DiskSecrets> decode(Bytes content);
    crypto::SecretBytes encode() const;

    // Null where there is none.
    DiskSecret* find(Uuid const& disk) noexcept;
    void add(DiskSecret secret) { m_secrets.push_back(std::move(secret)); }
    bool empty() const noexcept { return m_secrets.empty(); }

private:
    std::vector<DiskSecret> m_secrets;
};

} // namespace coffer::vmm
