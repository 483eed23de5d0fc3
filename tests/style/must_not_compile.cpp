// Mistakes that the types have to reject. test_must_not_compile.py compiles this file once without any of them, which
// has to work, and once with each, which has to fail with what stands behind "expect:" in the compiler's message.
#include <utility>

#include <fmt/format.h>

#include "base/result.hpp"
#include "base/strong.hpp"
#include "crypto/keys.hpp"

namespace {

using namespace coffer;

[[maybe_unused]] void encrypt_with(crypto::DataEncryptionKey const&) {}
[[maybe_unused]] void read_memory(GuestPhysAddr) {}
[[maybe_unused]] Result<void> may_fail() {
    return {};
}
[[maybe_unused]] Result<int> gives_number() {
    return 7;
}

[[maybe_unused]] Result<int> sound(crypto::KeyEncryptionKey kek, crypto::DataEncryptionKey const& dek) {
    encrypt_with(dek);
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
