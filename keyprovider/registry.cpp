#include "keyprovider/registry.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "base/tagged.hpp"
#include "crypto/mac.hpp"
#include "crypto/random.hpp"
#include "keyprovider/native/native_provider.hpp"

namespace coffer {

namespace {

namespace fs = std::filesystem;

// The descriptor: magic, version, size of the fields, fields, SHA-256 over all before it.
constexpr std::string_view k_descriptor = "provider";
constexpr std::string_view k_magic = "COFRPROV";
constexpr uint32_t k_version = 1;
constexpr size_t k_prefix_size = 16;
constexpr size_t k_max_descriptor = 4096;
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

Result<void> write_descriptor(fs::path const& folder, ProviderInfo const& info) {
    auto fields = encode_fields(info);
    ByteVector file(k_prefix_size);
    std::memcpy(file.data(), k_magic.data(), k_magic.size());
    store_le<uint32_t>(file, 8, k_version);
    store_le<uint32_t>(file, 12, static_cast<uint32_t>(fields.size()));
    append(file, fields);
    auto digest = TRY(crypto::sha256({file}));
    append(file, digest);
    return replace_file(folder / k_descriptor, file);
}

Result<ProviderInfo> read_descriptor(fs::path const& folder, Uuid const& id) {
    auto path = folder / k_descriptor;
    auto damaged = [&] {
        return make_error(ErrorCode::Integrity,
                          "{}: the provider's description was changed or damaged; put back an "
                          "intact copy",
                          path.native());
    };
    auto file = read_file(path, k_max_descriptor);
    if (!file && file.error().code() == ErrorCode::Corrupt) return damaged();
    if (!file) return std::move(file).error();
    Bytes const bytes = *file;
    if (bytes.size() < k_prefix_size + crypto::k_digest_size ||
        std::memcmp(bytes.data(), k_magic.data(), k_magic.size()) != 0 || load_le<uint32_t>(bytes, 8) != k_version ||
        load_le<uint32_t>(bytes, 12) != bytes.size() - k_prefix_size - crypto::k_digest_size)
        return damaged();
    Bytes const checked = bytes.first(bytes.size() - crypto::k_digest_size);
    auto digest = TRY(crypto::sha256({checked}));
    ProviderInfo info;
    if (!crypto::equal_in_constant_time(digest, bytes.last(digest.size())) ||
        !decode_fields(checked.subspan(k_prefix_size), info) || info.id != id || !check_name(info.name) ||
        info.kind != ProviderKind::Native)
        return damaged();
    return info;
}

} // namespace

std::string_view to_string(ProviderKind kind) noexcept {
    switch (kind) {
    case ProviderKind::Native: return "native";
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

Result<ProviderInfo> ProviderRegistry::add_native(std::string_view name, crypto::SecretBytes const* passphrase) const {
    TRY(check_name(name));
    for (auto const& info : TRY(list()))
        if (info.name == name)
            return make_error(ErrorCode::AlreadyExists, "there is a key provider '{}' already ({})", name,
                              info.id.to_string());
    ProviderInfo info;
    info.id = TRY(crypto::random_uuid());
    info.name = name;
    info.needs_passphrase = passphrase != nullptr;
    info.created = wall_clock_seconds();
    TRY(make_folders(m_folder));
    auto making = m_folder / ("." + info.id.to_string() + ".new");
    TRY(make_folders(making));
    auto made = [&]() -> Result<void> {
        TRY(NativeProvider::create(making, info.id, passphrase));
        TRY(write_descriptor(making, info));
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

Result<std::unique_ptr<KeyProvider>> ProviderRegistry::open(Uuid const& id, PassphraseSource passphrase) const {
    auto info = TRY(find(id));
    auto named = [name = info.name, ask = std::move(passphrase)](std::string_view) {
        return ask(fmt::format("passphrase of key provider '{}'", name));
    };
    return std::unique_ptr<KeyProvider>(std::make_unique<NativeProvider>(folder_of(id), id, std::move(named)));
}

} // namespace coffer
