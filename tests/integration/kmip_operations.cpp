// Puts every operation of the KMIP client to a real server: the one of the provider whose folder is given. Prints a
// line for each that did what it should, and ends with 1 at the first that did not.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "keyprovider/kmip/kmip_config.hpp"

namespace {

using namespace coffer;
using namespace coffer::kmip;

[[noreturn]] void fail(std::string_view what, std::string_view why) {
    fmt::print(stderr, "{}: {}\n", what, why);
    std::exit(1);
}

template <class T>
auto must(std::string_view what, Result<T> result) {
    if (!result) fail(what, result.error().message());
    fmt::print("ok {}\n", what);
    return detail::take(std::move(result));
}

template <class T>
void must_refuse(std::string_view what, Result<T> const& result, ErrorCode code) {
    if (result) fail(what, "it was not refused");
    if (result.error().code() != code) fail(what, result.error().message());
    fmt::print("ok {}\n", what);
}

void check(std::string_view what, bool holds) {
    if (!holds) fail(what, "it is not so");
    fmt::print("ok {}\n", what);
}

void run(KmipClient& client) {
    must("Query", client.query());
    bool const gcm = find_version(*client.cluster().current().version)->gcm;
    auto const id = must("Create", client.create());
    check("a new key is pre-active", must("GetAttributes", client.state(id)) == State::PreActive);
    auto const key = must("Get", client.get(id));
    must("Activate", client.activate(id));
    check("it is active", must("GetAttributes", client.state(id)) == State::Active);
    must_refuse("Activate of an active key", client.activate(id), ErrorCode::KeyUnavailable);
    check("Get gives the same key", std::ranges::equal(must("Get", client.get(id)).expose(), key.expose()));

    auto const own = must("random", crypto::KeyEncryptionKey::random());
    auto const registered = must("Register", client.register_key(own));
    check("what was registered comes back",
          std::ranges::equal(must("Get", client.get(registered)).expose(), own.expose()));
    // A key for Encrypt and Decrypt is none for wrapping.
    check("Get wrapped by such a key is refused", !client.get_wrapped(id, registered).has_value());
    // By name: neither key has one, and servers are known that then find everything.
    if (auto found = client.locate("no such name", 8)) check("Locate", found->size() <= 8);
    // Not every server takes attributes of the client's own; the connection goes on.
    static_cast<void>(client.set_attribute(id, "Name", "a VM"));

    auto const secret = must("random", crypto::SecretBytes::random(32));
    if (gcm) {
        auto sealed = must("Encrypt", client.encrypt(id, secret));
        check("Decrypt gives it back",
              std::ranges::equal(must("Decrypt", client.decrypt(id, sealed)).expose(), secret.expose()));
        sealed.tag.front() ^= std::byte{1};
        check("a changed tag is refused", !client.decrypt(id, sealed).has_value());
    } else {
        must_refuse("Encrypt below 1.4", client.encrypt(id, secret), ErrorCode::Unsupported);
    }

    must_refuse("Destroy of an active key", client.destroy(id), ErrorCode::KeyUnavailable);
    must("Revoke", client.revoke(id, RevocationReasonCode::CessationOfOperation));
    check("it is deactivated", must("GetAttributes", client.state(id)) == State::Deactivated);
    must("Destroy", client.destroy(id));
    must_refuse("Get of a destroyed key", client.get(id), ErrorCode::KeyUnavailable);

    must("Activate", client.activate(registered));
    must("Revoke", client.revoke(registered, RevocationReasonCode::KeyCompromise));
    check("it is compromised", must("GetAttributes", client.state(registered)) == State::Compromised);
    must("Destroy", client.destroy(registered));
    must_refuse("Get of what never was", client.get("no-such-key"), ErrorCode::KeyUnavailable);
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 2) fail("usage", "kmip_operations PROVIDER-FOLDER");
    auto config = must("configuration", read_config(argv[1]));
    auto client = must("client", open_client(argv[1], config, resolve_here));
    must("connect", client.cluster().connect());
    fmt::print("speaks {}\n", client.cluster().current().version->to_string());
    run(client);
    return 0;
}
