#include "vmm/migrate/host_identity.hpp"

#include <algorithm>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/home/folder_lock.hpp"
#include "base/tagged.hpp"
#include "crypto/der.hpp"
#include "keyprovider/checked_file.hpp"

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;
namespace der = crypto::der;

// The identity's file: magic, format version, sizes of key and certificate, both, SHA-256 over all before it.
constexpr std::string_view k_magic = "COFRHKEY";
constexpr uint32_t k_version = 1;
constexpr size_t k_key_size_at = 12;
constexpr size_t k_certificate_size_at = 16;
constexpr size_t k_head = 20;
constexpr size_t k_max_key = 4096;
constexpr size_t k_max_identity = k_head + k_max_key + crypto::k_max_certificate + crypto::k_digest_size;

constexpr CheckedFileFormat k_peer_format{"COFRPEER", 1, crypto::k_max_certificate + 1024};
constexpr size_t k_max_name = 64;

constexpr int64_t k_day = 86400;
constexpr int64_t k_validity = 5 * 365 * k_day;

struct PeerFields {
    std::string name;
    ByteVector certificate;
    int64_t since = 0;

    template <class V>
    void fields(V& v) {
        v.required(1, name);
        v.required(2, certificate);
        v.required(3, since);
    }
};

Error damaged_identity(fs::path const& path) {
    return make_error(
        ErrorCode::Integrity,
        "{}: this host's identity is damaged. 'coffer host cert --renew' makes a new one, which the other "
        "hosts have to trust anew",
        path.native());
}

Error damaged_peer(fs::path const& path) {
    return make_error(
        ErrorCode::Integrity,
        "{}: the trusted host's file is damaged: remove it, and 'coffer host trust' its certificate again",
        path.native());
}

// RFC 5280, 4.2.1.3, 4.2.1.9 and 4.2.1.12: a certificate that signs in TLS, at both ends, and no other certificates.
std::vector<crypto::CertificateExtension> host_extensions() {
    std::array const digital_signature{std::byte{7}, std::byte{0x80}};
    std::vector<crypto::CertificateExtension> extensions;
    extensions.push_back({"2.5.29.19", true, der::sequence({})});
    extensions.push_back({"2.5.29.15", true, der::element(der::BitString, digital_signature)});
    extensions.push_back(
        {"2.5.29.37", false, der::sequence({der::oid("1.3.6.1.5.5.7.3.1"), der::oid("1.3.6.1.5.5.7.3.2")})});
    return extensions;
}

std::string own_name() {
    std::array<char, k_max_name> name{};
    if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "coffer-host";
    std::string text(name.data());
    return check_host_name(text) ? text : "coffer-host";
}

Result<HostIdentity> make_identity() {
    auto key = TRY(crypto::SigningKey::generate());
    crypto::CertificateContent content;
    content.public_key = TRY(key.public_key());
    content.common_name = own_name();
    // A peer's clock may be a little behind.
    content.not_before = wall_clock_seconds() - k_day;
    content.not_after = content.not_before + k_validity;
    content.extensions = host_extensions();
    auto certificate = TRY(crypto::issue_certificate(content, key, nullptr));
    return HostIdentity{std::move(certificate), std::move(key)};
}

// "CN=name" without "CN=" and what OpenSSL escapes.
std::string name_of(crypto::Certificate const& certificate) {
    auto subject = certificate.subject();
    auto at = subject.find("CN=");
    if (at == std::string::npos) return "host";
    auto name = subject.substr(at + 3);
    name = name.substr(0, std::min(name.find(','), k_max_name));
    return check_host_name(name) ? name : "host";
}

Result<void> write_identity(fs::path const& path, HostIdentity const& identity) {
    auto bytes = TRY(encode_identity(identity));
    return replace_file(path, bytes.expose());
}

} // namespace

Result<void> check_host_name(std::string_view name) {
    bool const printable =
        std::all_of(name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~' && c != '/'; });
    if (name.empty() || name.size() > k_max_name || !printable || name.front() == ' ')
        return make_error(ErrorCode::InvalidArgument,
                          "a host's name is 1 to {} printable ASCII characters without '/', the first no space",
                          k_max_name);
    return {};
}

Result<crypto::SecretBytes> encode_identity(HostIdentity const& identity) {
    auto key = TRY(identity.key.to_der());
    auto certificate = TRY(identity.certificate.to_der());
    size_t const digest_at = k_head + key.size() + certificate.size();
    crypto::SecretBytes file(digest_at + crypto::k_digest_size);
    auto bytes = file.expose_mutable();
    std::memcpy(bytes.data(), k_magic.data(), k_magic.size());
    store_le<uint32_t>(bytes, 8, k_version);
    store_le<uint32_t>(bytes, k_key_size_at, static_cast<uint32_t>(key.size()));
    store_le<uint32_t>(bytes, k_certificate_size_at, static_cast<uint32_t>(certificate.size()));
    std::memcpy(bytes.data() + k_head, key.expose().data(), key.size());
    std::memcpy(bytes.data() + k_head + key.size(), certificate.data(), certificate.size());
    auto digest = TRY(crypto::sha256({file.expose().first(digest_at)}));
    std::memcpy(bytes.data() + digest_at, digest.data(), digest.size());
    return file;
}

Result<HostIdentity> decode_identity(Bytes file, fs::path const& path) {
    if (file.size() < k_head + crypto::k_digest_size || file.size() > k_max_identity ||
        std::memcmp(file.data(), k_magic.data(), k_magic.size()) != 0 || load_le<uint32_t>(file, 8) != k_version)
        return damaged_identity(path);
    size_t const key_size = load_le<uint32_t>(file, k_key_size_at);
    size_t const certificate_size = load_le<uint32_t>(file, k_certificate_size_at);
    if (key_size > k_max_key || certificate_size > crypto::k_max_certificate ||
        file.size() != k_head + key_size + certificate_size + crypto::k_digest_size)
        return damaged_identity(path);
    size_t const digest_at = file.size() - crypto::k_digest_size;
    auto digest = TRY(crypto::sha256({file.first(digest_at)}));
    if (!std::equal(digest.begin(), digest.end(), file.begin() + static_cast<ptrdiff_t>(digest_at)))
        return damaged_identity(path);
    auto key = crypto::SigningKey::parse_der(file.subspan(k_head, key_size));
    auto certificate = crypto::Certificate::parse_der(file.subspan(k_head + key_size, certificate_size));
    if (!key || !certificate || !certificate->has_key(*key)) return damaged_identity(path);
    return HostIdentity{std::move(*certificate), std::move(*key)};
}

ByteVector encode_trusted(TrustedHost const& host, ByteVector der) {
    return encode_fields(PeerFields{host.name, std::move(der), host.since});
}

Result<TrustedHost> decode_trusted(Bytes fields, fs::path const& path) {
    PeerFields peer;
    if (!decode_fields(fields, peer) || !check_host_name(peer.name)) return damaged_peer(path);
    auto certificate = crypto::Certificate::parse_der(peer.certificate);
    if (!certificate) return damaged_peer(path);
    auto fingerprint = TRY(crypto::fingerprint_of(*certificate));
    return TrustedHost{std::move(peer.name), fingerprint, std::move(*certificate), peer.since};
}

Result<HostIdentity> HostTrust::identity() const {
    auto const guard = TRY(lock_folder(m_folder));
    auto const path = identity_path();
    auto fd = open_file(path, O_RDONLY | O_NOFOLLOW);
    if (!fd && fd.error().code() == ErrorCode::NotFound) {
        auto made = TRY(make_identity());
        TRY(write_identity(path, made));
        return made;
    }
    if (!fd) return std::move(fd).error();
    struct stat info {};
    if (::fstat(fd->get(), &info) != 0) return errno_error(errno, fmt::format("cannot look at {}", path.native()));
    if ((info.st_mode & 077) != 0)
        return make_error(ErrorCode::Permission,
                          "{}: others may read this host's private key (mode {:o}): 'chmod 600' it, or make a new one "
                          "with 'coffer host cert --renew'",
                          path.native(), info.st_mode & 0777U);
    auto file = read_file(path, k_max_identity);
    if (!file) {
        if (file.error().code() == ErrorCode::Corrupt) return damaged_identity(path);
        return std::move(file).error();
    }
    auto identity = decode_identity(*file, path);
    crypto::wipe_bytes(*file);
    return identity;
}

Result<HostIdentity> HostTrust::renew() const {
    auto const guard = TRY(lock_folder(m_folder));
    auto made = TRY(make_identity());
    TRY(write_identity(identity_path(), made));
    return made;
}

fs::path HostTrust::peer_path(crypto::Digest const& fingerprint) const {
    std::string name;
    for (std::byte byte : fingerprint) name += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
    return peers() / name;
}

Result<TrustedHost> HostTrust::read_peer(fs::path const& path) const {
    auto fields = read_checked_file(path, k_peer_format);
    if (!fields) {
        if (fields.error().code() == ErrorCode::Integrity) return damaged_peer(path);
        return std::move(fields).error();
    }
    auto host = TRY(decode_trusted(*fields, path));
    if (peer_path(host.fingerprint) != path) return damaged_peer(path);
    return host;
}

Result<std::vector<TrustedHost>> HostTrust::list() const {
    std::vector<TrustedHost> hosts;
    std::error_code error;
    fs::directory_iterator it(peers(), error);
    if (error == std::errc::no_such_file_or_directory) return hosts;
    for (fs::directory_iterator end; !error && it != end; it.increment(error)) {
        auto const name = it->path().filename().native();
        if (name.starts_with('.')) continue; // in the making
        if (hosts.size() == k_max_trusted_hosts)
            return make_error(ErrorCode::NoSpace, "more than {} hosts are trusted here", k_max_trusted_hosts);
        hosts.push_back(TRY(read_peer(it->path())));
    }
    if (error) return make_error(ErrorCode::Io, "cannot read {}: {}", peers().native(), error.message());
    std::sort(hosts.begin(), hosts.end(), [](auto const& a, auto const& b) { return a.name < b.name; });
    return hosts;
}

Result<TrustedHost> HostTrust::find(crypto::Digest const& fingerprint) const {
    auto found = read_peer(peer_path(fingerprint));
    if (!found && found.error().code() == ErrorCode::NotFound)
        return make_error(
            ErrorCode::NotFound,
            "the other host's certificate is not trusted here (SHA-256 {}). If it is that of the host you "
            "mean: 'coffer host cert --export FILE' there, 'coffer host trust FILE' here",
            crypto::format_fingerprint(fingerprint));
    return found;
}

Result<TrustedHost> HostTrust::trust(crypto::Certificate const& certificate, std::string name) const {
    if (name.empty()) name = name_of(certificate);
    TRY(check_host_name(name));
    TRY(crypto::check_dates(certificate, wall_clock_seconds()));
    auto const guard = TRY(lock_folder(m_folder));
    auto const fingerprint = TRY(crypto::fingerprint_of(certificate));
    auto const known = TRY(list());
    for (auto const& host : known)
        if (host.name == name && host.fingerprint != fingerprint)
            return make_error(ErrorCode::AlreadyExists,
                              "another certificate is trusted under the name '{}' (SHA-256 {}): 'coffer host untrust' "
                              "it, or give this one another --name",
                              name, crypto::format_fingerprint(host.fingerprint));
    if (known.size() == k_max_trusted_hosts)
        return make_error(ErrorCode::NoSpace, "{} hosts are trusted here already", known.size());
    TrustedHost host{std::move(name), fingerprint, certificate.clone(), wall_clock_seconds()};
    TRY(make_folders(peers()));
    auto const der_form = TRY(certificate.to_der());
    TRY(write_checked_file(peer_path(fingerprint), k_peer_format, encode_trusted(host, der_form)));
    return host;
}

Result<TrustedHost> HostTrust::untrust(std::string_view which) const {
    auto const guard = TRY(lock_folder(m_folder));
    auto const wanted = crypto::parse_fingerprint(which);
    for (auto& host : TRY(list()))
        if (host.name == which || (wanted && host.fingerprint == *wanted)) {
            TRY(remove_file(peer_path(host.fingerprint)));
            return std::move(host);
        }
    return make_error(ErrorCode::NotFound, "no host '{}' is trusted here ('coffer host list' shows those that are)",
                      which);
}

} // namespace coffer::vmm
