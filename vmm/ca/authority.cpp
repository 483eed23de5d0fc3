#include "vmm/ca/authority.hpp"

#include "crypto/der.hpp"
#include "vmm/ca/endorsement_key_info.hpp"
#include "vmm/ca/tcg_names.hpp"
#include "vmm/ca/tcg_oids.hpp"

namespace coffer::vmm {

namespace der = crypto::der;

namespace {

// TPM_PT (TPM 2.0 Library 1.59, Part 2, 6.13).
constexpr uint32_t k_pt_family_indicator = 0x100;
constexpr uint32_t k_pt_level = 0x101;
constexpr uint32_t k_pt_revision = 0x102;
constexpr uint32_t k_pt_manufacturer = 0x105;
constexpr uint32_t k_pt_vendor_string_1 = 0x106;
constexpr uint32_t k_pt_vendor_string_4 = 0x109;
constexpr uint32_t k_pt_firmware_version_1 = 0x10B;

constexpr size_t k_max_chain = 8;

// Four characters of a property, without the zeros at its end.
void append_characters(std::string& text, uint32_t value) {
    for (unsigned shift : {24U, 16U, 8U, 0U}) {
        auto const c = static_cast<char>(value >> shift & 0xFF);
        if (c >= ' ' && c <= '~') text += c;
    }
}

// A BIT STRING with the one bit of a KeyUsage set (RFC 5280, 4.2.1.3).
ByteVector key_usage(unsigned bit) {
    std::array const content{static_cast<std::byte>(7 - bit), static_cast<std::byte>(0x80U >> bit)};
    return der::element(der::BitString, content);
}

std::vector<crypto::CertificateExtension> endorsement_extensions(devices::EkKind kind, TpmIdentity const& tpm) {
    constexpr unsigned k_key_encipherment = 2;
    constexpr unsigned k_key_agreement = 4;
    auto const names = directory_name({{oid::k_tpm_manufacturer, fmt::format("id:{:08X}", tpm.manufacturer)},
                                       {oid::k_tpm_model, tpm.model},
                                       {oid::k_tpm_version, fmt::format("id:{:08X}", tpm.version)}});
    auto const specification =
        der::sequence({der::utf8(tpm.family), der::integer(tpm.level), der::integer(tpm.revision)});
    auto const attribute = der::sequence({der::oid(oid::k_tpm_specification), der::set_of({specification})});
    std::vector<crypto::CertificateExtension> extensions;
    extensions.push_back({oid::k_basic_constraints, true, der::sequence({})});
    extensions.push_back(
        {oid::k_key_usage, true, key_usage(kind == devices::EkKind::Rsa2048 ? k_key_encipherment : k_key_agreement)});
    extensions.push_back({oid::k_extended_key_usage, false, der::sequence({der::oid(oid::k_kp_ek_certificate)})});
    extensions.push_back({oid::k_subject_alternative_name, false, der::sequence({names})});
    extensions.push_back({oid::k_subject_directory_attributes, false, der::sequence({attribute})});
    return extensions;
}

} // namespace

Result<TpmIdentity> TpmIdentity::of(devices::TpmClient& client) {
    TpmIdentity identity;
    identity.manufacturer = TRY(client.property(k_pt_manufacturer));
    for (uint32_t tag = k_pt_vendor_string_1; tag <= k_pt_vendor_string_4; ++tag)
        append_characters(identity.model, TRY(client.property(tag)));
    while (!identity.model.empty() && identity.model.back() == ' ') identity.model.pop_back();
    identity.version = TRY(client.property(k_pt_firmware_version_1));
    append_characters(identity.family, TRY(client.property(k_pt_family_indicator)));
    identity.level = TRY(client.property(k_pt_level));
    identity.revision = TRY(client.property(k_pt_revision));
    return identity;
}

Result<Authority> Authority::create(crypto::SigningKey key, std::vector<crypto::Certificate> chain) {
    auto refused = [](std::string const& why) { return make_error(ErrorCode::InvalidArgument, "{}", why); };
    if (chain.empty() || chain.size() > k_max_chain)
        return refused(fmt::format("an authority has a chain of 1 to {} certificates, and there are {}", k_max_chain,
                                   chain.size()));
    if (!chain.front().has_key(key))
        return refused(
            fmt::format("the private key is not that of the first certificate ({})", chain.front().subject()));
    for (size_t i = 0; i < chain.size(); ++i) {
        auto const& certificate = chain[i];
        if (!certificate.is_authority())
            return refused(fmt::format("certificate {} ({}) may not sign certificates", i + 1, certificate.subject()));
        if (i + 1 < chain.size() && !certificate.is_signed_by(chain[i + 1]))
            return refused(fmt::format("certificate {} ({}) is not signed by the next one ({})", i + 1,
                                       certificate.subject(), chain[i + 1].subject()));
    }
    if (!chain.back().is_self_signed())
        return refused(fmt::format("the last certificate ({}) is no root: it is not signed by itself; put the "
                                   "authorities above it behind it",
                                   chain.back().subject()));
    return Authority(std::move(key), std::move(chain));
}

Result<crypto::Certificate> Authority::issue_endorsement(devices::EkPublic const& key, TpmIdentity const& tpm,
                                                         int64_t now) const {
    auto const& issuer = m_chain.front();
    if (issuer.not_after() <= now)
        return make_error(ErrorCode::Unsupported,
                          "the certificate authority's certificate ({}) has expired: import a new one with 'coffer ca "
                          "import'",
                          issuer.subject());
    crypto::CertificateContent content;
    content.public_key = endorsement_key_info(key);
    content.not_before = now;
    content.not_after = issuer.not_after();
    content.extensions = endorsement_extensions(key.kind, tpm);
    auto certificate = TRY(crypto::issue_certificate(content, m_key, &issuer));
    // What verifiers will do: an authority that forbids such certificates is found out here, not by them.
    TRY_CONTEXT(crypto::verify_chain(certificate, m_chain, now),
                "certificates of this host's authority are not good for TPMs");
    return certificate;
}

} // namespace coffer::vmm
