#include "vmm/home/backup_chunks.hpp"

#include "crypto/aead.hpp"
#include "crypto/kdf.hpp"

namespace coffer::vmm {

namespace {
namespace spec = backup_spec;

// The number is used once: each part has a key of its own.
crypto::GcmNonce nonce_for(uint64_t number) noexcept {
    crypto::GcmNonce nonce{};
    store_le<uint64_t>(nonce, 0, number);
    return nonce;
}
} // namespace

Result<BackupChunks> BackupChunks::create(BackupKey const* key, BackupPart const& part) {
    BackupChunks chunks;
    if (key)
        chunks.m_key = TRY(crypto::derive_key<crypto::AeadKey>(key->expose(), part.salt.bytes(), spec::k_disk_info));
    store_le<uint64_t>(chunks.m_additional, 0, part.content_size);
    return chunks;
}

Result<BackupChunks::Tag> BackupChunks::checksum(uint64_t number, Bytes content) const {
    auto digest = TRY(crypto::sha256({m_additional, nonce_for(number), content}));
    Tag tag;
    std::memcpy(tag.data(), digest.data(), tag.size());
    return tag;
}

Result<void> BackupChunks::add_to_chain(uint64_t number, Bytes tag) {
    m_chain = TRY(crypto::sha256({m_chain, nonce_for(number), tag}));
    return {};
}

Result<ByteVector> BackupChunks::seal(uint64_t number, Bytes content) {
    ByteVector stored(spec::k_chunk_number_size);
    store_le<uint64_t>(stored, 0, number);
    if (m_key) {
        append(stored, TRY(crypto::gcm_seal(*m_key, nonce_for(number), m_additional, content)));
    } else {
        append(stored, content);
        append(stored, TRY(checksum(number, content)));
    }
    TRY(add_to_chain(number, Bytes(stored).last(spec::k_chunk_tag_size)));
    return stored;
}

Result<void> BackupChunks::open(uint64_t number, Bytes stored, MutBytes to) {
    COFFER_ASSERT(stored.size() == to.size() + spec::k_chunk_overhead);
    Bytes const sealed = stored.subspan(spec::k_chunk_number_size);
    Bytes const tag = sealed.last(spec::k_chunk_tag_size);
    TRY(add_to_chain(number, tag));
    if (m_key) {
        auto opened = TRY(crypto::gcm_open(*m_key, nonce_for(number), m_additional, sealed));
        std::memcpy(to.data(), opened.expose().data(), to.size());
        return {};
    }
    auto const expected = TRY(checksum(number, sealed.first(to.size())));
    if (!crypto::equal_in_constant_time(expected, tag))
        return make_error(ErrorCode::Integrity, "a chunk does not match its checksum");
    std::memcpy(to.data(), sealed.data(), to.size());
    return {};
}

} // namespace coffer::vmm
