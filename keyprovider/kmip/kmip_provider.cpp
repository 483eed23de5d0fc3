#include "keyprovider/kmip/kmip_provider.hpp"

#include "crypto/aead.hpp"
#include "crypto/key_wrap.hpp"
#include "crypto/mac.hpp"

namespace coffer::kmip {

namespace {

constexpr std::byte k_wrapped_here{1};
constexpr std::byte k_wrapped_there{2};
constexpr size_t k_there_size = 1 + crypto::k_gcm_nonce_size + crypto::k_gcm_tag_size + crypto::BundleKey::k_size;

} // namespace

Result<KeyId> KmipProvider::create_kek(std::string_view label) {
    auto id = TRY(m_client.create());
    auto kek = KeyId::parse(id);
    if (!kek)
        return make_error(ErrorCode::Unsupported, "the KMIP server named a key '{}', and {}", printable(id),
                          kek.error().message());
    TRY(make_usable(*kek, Use::Wrap));
    // For people who look at the server's keys. Many servers take no such attributes; the first refusal ends it.
    struct Attribute {
        std::string_view name;
        std::string_view value;
    };
    for (auto const& attribute :
         {Attribute{"Product", "Coffer"}, Attribute{"Component", "VM"}, Attribute{"Name", label}})
        if (!m_client.set_attribute(id, attribute.name, attribute.value)) break;
    return kek;
}

Result<void> KmipProvider::make_usable(KeyId const& kek, Use use) {
    auto state = TRY(m_client.state(kek.text()));
    auto refused = [&](std::string_view way_out) {
        return make_error(ErrorCode::KeyUnavailable, "key {} is {} at the KMIP server{}", kek.text(), to_string(state),
                          way_out);
    };
    switch (state) {
    case State::Active: return {};
    case State::PreActive: return m_client.activate(kek.text());
    case State::Deactivated:
        if (use == Use::Unwrap) return {};
        return refused(": it opens what it wrapped before, and wraps nothing new");
    case State::Compromised: return refused(", and is not used any more");
    case State::Destroyed:
    case State::DestroyedCompromised: return refused("");
    }
    return refused("");
}

Result<WrappedKey> KmipProvider::wrap(KeyId const& kek, crypto::BundleKey const& key) {
    TRY(make_usable(kek, Use::Wrap));
    return m_wrap_at_server ? wrap_there(kek, key) : wrap_here(kek, key);
}

Result<WrappedKey> KmipProvider::wrap_here(KeyId const& kek, crypto::BundleKey const& key) {
    auto fetched = TRY(m_client.get(kek.text()));
    WrappedKey wrapped{{k_wrapped_here}};
    append(wrapped.bytes, TRY(crypto::kwp_wrap(fetched, key)));
    return wrapped;
}

Result<WrappedKey> KmipProvider::wrap_there(KeyId const& kek, crypto::BundleKey const& key) {
    auto sealed = TRY(m_client.encrypt(kek.text(), crypto::SecretBytes::copy_of(key.expose())));
    WrappedKey wrapped{{k_wrapped_there}};
    append(wrapped.bytes, sealed.nonce);
    append(wrapped.bytes, sealed.tag);
    append(wrapped.bytes, sealed.data);
    COFFER_ASSERT(wrapped.bytes.size() == k_there_size);
    return wrapped;
}

Result<crypto::BundleKey> KmipProvider::unwrap(KeyId const& kek, WrappedKey const& wrapped) {
    Bytes rest = wrapped.bytes;
    bool const here = !rest.empty() && rest[0] == k_wrapped_here;
    if (!here && (rest.size() != k_there_size || rest[0] != k_wrapped_there))
        return make_error(ErrorCode::Integrity, "a wrapped key is not of a form that this provider makes");
    TRY(make_usable(kek, Use::Unwrap));
    if (here) {
        auto fetched = TRY(m_client.get(kek.text()));
        return crypto::kwp_unwrap(fetched, rest.subspan(1));
    }
    rest = rest.subspan(1);
    auto take = [&rest](size_t size) {
        ByteVector part(rest.begin(), rest.begin() + static_cast<ptrdiff_t>(size));
        rest = rest.subspan(size);
        return part;
    };
    GcmSealed sealed;
    sealed.nonce = take(crypto::k_gcm_nonce_size);
    sealed.tag = take(crypto::k_gcm_tag_size);
    sealed.data = take(crypto::BundleKey::k_size);
    auto key = crypto::BundleKey::adopt(TRY(m_client.decrypt(kek.text(), sealed)));
    COFFER_ASSERT(key.has_value()); // decrypt() gives as much as it was given
    return std::move(*key);
}

Result<void> KmipProvider::destroy(std::string const& kek) {
    // Servers refuse to destroy an active key.
    if (TRY(m_client.state(kek)) == State::Active)
        TRY(m_client.revoke(kek, RevocationReasonCode::CessationOfOperation));
    return m_client.destroy(kek);
}

std::vector<ProviderTestStep> KmipProvider::test() {
    std::vector<ProviderTestStep> steps;
    auto step = [&](std::string name, auto&& run) { return run_test_step(steps, std::move(name), run); };
    auto connected = [&]() -> Result<std::string> {
        TRY(m_client.cluster().connect());
        return m_client.cluster().current().endpoint.to_string();
    };
    bool ok = step("connect", connected);
    if (!ok) return steps;
    // One call did all of it; its parts are told apart.
    auto const& report = m_client.cluster().report();
    auto const total = steps.back().time;
    steps.back().text += fmt::format(" ({})", report.address);
    steps.back().time = report.connect_time;
    steps.push_back({"TLS", report.tls_time, false, report.protocol});
    steps.push_back({"versions", std::max<Nanoseconds>(total - report.connect_time - report.tls_time, 0), false,
                     "KMIP " + m_client.cluster().current().version->to_string()});
    step("query", [&]() -> Result<std::string> {
        auto information = TRY(m_client.query());
        bool const both = information.offers(Operation::Encrypt) && information.offers(Operation::Decrypt);
        return fmt::format("{}; {} operations, {} Encrypt and Decrypt",
                           information.vendor.empty() ? "a server that gives no name" : information.vendor,
                           information.operations.size(), both ? "with" : "without");
    });
    std::string id;
    ok = step("create", [&]() -> Result<std::string> {
        id = TRY(m_client.create());
        return "key " + printable(id);
    });
    if (!ok) return steps;
    if (m_wrap_at_server) {
        ok = step("activate", [&]() -> Result<std::string> {
            if (TRY(m_client.state(id)) == State::PreActive) TRY(m_client.activate(id));
            return std::string();
        });
        ok = ok && step("encrypt and decrypt", [&]() -> Result<std::string> {
                 auto secret = TRY(crypto::SecretBytes::random(crypto::BundleKey::k_size));
                 auto sealed = TRY(m_client.encrypt(id, secret));
                 auto opened = TRY(m_client.decrypt(id, sealed));
                 if (!crypto::equal_in_constant_time(opened.expose(), secret.expose()))
                     return make_error(ErrorCode::Corrupt, "what was encrypted came back as something else");
                 return std::string();
             });
    } else {
        step("get", [&]() -> Result<std::string> {
            TRY(m_client.get(id));
            return std::string("256 bits");
        });
    }
    step("destroy", [&]() -> Result<std::string> {
        TRY(destroy(id));
        return std::string();
    });
    return steps;
}

} // namespace coffer::kmip
