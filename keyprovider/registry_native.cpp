// The part of the registry that makes and changes native providers.
#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <stdio.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/mac.hpp"
#include "keyprovider/native/backup_file.hpp"
#include "keyprovider/registry.hpp"

namespace coffer {

namespace {

namespace fs = std::filesystem;

Error cannot_restore(fs::path const& file, Error error) {
    return std::move(error).with_context(fmt::format("cannot restore {}", file.native()));
}

Result<void> check_protection(NativeOptions const& options) {
    if (options.host_tpm.empty()) return {};
    if (options.passphrase)
        return make_error(ErrorCode::InvalidArgument,
                          "a key provider is bound to the host's TPM or has a passphrase, not both");
    return check_tcti(options.host_tpm);
}

// A new provider's passphrase, before anything is made. The source that is returned gives it again.
Result<PassphraseSource> ask_once(NativeOptions const& options, PassphraseSource const& ask) {
    if (!options.passphrase) return PassphraseSource(ask);
    auto secret = std::make_shared<crypto::SecretBytes>(TRY(ask("new passphrase")));
    return PassphraseSource([secret](std::string_view) -> Result<crypto::SecretBytes> {
        return crypto::SecretBytes::copy_of(secret->expose());
    });
}

// As replace_file(), but a file that is there stays where it is not to be overwritten.
Result<void> write_new_file(fs::path const& path, Bytes content, bool overwrite) {
    if (overwrite) return replace_file(path, content, 0600);
    auto exists = [&] {
        return make_error(ErrorCode::AlreadyExists, "{} is there already: name another file, or give --overwrite",
                          path.native());
    };
    std::error_code ignored;
    if (fs::exists(fs::symlink_status(path, ignored))) return exists();
    auto making = path;
    making += ".new";
    TRY(replace_file(making, content, 0600));
    if (::renameat2(AT_FDCWD, making.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) != 0) {
        int const why = errno;
        TRY(remove_file(making));
        if (why == EEXIST) return exists();
        return errno_error(why, fmt::format("cannot rename {} to {}", making.native(), path.native()));
    }
    return sync_folder(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

} // namespace

KdkStore ProviderRegistry::store_of(ProviderInfo const& info, PassphraseSource passphrase) const {
    auto named = [name = info.name, ask = std::move(passphrase)](std::string_view) {
        return ask(fmt::format("passphrase of key provider '{}'", name));
    };
    return {folder_of(info.id), info, std::move(named), m_tpms};
}

Result<ProviderInfo> ProviderRegistry::find_native(Uuid const& id) const {
    auto info = TRY(find(id));
    if (info.kind != ProviderKind::Native)
        return make_error(ErrorCode::InvalidArgument,
                          "key provider '{}' is a {} provider: only native providers have keys on this host", info.name,
                          to_string(info.kind));
    return info;
}

Result<ProviderInfo> ProviderRegistry::add_native(std::string_view name, NativeOptions const& options,
                                                  PassphraseSource const& passphrase) const {
    TRY(check_protection(options));
    TRY(check_new_name(name));
    auto known = TRY(ask_once(options, passphrase));
    ProviderInfo wanted;
    wanted.name = name;
    wanted.host_tpm = options.host_tpm;
    wanted.needs_passphrase = options.passphrase;
    wanted.require_backup = options.require_backup;
    return add(std::move(wanted), [&](fs::path const& folder, ProviderInfo const& info) -> Result<void> {
        auto kdk = TRY(crypto::KeyDerivationKey::random());
        return KdkStore(folder, info, known, m_tpms).save(info.kdk_version, kdk);
    });
}

Result<ProviderInfo> ProviderRegistry::add_native(std::string_view name, crypto::SecretBytes const* passphrase) const {
    NativeOptions options;
    options.passphrase = passphrase != nullptr;
    return add_native(name, options, [passphrase](std::string_view) -> Result<crypto::SecretBytes> {
        return crypto::SecretBytes::copy_of(passphrase->expose());
    });
}

Result<ProviderInfo> ProviderRegistry::rotate(Uuid const& id, PassphraseSource const& passphrase) const {
    auto lock = TRY(this->lock(id, ProviderUse::Exclusive));
    auto info = TRY(find_native(id));
    auto versions = TRY(kdk_versions(id));
    if (versions.size() >= KdkStore::k_max_versions)
        return make_error(ErrorCode::InvalidArgument,
                          "key provider '{}' has {} versions of its key: 'coffer provider prune' removes those that no "
                          "VM uses",
                          info.name, versions.size());
    auto store = store_of(info, passphrase);
    // The present key has to open: else the new one would lie under a passphrase that nobody checked.
    TRY(store.load(info.kdk_version));
    // A file above the present version is what a stopped rotation or restore left: its number is never used again.
    uint32_t const next = std::max(info.kdk_version, versions.empty() ? 0 : versions.back()) + 1;
    auto kdk = TRY(crypto::KeyDerivationKey::random());
    TRY(store.save(next, kdk));
    info.kdk_version = next;
    TRY(write_descriptor(info));
    return info;
}

Result<ProviderInfo> ProviderRegistry::backup(Uuid const& id, fs::path const& file, bool overwrite,
                                              crypto::SecretBytes const& password,
                                              PassphraseSource const& passphrase) const {
    auto lock = TRY(this->lock(id, ProviderUse::Exclusive));
    auto info = TRY(find_native(id));
    auto store = store_of(info, passphrase);
    NativeBackup backup{id, info.name, {}};
    for (auto version : TRY(kdk_versions(id))) backup.keys.emplace(version, TRY(store.load(version)));
    if (!backup.keys.contains(info.kdk_version))
        return make_error(ErrorCode::Integrity, "version {} of the key of '{}' is missing: there is no whole backup",
                          info.kdk_version, info.name);
    auto sealed = TRY(seal_backup(backup, password));
    TRY(write_new_file(file, sealed, overwrite));
    info.backed_up_version = info.kdk_version;
    info.backed_up = wall_clock_seconds();
    TRY(write_descriptor(info));
    return info;
}

Result<Restored> ProviderRegistry::restore(fs::path const& file, RestoreOptions const& options,
                                           crypto::SecretBytes const& password,
                                           RestorePassphrases const& passphrases) const {
    auto content = TRY(read_file(file, crypto::k_pkcs12_max_file));
    auto opened = open_backup(content, password);
    if (!opened) return cannot_restore(file, std::move(opened).error());
    auto backup = std::move(*opened);
    std::error_code ignored;
    if (fs::is_directory(folder_of(backup.provider), ignored)) return merge(backup, options, passphrases.known);
    TRY(check_protection(options));
    ProviderInfo wanted;
    wanted.host_tpm = options.host_tpm;
    wanted.id = backup.provider;
    wanted.name = options.name.empty() ? backup.name : options.name;
    wanted.needs_passphrase = options.passphrase;
    wanted.require_backup = options.require_backup;
    wanted.kdk_version = backup.keys.rbegin()->first;
    wanted.backed_up_version = wanted.kdk_version;
    wanted.backed_up = wall_clock_seconds();
    auto checked = check_new_name(wanted.name);
    if (!checked && checked.error().code() == ErrorCode::AlreadyExists)
        return std::move(checked).error().with_context("give the restored provider another name with --name");
    TRY(std::move(checked));
    auto known = TRY(ask_once(options, passphrases.fresh));
    Restored restored;
    auto added = add(std::move(wanted), [&](fs::path const& folder, ProviderInfo const& info) -> Result<void> {
        KdkStore store(folder, info, known, m_tpms);
        for (auto const& [version, kdk] : backup.keys) {
            TRY(store.save(version, kdk));
            restored.versions.push_back(version);
        }
        return {};
    });
    restored.info = TRY(std::move(added));
    return restored;
}

Result<Restored> ProviderRegistry::merge(NativeBackup const& backup, RestoreOptions const& options,
                                         PassphraseSource const& passphrase) const {
    auto lock = TRY(this->lock(backup.provider, ProviderUse::Exclusive));
    Restored restored{TRY(find_native(backup.provider)), true, {}};
    auto& info = restored.info;
    if (!options.name.empty() || options.require_backup || !options.host_tpm.empty() ||
        (options.passphrase && !info.needs_passphrase))
        return make_error(ErrorCode::InvalidArgument,
                          "this host has the provider already, as '{}', which keeps its name and protection: leave "
                          "the options for a new one out",
                          info.name);
    auto store = store_of(info, passphrase);
    auto const present = TRY(kdk_versions(info.id));
    // All is looked at before anything is written.
    for (auto const& [version, kdk] : backup.keys) {
        if (!std::binary_search(present.begin(), present.end(), version)) {
            restored.versions.push_back(version);
            continue;
        }
        auto here = store.load(version);
        if (!here && here.error().code() == ErrorCode::Integrity) {
            restored.versions.push_back(version); // damaged: the backup's takes its place
            continue;
        }
        auto own = TRY(std::move(here));
        if (!crypto::equal_in_constant_time(own.expose(), kdk.expose()))
            return make_error(ErrorCode::AlreadyExists,
                              "version {} of the key of '{}' is another one here than in the backup: the provider was "
                              "rotated on two hosts. Nothing was changed",
                              version, info.name);
    }
    if (restored.versions.size() == backup.keys.size() &&
        std::binary_search(present.begin(), present.end(), info.kdk_version)) {
        // Nothing was opened yet that would tell whether the passphrase is the right one.
        auto here = store.load(info.kdk_version);
        if (!here && here.error().code() != ErrorCode::Integrity) return std::move(here).error();
    }
    for (auto version : restored.versions) TRY(store.save(version, backup.keys.at(version)));
    auto const newest = backup.keys.rbegin()->first;
    info.kdk_version = std::max(info.kdk_version, newest);
    if (newest >= info.backed_up_version) {
        info.backed_up_version = newest;
        info.backed_up = wall_clock_seconds();
    }
    TRY(write_descriptor(info));
    return restored;
}

Result<ProviderInfo> ProviderRegistry::require_backup(Uuid const& id, bool required) const {
    auto lock = TRY(this->lock(id, ProviderUse::Exclusive));
    auto info = TRY(find_native(id));
    info.require_backup = required;
    TRY(write_descriptor(info));
    return info;
}

Result<void> ProviderRegistry::remove_kdk(ProviderInfo const& info, uint32_t version) const {
    COFFER_ASSERT(version != info.kdk_version);
    return KdkStore::remove(folder_of(info.id), version);
}

} // namespace coffer
