#include "crypto/secret.hpp"

#include <mutex>

#include <openssl/crypto.h>

#include "crypto/random.hpp"

namespace coffer::crypto {

namespace {
constexpr size_t k_heap_size = size_t{256} << 10; // powers of two, by CRYPTO_secure_malloc_init(3)
constexpr size_t k_smallest_block = 32;

// CRYPTO_secure_malloc_init(3): 1 is success, 2 is success without memory locking or guard pages, 0 is failure.
int init_heap_once() noexcept {
    static std::once_flag once;
    static int result = 0;
    std::call_once(once, [] { result = ::CRYPTO_secure_malloc_init(k_heap_size, k_smallest_block); });
    return result;
}
} // namespace

Result<void> init_secret_memory() {
    if (init_heap_once() != 1)
        return make_error(ErrorCode::Permission,
                          "this host does not let coffer lock {} KiB of memory for keys: raise the locked-memory limit "
                          "(ulimit -l)",
                          k_heap_size >> 10);
    return {};
}

SecretBytes::SecretBytes(size_t size) {
    if (size == 0) return;
    if (auto ready = init_secret_memory(); !ready) abort_with(ready.error().message());
    // Unlike its name says, OPENSSL_secure_zalloc falls back to the common heap where the secure one is not set up;
    // it is by now.
    m_data = static_cast<std::byte*>(OPENSSL_secure_zalloc(size));
    if (!m_data) abort_with("the memory for keys is used up");
    m_size = size;
}

Result<SecretBytes> SecretBytes::random(size_t size) {
    SecretBytes secret(size);
    TRY(random_private_bytes(secret.expose_mutable()));
    return secret;
}

SecretBytes SecretBytes::copy_of(Bytes bytes) {
    SecretBytes secret(bytes.size());
    if (!bytes.empty()) std::memcpy(secret.m_data, bytes.data(), bytes.size());
    return secret;
}

void SecretBytes::wipe() noexcept {
    if (m_data) OPENSSL_secure_clear_free(m_data, m_size);
    m_data = nullptr;
    m_size = 0;
}

void wipe_bytes(MutBytes bytes) noexcept {
    if (!bytes.empty()) ::OPENSSL_cleanse(bytes.data(), bytes.size());
}

} // namespace coffer::crypto
