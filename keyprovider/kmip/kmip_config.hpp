// What this host knows of a KMIP cluster: two files in the provider's folder, both 0600. `kmip` is a checked file of
// KmipConfig, `client.key` the client's private key in PEM form.
#pragma once

#include <filesystem>

#include "base/tagged.hpp"
#include "keyprovider/kmip/client/kmip_client.hpp"
#include "keyprovider/kmip/client/tls_connection.hpp"

namespace coffer::kmip {

struct KmipConfig {
    static constexpr size_t k_max_endpoints = 16;

    std::vector<std::string> endpoints; // as Endpoint::parse() has them; asked in this order
    uint16_t major = 0;                 // the one version to speak; 0: the best that both know
    uint16_t minor = 0;
    bool wrap_at_server = false; // the KEK never leaves the server
    std::string authorities;     // TlsIdentity
    std::string certificate;
    ByteVector pin; // SHA-256 of the server's certificate; empty: any that is verified

    template <class V>
    void fields(V& v) {
        v.required(1, endpoints);
        v.required(2, major);
        v.required(3, minor);
        v.required(4, wrap_at_server);
        v.required(5, authorities);
        v.required(6, certificate);
        v.required(7, pin);
    }
};

// InvalidArgument where an endpoint, the version, the pin, a certificate or the key is not usable.
Result<void> check_config(KmipConfig const& config, crypto::SecretBytes const& key);

// Into an existing folder.
Result<void> write_config(std::filesystem::path const& folder, KmipConfig const& config,
                          crypto::SecretBytes const& key);
// Integrity where the file is damaged, KeyUnavailable where it is missing.
Result<KmipConfig> read_config(std::filesystem::path const& folder);

// A PEM file of a sane size, as the user names it or as it is stored. The second is for keys: secret memory, and with
// `private_mode` Permission where others than the owner may read it.
Result<std::string> read_pem(std::filesystem::path const& path);
Result<crypto::SecretBytes> read_key_pem(std::filesystem::path const& path, bool private_mode);

// Keeper process only: a client that connects when it is first used.
Result<KmipClient> open_client(std::filesystem::path const& folder, KmipConfig const& config, Resolver resolver,
                               Limits limits = {});

// 64 hexadecimal digits, with colons or without. InvalidArgument otherwise.
Result<ByteVector> parse_pin(std::string_view text);

} // namespace coffer::kmip
