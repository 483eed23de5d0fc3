#include "crypto/pkcs12.hpp"

#include <limits>

#include <openssl/asn1t.h>
#include <openssl/err.h>
#include <openssl/objects.h>
#include <openssl/pkcs12.h>

#include "crypto/openssl.hpp"
#include "crypto/random.hpp"

namespace coffer::crypto {

namespace {

using Pkcs12Ptr = std::unique_ptr<PKCS12, FreeBy<PKCS12_free>>;
using Pkcs7Ptr = std::unique_ptr<PKCS7, FreeBy<PKCS7_free>>;
using ObjectPtr = std::unique_ptr<ASN1_OBJECT, FreeBy<ASN1_OBJECT_free>>;
using PbePtr = std::unique_ptr<PBE2PARAM, FreeBy<PBE2PARAM_free>>;
using KdfParamPtr = std::unique_ptr<PBKDF2PARAM, FreeBy<PBKDF2PARAM_free>>;
using BagPtr = std::unique_ptr<PKCS12_SAFEBAG, FreeBy<PKCS12_SAFEBAG_free>>;
struct FreeSafes {
    void operator()(STACK_OF(PKCS7) * safes) const noexcept { sk_PKCS7_pop_free(safes, PKCS7_free); }
};
using SafesPtr = std::unique_ptr<STACK_OF(PKCS7), FreeSafes>;

constexpr size_t k_salt_size = 16;
constexpr int64_t k_max_iterations = 10'000'000; // what a hostile file can ask for: a few seconds each

// The secret of a bag, as OpenSSL keeps it: in common memory.
ASN1_OCTET_STRING* secret_of(PKCS12_SAFEBAG const* bag) noexcept {
    auto const* value = ::PKCS12_SAFEBAG_get0_bag_obj(bag);
    return value && value->type == V_ASN1_OCTET_STRING ? value->value.octet_string : nullptr;
}

// Bags, whose secrets are wiped before their memory is given back.
struct FreeBags {
    void operator()(STACK_OF(PKCS12_SAFEBAG) * bags) const noexcept {
        for (int i = 0; i < sk_PKCS12_SAFEBAG_num(bags); ++i) {
            auto const* bag = sk_PKCS12_SAFEBAG_value(bags, i);
            if (::PKCS12_SAFEBAG_get_nid(bag) != NID_secretBag) continue;
            if (auto* secret = secret_of(bag); secret && secret->length > 0)
                ::OPENSSL_cleanse(secret->data, static_cast<size_t>(secret->length));
        }
        sk_PKCS12_SAFEBAG_pop_free(bags, PKCS12_SAFEBAG_free);
    }
};
using BagsPtr = std::unique_ptr<STACK_OF(PKCS12_SAFEBAG), FreeBags>;

Error malformed() {
    ::ERR_clear_error();
    return make_error(ErrorCode::Corrupt, "it is no PKCS#12 file of keys, or a damaged one");
}

Error foreign(std::string_view what) {
    ::ERR_clear_error();
    return make_error(ErrorCode::Unsupported, "it is a PKCS#12 file that coffer did not make: {}", what);
}

// SAFETY: char and std::byte may alias any object and have the same size and alignment.
char const* chars(SecretBytes const& password) noexcept {
    return reinterpret_cast<char const*>(password.expose().data());
}

Bytes bytes_of(ASN1_STRING const* text) noexcept {
    return std::as_bytes(
        std::span(::ASN1_STRING_get0_data(text), static_cast<size_t>(std::max(::ASN1_STRING_length(text), 0))));
}

// OpenSSL makes secret bags by NID alone: the identifier is given one, once in a process.
Result<int> nid_of(std::string const& type) {
    ObjectPtr object(::OBJ_txt2obj(type.c_str(), 1));
    if (!object) return openssl_error("cannot make an object identifier");
    int nid = ::OBJ_obj2nid(object.get());
    if (nid == NID_undef) nid = ::OBJ_create(type.c_str(), nullptr, nullptr);
    if (nid == NID_undef) return openssl_error("cannot register an object identifier");
    return nid;
}

Result<int64_t> iterations(ASN1_INTEGER const* value) {
    int64_t count = 1; // the default of MacData.iterations
    if (value && ::ASN1_INTEGER_get_int64(&count, value) != 1) return malformed();
    if (count < 1) return malformed();
    if (count > k_max_iterations)
        return foreign(
            fmt::format("opening it would take {} iterations, and at most {} are accepted", count, k_max_iterations));
    return count;
}

int nid_of(ASN1_OBJECT const* object) noexcept {
    return ::OBJ_obj2nid(object);
}

// The iterations of the safe's own encryption, where it is the one that seal_pkcs12() uses.
Result<int64_t> encryption_iterations(PKCS7 const* safe) {
    if (nid_of(safe->type) != NID_pkcs7_encrypted || !safe->d.encrypted || !safe->d.encrypted->enc_data)
        return foreign("its content is not encrypted under a password");
    X509_ALGOR const* algorithm = safe->d.encrypted->enc_data->algorithm;
    if (!algorithm || nid_of(algorithm->algorithm) != NID_pbes2 || !algorithm->parameter)
        return foreign("its encryption is not PBES2");
    PbePtr pbe(static_cast<PBE2PARAM*>(ASN1_TYPE_unpack_sequence(ASN1_ITEM_rptr(PBE2PARAM), algorithm->parameter)));
    if (!pbe || !pbe->keyfunc || !pbe->encryption) return malformed();
    if (nid_of(pbe->encryption->algorithm) != NID_aes_256_cbc) return foreign("its cipher is not AES-256-CBC");
    if (nid_of(pbe->keyfunc->algorithm) != NID_id_pbkdf2 || !pbe->keyfunc->parameter)
        return foreign("its key derivation is not PBKDF2");
    KdfParamPtr kdf(
        static_cast<PBKDF2PARAM*>(ASN1_TYPE_unpack_sequence(ASN1_ITEM_rptr(PBKDF2PARAM), pbe->keyfunc->parameter)));
    if (!kdf) return malformed();
    if (!kdf->prf || nid_of(kdf->prf->algorithm) != NID_hmacWithSHA256)
        return foreign("its key derivation is not by HMAC-SHA-256");
    return iterations(kdf->iter);
}

struct Envelope {
    Pkcs12Ptr file;
    SafesPtr safes;
    int64_t iterations = 0;
};

// All that can be known without the password, and that nothing in it takes long.
Result<Envelope> read_envelope(Bytes file) {
    if (file.size() > k_pkcs12_max_file) return malformed();
    unsigned char const* at = uchars(file);
    Envelope envelope;
    envelope.file.reset(::d2i_PKCS12(nullptr, &at, static_cast<long>(file.size())));
    if (!envelope.file || at != uchars(file) + file.size()) return malformed();
    if (::PKCS12_mac_present(envelope.file.get()) != 1) return foreign("it has no MAC");
    X509_ALGOR const* mac_algorithm = nullptr;
    ASN1_INTEGER const* mac_iterations = nullptr;
    ::PKCS12_get0_mac(nullptr, &mac_algorithm, nullptr, &mac_iterations, envelope.file.get());
    if (!mac_algorithm || nid_of(mac_algorithm->algorithm) != NID_sha256) return foreign("its MAC is not by SHA-256");
    envelope.iterations = TRY(iterations(mac_iterations));
    envelope.safes.reset(::PKCS12_unpack_authsafes(envelope.file.get()));
    if (!envelope.safes) return malformed();
    if (sk_PKCS7_num(envelope.safes.get()) != 1) return foreign("it has not one safe, but several");
    envelope.iterations += TRY(encryption_iterations(sk_PKCS7_value(envelope.safes.get(), 0)));
    return envelope;
}

Result<Pkcs12Secret> read_bag(PKCS12_SAFEBAG* bag, int type) {
    if (::PKCS12_SAFEBAG_get_nid(bag) != NID_secretBag || ::PKCS12_SAFEBAG_get_bag_nid(bag) != type)
        return foreign("it holds something else than keys of a native key provider");
    auto const* secret = secret_of(bag);
    if (!secret || secret->length < 0 || static_cast<size_t>(secret->length) > k_pkcs12_max_secret) return malformed();
    Pkcs12Secret read;
    read.value = SecretBytes::copy_of(bytes_of(secret));
    if (char* name = ::PKCS12_get_friendlyname(bag)) {
        read.name = name;
        ::OPENSSL_free(name);
    }
    auto const* id = ::PKCS12_SAFEBAG_get0_attr(bag, NID_localKeyID);
    if (!id || id->type != V_ASN1_OCTET_STRING) return malformed();
    auto bytes = bytes_of(id->value.octet_string);
    read.local_key.assign(bytes.begin(), bytes.end());
    return read;
}

Result<std::vector<Pkcs12Secret>> read_bags(BagsPtr const& bags, int type) {
    int const count = sk_PKCS12_SAFEBAG_num(bags.get());
    if (count < 1 || static_cast<size_t>(count) > k_pkcs12_max_bags) return malformed();
    std::vector<Pkcs12Secret> secrets;
    for (int i = 0; i < count; ++i) secrets.push_back(TRY(read_bag(sk_PKCS12_SAFEBAG_value(bags.get(), i), type)));
    ::ERR_clear_error();
    return secrets;
}

// By way of UTF-16, which OpenSSL makes of any text: PKCS12_add_friendlyname_utf8() refuses what is beyond the BMP.
bool add_name(PKCS12_SAFEBAG* bag, std::string const& name) {
    int size = 0;
    unsigned char* wide = ::OPENSSL_utf82uni(name.data(), static_cast<int>(name.size()), nullptr, &size);
    if (!wide) return false;
    constexpr int k_end_mark = 2;
    bool const added = ::PKCS12_add_friendlyname_uni(bag, wide, size - k_end_mark) == 1;
    ::OPENSSL_free(wide);
    return added;
}

Result<BagsPtr> make_bags(int type, std::vector<Pkcs12Secret> const& secrets) {
    BagsPtr bags(sk_PKCS12_SAFEBAG_new_null());
    if (!bags) return openssl_error("cannot make a safe");
    for (auto const& secret : secrets) {
        COFFER_ASSERT(secret.value.size() <= k_pkcs12_max_secret);
        auto const value = secret.value.expose();
        BagPtr bag(
            ::PKCS12_SAFEBAG_create_secret(type, V_ASN1_OCTET_STRING, uchars(value), static_cast<int>(value.size())));
        auto id = secret.local_key;
        if (!bag || !add_name(bag.get(), secret.name) ||
            ::PKCS12_add_localkeyid(bag.get(), writable(id), static_cast<int>(id.size())) != 1 ||
            sk_PKCS12_SAFEBAG_push(bags.get(), bag.get()) == 0)
            return openssl_error("cannot put a key into a safe");
        static_cast<void>(bag.release()); // the stack's now
    }
    return bags;
}

} // namespace

Result<ByteVector> seal_pkcs12(std::string const& type, std::vector<Pkcs12Secret> const& secrets,
                               SecretBytes const& password) {
    if (password.empty()) return make_error(ErrorCode::InvalidArgument, "an empty password protects nothing");
    COFFER_ASSERT(!secrets.empty() && secrets.size() <= k_pkcs12_max_bags);
    int const nid = TRY(nid_of(type));
    auto bags = TRY(make_bags(nid, secrets));
    auto const password_size = static_cast<int>(password.size());
    constexpr auto k_iterations = static_cast<int>(k_pkcs12_iterations);
    std::array<std::byte, k_salt_size> salt{};
    std::array<std::byte, k_salt_size> mac_salt{};
    TRY(random_bytes(salt));
    TRY(random_bytes(mac_salt));
    // A cipher's NID in place of a PBES1 one asks for PBES2, whose PRF is HMAC-SHA-256 (PKCS5_pbe2_set).
    Pkcs7Ptr safe(::PKCS12_pack_p7encdata(NID_aes_256_cbc, chars(password), password_size, writable(salt),
                                          static_cast<int>(salt.size()), k_iterations, bags.get()));
    if (!safe) return openssl_error("cannot encrypt a safe");
    SafesPtr safes(sk_PKCS7_new_null());
    if (!safes || sk_PKCS7_push(safes.get(), safe.get()) == 0) return openssl_error("cannot make a PKCS#12 file");
    static_cast<void>(safe.release());
    Pkcs12Ptr file(::PKCS12_init(NID_pkcs7_data));
    if (!file || ::PKCS12_pack_authsafes(file.get(), safes.get()) != 1 ||
        ::PKCS12_set_mac(file.get(), chars(password), password_size, writable(mac_salt),
                         static_cast<int>(mac_salt.size()), k_iterations, ::EVP_sha256()) != 1)
        return openssl_error("cannot make a PKCS#12 file");
    unsigned char* der = nullptr;
    int const size = ::i2d_PKCS12(file.get(), &der);
    if (size <= 0) return openssl_error("cannot encode a PKCS#12 file");
    auto const encoded = std::as_bytes(std::span(der, static_cast<size_t>(size)));
    ByteVector result(encoded.begin(), encoded.end());
    ::OPENSSL_free(der);
    return result;
}

Result<std::vector<Pkcs12Secret>> open_pkcs12(std::string const& type, Bytes file, SecretBytes const& password) {
    if (password.empty()) return make_error(ErrorCode::InvalidArgument, "the password is empty");
    int const nid = TRY(nid_of(type));
    auto envelope = TRY(read_envelope(file));
    auto const password_size = static_cast<int>(password.size());
    if (::PKCS12_verify_mac(envelope.file.get(), chars(password), password_size) != 1) {
        ::ERR_clear_error();
        return make_error(ErrorCode::KeyUnavailable, "the password is wrong, or the file was changed");
    }
    BagsPtr bags(::PKCS12_unpack_p7encdata(sk_PKCS7_value(envelope.safes.get(), 0), chars(password), password_size));
    if (!bags) return malformed();
    return read_bags(bags, nid);
}

namespace detail {

Result<uint64_t> check_pkcs12(Bytes file) {
    return static_cast<uint64_t>(TRY(read_envelope(file)).iterations);
}

Result<std::vector<Pkcs12Secret>> read_safe_bags(std::string const& type, Bytes der) {
    if (der.size() > k_pkcs12_max_file) return malformed();
    int const nid = TRY(nid_of(type));
    unsigned char const* at = uchars(der);
    // SAFETY: the item names the type that ASN1_item_d2i makes.
    BagsPtr bags(reinterpret_cast<STACK_OF(PKCS12_SAFEBAG)*>(
        ::ASN1_item_d2i(nullptr, &at, static_cast<long>(der.size()), ASN1_ITEM_rptr(PKCS12_SAFEBAGS))));
    if (!bags) return malformed();
    return read_bags(bags, nid);
}

} // namespace detail

} // namespace coffer::crypto
