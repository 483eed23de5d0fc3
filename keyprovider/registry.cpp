#include "keyprovider/registry.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/random.hpp"
#include "keyprovider/checked_file.hpp"
#include "keyprovider/kmip/kmip_provider.hpp"
#include "keyprovider/native/native_provider.hpp"

namespace coffer {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view k_descriptor = "provider";
constexpr CheckedFileFormat k_format{"COFRPROV", 1, 4096};
// The text of a UUID, and a line end.
constexpr std::string_view k_default_file = "default";
constexpr size_t k_max_name = 128;

Result<void> check_name(std::string_view name) {
    bool printable = std::none_of(name.begin(), name.end(), [](char c) {
        return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7F;
    });
    if (name.empty() || name.size() > k_max_name || !printable)
        return make_error(ErrorCode::InvalidArgument,
                          "a provider's name is 1 to {} bytes of text without control characters", k_max_name);
    return {};
}

Result<ProviderInfo> read_descriptor(fs::path const& folder, Uuid const& id) {
    auto path = folder / k_descriptor;
    auto fields = TRY(read_checked_file(path, k_format));
    ProviderInfo info;
    if (!decode_fields(fields, info) || info.id != id || !check_name(info.name) ||
        (info.kind != ProviderKind::Native && info.kind != ProviderKind::Kmip))
        return damaged_provider_file(path);
    return info;
}

} // namespace

std::string_view to_string(ProviderKind kind) noexcept {
    switch (kind) {
    case ProviderKind::Native: return "native";
    case ProviderKind::Kmip: return "kmip";
    }
    return "unknown";
}

Result<std::vector<ProviderInfo>> ProviderRegistry::list() const {
    std::vector<ProviderInfo> providers;
    std::error_code error;
    fs::directory_iterator it(m_folder, error);
    if (error == std::errc::no_such_file_or_directory) return providers;
    for (fs::directory_iterator end; !error && it != end; it.increment(error))
        if (auto id = Uuid::parse(it->path().filename().native()))
            providers.push_back(TRY(read_descriptor(it->path(), *id)));
    if (error) return make_error(ErrorCode::Io, "cannot read {}: {}", m_folder.native(), error.message());
    std::sort(providers.begin(), providers.end(),
              [](auto const& a, auto const& b) { return std::tie(a.name, a.id) < std::tie(b.name, b.id); });
    return providers;
}

Result<ProviderInfo> ProviderRegistry::find(std::string_view name) const {
    for (auto& info : TRY(list()))
        if (info.name == name) return std::move(info);
    return make_error(ErrorCode::NotFound,
                      "there is no key provider '{}'; 'coffer provider add native NAME' adds one, and 'coffer provider "
                      "list' shows those there are",
                      name);
}

Result<ProviderInfo> ProviderRegistry::find(Uuid const& id) const {
    auto folder = folder_of(id);
    std::error_code ignored;
    if (!fs::is_directory(folder, ignored))
        return make_error(ErrorCode::KeyUnavailable,
                          "this host has no key provider {}: add it or restore it ({} is "
                          "missing)",
                          id.to_string(), folder.native());
    return read_descriptor(folder, id);
}

Result<void> ProviderRegistry::check_new_name(std::string_view name) const {
    TRY(check_name(name));
    for (auto const& other : TRY(list()))
        if (other.name == name)
            return make_error(ErrorCode::AlreadyExists, "there is a key provider '{}' already ({})", name,
                              other.id.to_string());
    return {};
}

Result<ProviderInfo> ProviderRegistry::add(ProviderInfo info, Fill const& fill) const {
    TRY(check_new_name(info.name));
    if (info.id == Uuid()) info.id = TRY(crypto::random_uuid());
    info.created = wall_clock_seconds();
    TRY(make_folders(m_folder));
    auto making = m_folder / ("." + info.id.to_string() + ".new");
    std::error_code absent; // what a crash left of an earlier attempt under this id
    fs::remove_all(making, absent);
    TRY(make_folders(making));
    auto made = [&]() -> Result<void> {
        TRY(fill(making, info));
        TRY(write_checked_file(making / k_descriptor, k_format, encode_fields(info)));
        auto folder = folder_of(info.id);
        if (::renameat2(AT_FDCWD, making.c_str(), AT_FDCWD, folder.c_str(), RENAME_NOREPLACE) != 0)
            return errno_error(errno, fmt::format("cannot rename {} to {}", making.native(), folder.native()));
        return sync_folder(m_folder);
    }();
    if (!made) {
        std::error_code ignored; // the first error is the one to report
        fs::remove_all(making, ignored);
        return std::move(made).error();
    }
    return info;
}

Result<void> ProviderRegistry::write_descriptor(ProviderInfo const& info) const {
    return write_checked_file(folder_of(info.id) / k_descriptor, k_format, encode_fields(info));
}

Result<ProviderInfo> ProviderRegistry::add_kmip(std::string_view name, kmip::KmipConfig const& config,
                                                crypto::SecretBytes const& client_key, Uuid const& id) const {
    for (auto const& other : TRY(list()))
        if (other.id == id)
            return make_error(ErrorCode::AlreadyExists, "this host has the key provider {} already: '{}'",
                              id.to_string(), other.name);
    ProviderInfo info;
    info.id = id;
    info.name = name;
    info.kind = ProviderKind::Kmip;
    return add(std::move(info), [&](fs::path const& folder, ProviderInfo const&) {
        return kmip::write_config(folder, config, client_key);
    });
}

Result<std::optional<Uuid>> ProviderRegistry::default_provider() const {
    constexpr size_t k_text_size = 36;
    auto path = m_folder / k_default_file;
    auto content = read_file(path, k_text_size + 1);
    if (!content && content.error().code() == ErrorCode::NotFound) return std::optional<Uuid>();
    auto bytes = TRY(std::move(content));
    std::string text;
    for (std::byte b : bytes) text += static_cast<char>(b);
    auto id = Uuid::parse(std::string_view(text).substr(0, k_text_size));
    if (!id) return damaged_provider_file(path);
    std::error_code ignored;
    return fs::is_directory(folder_of(*id), ignored) ? id : std::nullopt;
}

Result<void> ProviderRegistry::set_default(Uuid const& id) const {
    TRY(find(id));
    return replace_file(m_folder / k_default_file, as_bytes(id.to_string() + "\n"));
}

Result<void> ProviderRegistry::remove(Uuid const& id) const {
    auto folder = folder_of(id);
    auto removing = m_folder / ("." + id.to_string() + ".old");
    // Gone at once for everyone else, whatever happens to its files then.
    if (::rename(folder.c_str(), removing.c_str()) != 0)
        return errno_error(errno, fmt::format("cannot remove {}", folder.native()));
    TRY(sync_folder(m_folder));
    std::error_code error;
    fs::remove_all(removing, error);
    if (error) return make_error(ErrorCode::Io, "cannot remove {}: {}", removing.native(), error.message());
    return sync_folder(m_folder);
}

Result<std::unique_ptr<KeyProvider>> ProviderRegistry::open(Uuid const& id, PassphraseSource passphrase,
                                                            kmip::Resolver resolver) const {
    auto info = TRY(find(id));
    if (info.kind == ProviderKind::Kmip) {
        auto config = TRY(kmip_config(id));
        auto client = TRY(kmip::open_client(folder_of(id), config, std::move(resolver)));
        return std::unique_ptr<KeyProvider>(
            std::make_unique<kmip::KmipProvider>(id, std::move(client), config.wrap_at_server));
    }
    return std::unique_ptr<KeyProvider>(
        std::make_unique<NativeProvider>(store_of(info, std::move(passphrase)), std::move(info)));
}

} // namespace coffer
