#include "crypto/hash.hpp"

#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {
using HashContext = std::unique_ptr<EVP_MD_CTX, FreeBy<EVP_MD_CTX_free>>;

EVP_MD const* find(HashAlgorithm algorithm) noexcept {
    switch (algorithm) {
    case HashAlgorithm::Sha1: return ::EVP_sha1();
    case HashAlgorithm::Sha256: return ::EVP_sha256();
    case HashAlgorithm::Sha384: return ::EVP_sha384();
    case HashAlgorithm::Sha512: return ::EVP_sha512();
    }
    return nullptr;
}
} // namespace

Result<ByteVector> hash(HashAlgorithm algorithm, std::initializer_list<Bytes> parts) {
    HashContext context(::EVP_MD_CTX_new());
    auto const* function = find(algorithm);
    bool ok = context && function && ::EVP_DigestInit_ex2(context.get(), function, nullptr) == 1;
    for (Bytes part : parts) ok = ok && ::EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1;
    ByteVector digest(EVP_MAX_MD_SIZE);
    unsigned size = 0;
    ok = ok && ::EVP_DigestFinal_ex(context.get(), writable(digest), &size) == 1;
    if (!ok) return openssl_error("cannot compute a hash");
    digest.resize(size);
    return digest;
}

} // namespace coffer::crypto
