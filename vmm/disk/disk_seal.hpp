// A disk's keys at work: the cipher of its units and the MAC of everything else. Not thread-safe.
#pragma once

#include "crypto/mac.hpp"
#include "crypto/xts.hpp"
#include "vmm/disk/disk_secrets.hpp"
#include "vmm/disk/disk_spec.hpp"

namespace coffer::vmm {

// Generation and tag of a unit. All zero: the unit was never written, or was deallocated, and reads as zeros.
struct TagEntry {
    uint64_t generation = 0;
    std::array<std::byte, disk_spec::k_tag_size> tag{};

    bool written() const noexcept { return generation != 0; }
    static TagEntry load(Bytes from, size_t offset);
    void store(MutBytes to, size_t offset) const;
};

class DiskSeal {
public:
    static Result<DiskSeal> create(DiskKey const& key, Uuid const& disk);

    // One unit of k_unit_size bytes.
    Result<void> encrypt(uint64_t unit, Bytes from, MutBytes to) { return m_cipher.encrypt_unit(unit, from, to); }
    Result<void> decrypt(uint64_t unit, Bytes from, MutBytes to) { return m_cipher.decrypt_unit(unit, from, to); }

    Result<TagEntry> tag(uint64_t unit, uint64_t generation, Bytes ciphertext);
    Result<bool> matches(TagEntry const& entry, uint64_t unit, Bytes ciphertext);

    Result<crypto::Digest> mac(disk_spec::MacDomain domain, Bytes first, Bytes second = {}, Bytes third = {});
    // MAC of a tag block or table block. A block of zeros has a MAC of zeros: nothing in it was ever written.
    Result<crypto::Digest> block_mac(disk_spec::MacDomain domain, uint64_t index, Bytes block);

private:
    DiskSeal(crypto::XtsCipher cipher, crypto::HmacSha256 mac) : m_cipher(std::move(cipher)), m_mac(std::move(mac)) {}

    crypto::XtsCipher m_cipher;
    crypto::HmacSha256 m_mac;
};

bool all_zero(Bytes bytes) noexcept;

} // namespace coffer::vmm
