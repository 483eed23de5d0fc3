#include "keyprovider/kmip/kmip_config.hpp"

#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/file.hpp"
#include "keyprovider/checked_file.hpp"

namespace coffer::kmip {

namespace {

namespace fs = std::filesystem;

constexpr CheckedFileFormat k_format{"COFRKMIP", 1, size_t{256} << 10};
constexpr std::string_view k_config_file = "kmip";
constexpr std::string_view k_key_file = "client.key";
constexpr size_t k_max_pem = size_t{64} << 10;
constexpr size_t k_max_key_pem = size_t{16} << 10;

Result<std::vector<Endpoint>> parse_endpoints(KmipConfig const& config) {
    if (config.endpoints.empty() || config.endpoints.size() > KmipConfig::k_max_endpoints)
        return make_error(ErrorCode::InvalidArgument, "a KMIP provider has 1 to {} endpoints",
                          KmipConfig::k_max_endpoints);
    std::vector<Endpoint> endpoints;
    for (auto const& text : config.endpoints) endpoints.push_back(TRY(Endpoint::parse(text)));
    return endpoints;
}

Result<std::optional<ProtocolVersion>> forced_version(KmipConfig const& config) {
    if (config.major == 0 && config.minor == 0) return std::optional<ProtocolVersion>();
    ProtocolVersion const version{config.major, config.minor};
    return std::optional(TRY(parse_version(version.to_string())));
}

Result<TlsIdentity> make_identity(KmipConfig const& config, Bytes key) {
    TlsIdentity identity{config.authorities, config.certificate, crypto::SecretBytes::copy_of(key), std::nullopt};
    if (config.pin.empty()) return identity;
    crypto::Digest pin{};
    if (config.pin.size() != pin.size())
        return make_error(ErrorCode::InvalidArgument, "a pin is a SHA-256 digest, which has {} bytes", pin.size());
    std::copy(config.pin.begin(), config.pin.end(), pin.begin());
    identity.pin = pin;
    return identity;
}

} // namespace

Result<void> check_config(KmipConfig const& config, crypto::SecretBytes const& key) {
    TRY(parse_endpoints(config));
    TRY(forced_version(config));
    return check_identity(TRY(make_identity(config, key.expose())));
}

Result<void> write_config(fs::path const& folder, KmipConfig const& config, crypto::SecretBytes const& key) {
    TRY(check_config(config, key));
    TRY(replace_file(folder / k_key_file, key.expose(), 0600));
    return write_checked_file(folder / k_config_file, k_format, encode_fields(config));
}

Result<KmipConfig> read_config(fs::path const& folder) {
    auto path = folder / k_config_file;
    auto fields = read_checked_file(path, k_format);
    if (!fields && fields.error().code() == ErrorCode::NotFound)
        return make_error(ErrorCode::KeyUnavailable, "the provider's configuration {} is missing", path.native());
    KmipConfig config;
    if (!decode_fields(TRY(std::move(fields)), config) || !parse_endpoints(config) || !forced_version(config))
        return damaged_provider_file(path);
    return config;
}

Result<std::string> read_pem(fs::path const& path) {
    auto content = TRY(read_file(path, k_max_pem));
    std::string text(content.size(), '\0');
    std::memcpy(text.data(), content.data(), content.size());
    return text;
}

Result<crypto::SecretBytes> read_key_pem(fs::path const& path, bool private_mode) {
    auto fd = TRY(open_file(path, O_RDONLY | O_NOCTTY));
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return errno_error(errno, fmt::format("cannot stat {}", path.native()));
    if (!S_ISREG(info.st_mode) || info.st_size <= 0 || static_cast<size_t>(info.st_size) > k_max_key_pem)
        return make_error(ErrorCode::InvalidArgument, "{} is no file with a key: it is empty, too long or no file",
                          path.native());
    if (private_mode && (info.st_mode & 077) != 0)
        return make_error(ErrorCode::Permission,
                          "{} has mode {:04o}, so that others may use the key: run 'chmod 600 {}', and take a new "
                          "client certificate if others may have read it",
                          path.native(), info.st_mode & 07777, path.native());
    crypto::SecretBytes content(static_cast<size_t>(info.st_size));
    TRY(pread_all(fd.get(), content.expose_mutable(), 0, path));
    return content;
}

Result<KmipClient> open_client(fs::path const& folder, KmipConfig const& config, Resolver resolver, Limits limits) {
    auto key = read_key_pem(folder / k_key_file, true);
    if (!key && key.error().code() == ErrorCode::NotFound)
        return make_error(ErrorCode::KeyUnavailable, "the client's key {} is missing", (folder / k_key_file).native());
    if (!key) return std::move(key).error();
    auto identity = TRY(make_identity(config, key->expose()));
    auto connector = TRY(make_tls_connector(identity, std::move(resolver)));
    return KmipClient(Cluster(TRY(parse_endpoints(config)), TRY(forced_version(config)), std::move(connector), limits));
}

Result<ByteVector> parse_pin(std::string_view text) {
    ByteVector bytes;
    int high = -1;
    for (char c : text) {
        if (c == ':' && high < 0) continue;
        int const digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) break;
        if (high < 0) {
            high = digit;
        } else {
            bytes.push_back(static_cast<std::byte>(high << 4 | digit));
            high = -1;
        }
    }
    // A character that is no digit ended the loop early, unless the text is too long anyway.
    bool const whole = static_cast<size_t>(std::count(text.begin(), text.end(), ':')) + 2 * bytes.size() == text.size();
    if (!whole || bytes.size() != crypto::k_digest_size)
        return make_error(ErrorCode::InvalidArgument,
                          "a pin is the SHA-256 of the server's certificate, 64 hexadecimal digits ('openssl x509 -in "
                          "FILE -noout -fingerprint -sha256' prints it)");
    return bytes;
}

} // namespace coffer::kmip
