#include "crypto/random.hpp"

#include <openssl/rand.h>

#include "crypto/openssl.hpp"

namespace coffer::crypto {

Result<void> random_bytes(MutBytes to) {
    COFFER_ASSERT(to.size() <= INT32_MAX);
    if (::RAND_bytes(writable(to), static_cast<int>(to.size())) != 1) return openssl_error("cannot get random bytes");
    return {};
}

Result<void> random_private_bytes(MutBytes to) {
    COFFER_ASSERT(to.size() <= INT32_MAX);
    if (::RAND_priv_bytes(writable(to), static_cast<int>(to.size())) != 1)
        return openssl_error("cannot get random bytes");
    return {};
}

Result<Uuid> random_uuid() {
    Uuid::Storage bytes{};
    TRY(random_bytes(bytes));
    bytes[6] = (bytes[6] & std::byte{0x0F}) | std::byte{0x40};
    bytes[8] = (bytes[8] & std::byte{0x3F}) | std::byte{0x80};
    return Uuid(bytes);
}

} // namespace coffer::crypto
