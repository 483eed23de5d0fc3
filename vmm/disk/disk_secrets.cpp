#include "vmm/disk/disk_secrets.hpp"

#include <algorithm>

#include "crypto/random.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm {

namespace {
constexpr uint32_t k_version = 1;
constexpr size_t k_prefix_size = 8; // version, count
constexpr size_t k_record_size = Uuid::k_size + DiskKey::k_size + 8;
} // namespace

Result<DiskSecret> DiskSecret::random() {
    auto uuid = TRY(crypto::random_uuid());
    return DiskSecret{uuid, TRY(DiskKey::random()), 0};
}

Result<DiskSecrets> DiskSecrets::decode(Bytes content) {
    auto malformed = [] { return make_error(ErrorCode::Corrupt, "the list of disk keys is malformed"); };
    if (content.size() < k_prefix_size || load_le<uint32_t>(content, 0) != k_version) return malformed();
    uint64_t const count = load_le<uint32_t>(content, 4);
    if (count > k_max_disks || content.size() != k_prefix_size + count * k_record_size) return malformed();
    DiskSecrets secrets;
    for (Bytes rest = content.subspan(k_prefix_size); !rest.empty(); rest = rest.subspan(k_record_size)) {
        Uuid::Storage uuid;
        std::copy_n(rest.begin(), uuid.size(), uuid.begin());
        auto key = DiskKey::adopt(crypto::SecretBytes::copy_of(rest.subspan(uuid.size(), DiskKey::k_size)));
        COFFER_ASSERT(key);
        if (secrets.find(Uuid(uuid))) return malformed();
        secrets.add({Uuid(uuid), std::move(*key), load_le<uint64_t>(rest, uuid.size() + DiskKey::k_size)});
    }
    return secrets;
}

crypto::SecretBytes DiskSecrets::encode() const {
    crypto::SecretBytes content(k_prefix_size + m_secrets.size() * k_record_size);
    MutBytes to = content.expose_mutable();
    store_le<uint32_t>(to, 0, k_version);
    store_le<uint32_t>(to, 4, static_cast<uint32_t>(m_secrets.size()));
    to = to.subspan(k_prefix_size);
    for (auto const& secret : m_secrets) {
        std::ranges::copy(secret.disk.bytes(), to.begin());
        std::ranges::copy(secret.key.expose(), to.begin() + Uuid::k_size);
        store_le<uint64_t>(to, Uuid::k_size + DiskKey::k_size, secret.epoch);
        to = to.subspan(k_record_size);
    }
    return content;
}

DiskSecret* DiskSecrets::find(Uuid const& disk) noexcept {
    auto found = std::find_if(m_secrets.begin(), m_secrets.end(), [&](auto const& s) { return s.disk == disk; });
    return found == m_secrets.end() ? nullptr : &*found;
}

} // namespace coffer::vmm
