// The key providers of a root: a folder each, named by UUID, with a descriptor that holds no secret. Names are free
// text; everything else refers to providers by UUID.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "keyprovider/key_provider.hpp"
#include "keyprovider/kmip/kmip_config.hpp"
#include "keyprovider/native/kdk_file.hpp"

namespace coffer {

enum class ProviderKind : uint8_t { Native = 1, Kmip = 2 };
std::string_view to_string(ProviderKind kind) noexcept;

struct ProviderInfo {
    Uuid id;
    std::string name;
    ProviderKind kind = ProviderKind::Native;
    bool needs_passphrase = false;
    int64_t created = 0; // seconds since 1970-01-01 UTC

    // Whether whoever copies this host's disk has the provider's keys.
    bool keys_on_disk() const noexcept { return kind == ProviderKind::Native && !needs_passphrase; }

    template <class V>
    void fields(V& v) {
        v.required(1, id);
        v.required(2, name);
        v.required(3, kind);
        v.required(4, needs_passphrase);
        v.required(5, created);
    }
};

class ProviderRegistry {
public:
    // `folder` need not exist yet.
    explicit ProviderRegistry(std::filesystem::path folder) : m_folder(std::move(folder)) {}

    // By name. Integrity where a descriptor is damaged.
    Result<std::vector<ProviderInfo>> list() const;
    // NotFound, with the line that says how to add one.
    Result<ProviderInfo> find(std::string_view name) const;
    // KeyUnavailable where this root has no such provider.
    Result<ProviderInfo> find(Uuid const& id) const;

    // A provider with a new KDK. AlreadyExists, InvalidArgument (the name: 1 to 128 bytes without control characters).
    Result<ProviderInfo> add_native(std::string_view name, crypto::SecretBytes const* passphrase) const;

    // A KMIP cluster. Nothing is connected to. Errors as add_native(), and those of kmip::check_config().
    Result<ProviderInfo> add_kmip(std::string_view name, kmip::KmipConfig const& config,
                                  crypto::SecretBytes const& client_key) const;
    // Of a provider of this kind.
    Result<kmip::KmipConfig> kmip_config(Uuid const& id) const { return kmip::read_config(folder_of(id)); }

    // The provider that new VMs get where none is named. Nothing where none was chosen, or it is gone.
    Result<std::optional<Uuid>> default_provider() const;
    Result<void> set_default(Uuid const& id) const;

    // With its keys, for good, where they lie on this host; keys at a server stay there. The caller sees to it that no
    // VM uses it.
    Result<void> remove(Uuid const& id) const;

    // Keeper process only. `resolver` finds the addresses of key servers.
    Result<std::unique_ptr<KeyProvider>> open(Uuid const& id, PassphraseSource passphrase,
                                              kmip::Resolver resolver = kmip::resolve_here) const;

private:
    // A new provider whose own files fill(folder, id) writes.
    template <class Fill>
    Result<ProviderInfo> add(ProviderInfo info, Fill fill) const;

    std::filesystem::path folder_of(Uuid const& id) const { return m_folder / id.to_string(); }

    std::filesystem::path m_folder;
};

} // namespace coffer
