#include "vmm/disk/disk_seal.hpp"

#include <algorithm>

#include "crypto/kdf.hpp"

namespace coffer::vmm {

using disk_spec::MacDomain;

TagEntry TagEntry::load(Bytes from, size_t offset) {
    TagEntry entry;
    entry.generation = load_le<uint64_t>(from, offset);
    std::memcpy(entry.tag.data(), from.subspan(offset + 8, entry.tag.size()).data(), entry.tag.size());
    return entry;
}

void TagEntry::store(MutBytes to, size_t offset) const {
    store_le<uint64_t>(to, offset, generation);
    std::memcpy(to.subspan(offset + 8, tag.size()).data(), tag.data(), tag.size());
}

Result<DiskSeal> DiskSeal::create(DiskKey const& key, Uuid const& disk) {
    auto cipher_key = TRY(crypto::derive_key<crypto::XtsKey>(key.expose(), disk.bytes(), disk_spec::k_cipher_info));
    auto mac_key = TRY(crypto::derive_key<crypto::MacKey>(key.expose(), disk.bytes(), disk_spec::k_mac_info));
    auto cipher = TRY(crypto::XtsCipher::create(cipher_key));
    return DiskSeal(std::move(cipher), TRY(crypto::HmacSha256::create(mac_key)));
}

Result<TagEntry> DiskSeal::tag(uint64_t unit, uint64_t generation, Bytes ciphertext) {
    std::array<std::byte, 17> position{static_cast<std::byte>(MacDomain::Unit)};
    store_le<uint64_t>(position, 1, unit);
    store_le<uint64_t>(position, 9, generation);
    auto digest = TRY(m_mac.compute({position, ciphertext}));
    TagEntry entry;
    entry.generation = generation;
    std::copy_n(digest.begin(), entry.tag.size(), entry.tag.begin());
    return entry;
}

Result<bool> DiskSeal::matches(TagEntry const& entry, uint64_t unit, Bytes ciphertext) {
    auto expected = TRY(tag(unit, entry.generation, ciphertext));
    return crypto::equal_in_constant_time(expected.tag, entry.tag);
}

Result<crypto::Digest> DiskSeal::mac(MacDomain domain, Bytes first, Bytes second, Bytes third) {
    auto byte = static_cast<std::byte>(domain);
    return m_mac.compute({object_bytes(byte), first, second, third});
}

Result<crypto::Digest> DiskSeal::block_mac(MacDomain domain, uint64_t index, Bytes block) {
    if (all_zero(block)) return crypto::Digest{};
    return mac(domain, object_bytes(index), block);
}

bool all_zero(Bytes bytes) noexcept {
    // memcmp of the span against itself, one byte on: the C library's is the fastest that there is.
    return bytes.empty() ||
           (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

} // namespace coffer::vmm
