// How a cluster of a machine image is encrypted and tagged. In an unencrypted home it is neither, and a digest finds
// damage. Private to vmm/snapshot. Not thread-safe.
#pragma once

#include <optional>

#include "crypto/gmac.hpp"
#include "crypto/mac.hpp"
#include "crypto/xts.hpp"
#include "vmm/home/data_file.hpp"

namespace coffer::vmm {

class ClusterCipher {
public:
    using Tag = crypto::Gmac::Tag;

    // Null `keys`: those of an unencrypted home.
    static Result<ClusterCipher> create(ImageKeys const* keys) {
        ClusterCipher cipher;
        if (keys) {
            cipher.m_xts = TRY(crypto::XtsCipher::create(keys->cipher));
            cipher.m_gmac = TRY(crypto::Gmac::create(keys->units));
        }
        return cipher;
    }

    // `stored` has the size of `plain`.
    Result<Tag> seal(uint64_t cluster, Bytes plain, MutBytes stored) {
        if (m_xts)
            TRY(m_xts->encrypt_unit(cluster, plain, stored));
        else
            std::memcpy(stored.data(), plain.data(), plain.size());
        return tag(cluster, stored);
    }
    // In place. False: it is not what seal() made, and `stored` is as it was.
    Result<bool> open(uint64_t cluster, Tag const& expected, MutBytes stored) {
        if (!crypto::equal_in_constant_time(TRY(tag(cluster, stored)), expected)) return false;
        if (m_xts) TRY(m_xts->decrypt_unit(cluster, stored, stored));
        return true;
    }

private:
    ClusterCipher() = default;
    Result<Tag> tag(uint64_t cluster, Bytes stored) {
        if (m_gmac) return m_gmac->compute(cluster, stored);
        auto digest = TRY(crypto::sha256({object_bytes(cluster), stored}));
        Tag tag;
        std::copy_n(digest.begin(), tag.size(), tag.begin());
        return tag;
    }

    std::optional<crypto::XtsCipher> m_xts;
    std::optional<crypto::Gmac> m_gmac;
};

} // namespace coffer::vmm
