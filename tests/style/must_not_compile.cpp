// Mistakes that the types have to reject. test_must_not_compile.py compiles this file once without any of them, which
// has to work, and once with each, which has to fail with what stands behind "expect:" in the compiler's message.
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/log.hpp"
#include "base/result.hpp"
#include "base/strong.hpp"
#include "base/tagged.hpp"
#include "crypto/keys.hpp"
#include "vmm/control/message.hpp"

namespace {

using namespace coffer;

[[maybe_unused]] void encrypt_with(crypto::DataEncryptionKey const&) {}
[[maybe_unused]] void wrap_with(crypto::KeyEncryptionKey const&) {}
[[maybe_unused]] void authenticate_with(crypto::MacKey const&) {}
[[maybe_unused]] void read_bytes(Bytes) {}
struct [[maybe_unused]] WithKey {
    crypto::BundleKey key;
    template <class V>
    void fields(V& v) {
        v.field(1, key);
    }
};
[[maybe_unused]] void read_memory(GuestPhysAddr) {}
[[maybe_unused]] Result<void> may_fail() {
    return {};
}
[[maybe_unused]] Result<int> gives_number() {
    return 7;
}

[[maybe_unused]] Result<int> sound(crypto::KeyEncryptionKey kek, crypto::DataEncryptionKey const& dek) {
    encrypt_with(dek);
    wrap_with(kek);
    authenticate_with(*crypto::MacKey::random());
    read_bytes(dek.expose());
    vmm::control::Message message;
    vmm::control::Message const taken = std::move(message);
    read_memory(GuestPhysAddr{0x1000});
    crypto::KeyEncryptionKey moved = std::move(kek);
    TRY(may_fail());
    return TRY(gives_number()) + static_cast<int>(moved.expose().size());
}

[[maybe_unused]] void mistakes([[maybe_unused]] crypto::KeyEncryptionKey const& kek,
                               [[maybe_unused]] crypto::DataEncryptionKey const& dek) {
#if defined(KEK_AS_DEK) // expect: KeyEncryptionKey|KekTag
    encrypt_with(kek);
#elif defined(COPIED_KEY)                // expect: deleted
    crypto::KeyEncryptionKey copy = kek;
    (void)copy;
#elif defined(ASSIGNED_KEY)              // expect: deleted
    crypto::KeyEncryptionKey other = std::move(const_cast<crypto::KeyEncryptionKey&>(kek));
    other = kek;
#elif defined(COMPARED_KEYS)             // expect: deleted
    if (kek == kek) return;
#elif defined(PRINTED_KEY)               // expect: formattable|formatter
    (void)fmt::format("{}", kek);
#elif defined(KEY_FROM_BYTES)            // expect: private|no matching|could not convert|no viable
    encrypt_with(crypto::DataEncryptionKey(dek.expose()));
#elif defined(KDK_AS_KEK)                // expect: KdkTag|KekTag|KeyDerivationKey
    wrap_with(*crypto::KeyDerivationKey::random());
#elif defined(BUNDLE_KEY_AS_KEK)         // expect: BundleTag|KekTag|BundleKey
    wrap_with(*crypto::BundleKey::random());
#elif defined(CIPHER_KEY_AS_MAC_KEY)     // expect: XtsTag|MacTag|MacKey
    authenticate_with(*crypto::XtsKey::random());
#elif defined(SECRET_AS_KEY)             // expect: SecretBytes
    wrap_with(crypto::SecretBytes(32));
#elif defined(KEY_AS_BYTES)              // expect: Bytes|span
    read_bytes(kek);
#elif defined(KEY_WITHOUT_BYTES)         // expect: no matching|no default|deleted
    crypto::BundleKey empty;
    (void)empty;
#elif defined(KEY_ASSIGNED_A_PART)       // expect: const|read-only|no viable
    kek.expose()[0] = std::byte{1};
#elif defined(STREAMED_KEY)              // expect: operator<<|no match|invalid operands
    std::cout << kek;
#elif defined(LOGGED_KEY)                // expect: formattable|formatter|consteval
    log::info("{}", kek);
#elif defined(KEY_IN_AN_ERROR)           // expect: formattable|formatter|consteval
    (void)make_error(ErrorCode::Io, "key {}", kek);
#elif defined(KEY_AS_TEXT)               // expect: string
    std::string text = kek;
    (void)text;
#elif defined(SAVED_KEY)                 // expect: constraint|no matching
    (void)encode_fields(dek);
#elif defined(KEY_IN_A_SAVED_STRUCT)     // expect: constraint|no matching
    (void)encode_fields(WithKey{*crypto::BundleKey::random()});
#elif defined(COPIED_LIST_OF_KEYS)       // expect: deleted
    std::vector<crypto::BundleKey> keys;
    auto copies = keys;
#elif defined(COPIED_SECRET)             // expect: deleted
    crypto::SecretBytes secret(32);
    auto copy = secret;
#elif defined(COMPARED_SECRETS)          // expect: deleted
    if (crypto::SecretBytes(1) == crypto::SecretBytes(1)) return;
#elif defined(PRINTED_SECRET)            // expect: formattable|formatter
    (void)fmt::format("{}", crypto::SecretBytes(1));
#elif defined(COPIED_CONTROL_MESSAGE)    // expect: deleted
    vmm::control::Message message;
    auto copy = message;
#elif defined(DROPPED_RESULT)            // expect: nodiscard
    may_fail();
#elif defined(DROPPED_RESULT_WITH_VALUE) // expect: nodiscard
    gives_number();
#elif defined(INTEGER_AS_ADDRESS)        // expect: GuestPhysAddr|Addr<
    read_memory(0x1000);
#elif defined(PORT_AS_ADDRESS)           // expect: IoPort|PortTag
    read_memory(IoPort{0x60});
#elif defined(ADDRESS_AS_INTEGER)        // expect: cannot convert|no viable conversion
    uint64_t number = GuestPhysAddr{0x1000};
    (void)number;
#endif
}

} // namespace
