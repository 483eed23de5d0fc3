#include "keyprovider/native/kdk_store.hpp"

#include <algorithm>
#include <charconv>

#include "base/file.hpp"

namespace coffer {

namespace {

constexpr std::string_view k_prefix = "kdk.";

std::filesystem::path file_of(std::filesystem::path const& folder, uint32_t version) {
    return folder / fmt::format("{}{}", k_prefix, version);
}

std::optional<uint32_t> version_of(std::string_view file_name) {
    if (!file_name.starts_with(k_prefix)) return std::nullopt;
    file_name.remove_prefix(k_prefix.size());
    uint32_t version = 0;
    auto const* end = file_name.data() + file_name.size();
    auto parsed = std::from_chars(file_name.data(), end, version);
    // One spelling each: no leading zeros.
    if (parsed.ec != std::errc() || parsed.ptr != end || version == 0 || file_name.front() == '0') return std::nullopt;
    return version;
}

} // namespace

std::filesystem::path KdkStore::path_of(uint32_t version) const {
    return file_of(m_folder, version);
}

Result<std::vector<uint32_t>> KdkStore::versions(std::filesystem::path const& folder) {
    std::vector<uint32_t> found;
    std::error_code error;
    std::filesystem::directory_iterator it(folder, error);
    for (std::filesystem::directory_iterator end; !error && it != end; it.increment(error))
        if (auto version = version_of(it->path().filename().native())) found.push_back(*version);
    if (error) return make_error(ErrorCode::Io, "cannot read {}: {}", folder.native(), error.message());
    std::sort(found.begin(), found.end());
    return found;
}

Result<void> KdkStore::remove(std::filesystem::path const& folder, uint32_t version) {
    return remove_file(file_of(folder, version));
}

Result<crypto::SecretBytes> KdkStore::passphrase(std::string_view what) {
    if (!m_known) m_known = TRY(m_passphrase(what));
    return crypto::SecretBytes::copy_of(m_known->expose());
}

Result<HostTpm*> KdkStore::tpm() const {
    if (m_tcti.empty() || !m_tpms)
        return make_error(ErrorCode::KeyUnavailable, "the provider's key is sealed to a TPM, which is out of reach");
    return m_tpms(m_tcti);
}

Result<crypto::KeyDerivationKey> KdkStore::load(uint32_t version) {
    auto kdk = load_kdk(
        path_of(version), {m_id, version}, [this](std::string_view what) { return passphrase(what); },
        [this] { return tpm(); });
    if (kdk)
        m_proved = true;
    else if (!m_proved)
        m_known.reset(); // it may be wrong: ask anew, where there is someone to ask
    return kdk;
}

Result<void> KdkStore::save(uint32_t version, crypto::KeyDerivationKey const& kdk) {
    if (!m_tcti.empty()) {
        auto* const host = TRY(tpm());
        auto file = TRY(seal_kdk_to_tpm({m_id, version}, kdk, *host));
        return replace_file(path_of(version), file.expose(), 0600);
    }
    std::optional<crypto::SecretBytes> secret;
    if (m_needs_passphrase) secret = TRY(passphrase("the passphrase of the key provider"));
    auto file = TRY(seal_kdk({m_id, version}, kdk, secret ? &*secret : nullptr));
    return replace_file(path_of(version), file.expose(), 0600);
}

} // namespace coffer
