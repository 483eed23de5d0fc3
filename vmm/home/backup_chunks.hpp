// A disk's content in a backup, chunk by chunk. Private to vmm/home.
#pragma once

#include <optional>

#include "vmm/home/backup_format.hpp"

namespace coffer::vmm {

// Seals or opens the chunks of one disk part, in the order of their numbers, and keeps the chain over them.
class BackupChunks {
public:
    // Without a key chunks stand as they are, with part of a SHA-256 for a tag.
    static Result<BackupChunks> create(BackupKey const* key, BackupPart const& part);

    // What stands in the backup: number, content, tag.
    Result<ByteVector> seal(uint64_t number, Bytes content);
    // Integrity, without a path, where `stored` is not what seal() gave. The content stands in `to`, which is as long.
    Result<void> open(uint64_t number, Bytes stored, MutBytes to);

    crypto::Digest const& chain() const noexcept { return m_chain; }

private:
    using Tag = std::array<std::byte, backup_spec::k_chunk_tag_size>;

    BackupChunks() = default;
    Result<Tag> checksum(uint64_t number, Bytes content) const;
    Result<void> add_to_chain(uint64_t number, Bytes tag);

    std::optional<crypto::AeadKey> m_key;
    std::array<std::byte, 8> m_additional{}; // the disk's size
    crypto::Digest m_chain{};
};

} // namespace coffer::vmm
