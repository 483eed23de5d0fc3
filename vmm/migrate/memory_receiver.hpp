// The destination's RAM, filled from the source's batches. A batch comes from a peer: each field is checked before it
// is used, and nothing outside of RAM is written whatever it says.
#pragma once

#include <memory>

#include "crypto/mac.hpp"
#include "vmm/migrate/memory_batch.hpp"
#include "vmm/migrate/memory_pages.hpp"

struct ZSTD_DCtx_s;

namespace coffer::vmm {

class MemoryReceiver {
public:
    // `parts` as GuestRam::parts() gives them, all zeros; they outlive this and nobody else touches them meanwhile.
    static Result<std::unique_ptr<MemoryReceiver>> create(std::vector<MutBytes> parts);
    ~MemoryReceiver();
    MemoryReceiver(MemoryReceiver const&) = delete;
    MemoryReceiver& operator=(MemoryReceiver const&) = delete;

    // One batch, whole. Corrupt where it is malformed: the migration is then to be given up.
    Result<void> take(Bytes batch);

    uint64_t ram_pages() const noexcept { return m_numbers.count(); }
    uint64_t pages_seen() const noexcept { return m_seen.count(); }
    // MemorySender::digest() of the batches so far.
    crypto::Digest const& digest() const noexcept { return m_digest; }
    // After the last batch: every page came at least once, and `digest` is the sender's. Else Integrity.
    Result<void> finish(crypto::Digest const& digest) const;

private:
    explicit MemoryReceiver(std::vector<MutBytes> parts);

    RamPages m_numbers;
    PageSet m_seen;
    PageSet m_written; // holds content: to be wiped where zeros come
    ByteVector m_content;
    crypto::Digest m_digest{};
    struct FreeContext {
        void operator()(ZSTD_DCtx_s* context) const noexcept;
    };
    std::unique_ptr<ZSTD_DCtx_s, FreeContext> m_zstd;
};

} // namespace coffer::vmm
