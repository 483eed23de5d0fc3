// Platform certificates: X.509 attribute certificates (RFC 5755), which OpenSSL 3.0 has no functions for.
#include <algorithm>
#include <ctime>

#include "crypto/der.hpp"
#include "crypto/random.hpp"
#include "vmm/ca/authority.hpp"
#include "vmm/ca/tcg_names.hpp"
#include "vmm/ca/tcg_oids.hpp"

namespace coffer::vmm {

namespace der = crypto::der;

namespace {

// As SMBIOS names the machine (firmware/smbios.cpp).
constexpr std::string_view k_manufacturer = "Coffer";
constexpr std::string_view k_model = "Coffer Virtual Machine";
constexpr std::string_view k_version = "1";

constexpr unsigned k_rtm_virtual =
    5; // MeasurementRootType of TBBSecurityAssertions (Platform Certificate Profile 3.1.1)

ByteVector specification_version(uint64_t major, uint64_t minor, uint64_t revision) {
    return der::sequence({der::integer(major), der::integer(minor), der::integer(revision)});
}

ByteVector attribute(std::string_view type, Bytes value) {
    return der::sequence({der::oid(type), der::set_of({value})});
}

// Platform Certificate Profile 1.1, 3.2.10.
ByteVector attributes() {
    // PC Client Platform Firmware Profile 1.05, class PC Client.
    constexpr std::array k_class{std::byte{0}, std::byte{0}, std::byte{0}, std::byte{1}};
    std::array const root_of_trust{static_cast<std::byte>(k_rtm_virtual)};
    return der::sequence({
        attribute(oid::k_credential_type, der::sequence({der::oid(oid::k_kp_platform_certificate)})),
        attribute(oid::k_credential_specification, specification_version(1, 1, 19)),
        attribute(oid::k_platform_specification, der::sequence({specification_version(1, 5, 0), der::octets(k_class)})),
        attribute(oid::k_tbb_security_assertions, der::sequence({der::element(der::implicit(2), root_of_trust)})),
    });
}

ByteVector extension(std::string_view type, Bytes value) {
    return der::sequence({der::oid(type), der::octets(value)});
}

ByteVector extensions(Uuid const& vm, Bytes issuer_key) {
    // 3.2.7: the text is prescribed.
    auto const notice =
        der::sequence({der::oid(oid::k_user_notice), der::sequence({der::utf8("TCG Trusted Platform Endorsement")})});
    auto const policy = der::sequence({der::oid(oid::k_any_policy), der::sequence({notice})});
    auto const platform = directory_name({{oid::k_platform_manufacturer, std::string(k_manufacturer)},
                                          {oid::k_platform_model, std::string(k_model)},
                                          {oid::k_platform_version, std::string(k_version)},
                                          {oid::k_platform_serial, vm.to_string()}});
    ByteVector all;
    append(all, extension(oid::k_certificate_policies, der::sequence({policy})));
    append(all, extension(oid::k_subject_alternative_name, der::sequence({platform})));
    if (!issuer_key.empty())
        append(all,
               extension(oid::k_authority_key_identifier, der::sequence({der::element(der::implicit(0), issuer_key)})));
    return der::element(der::Sequence, all);
}

// A Name as the one GeneralName of GeneralNames.
ByteVector general_names(Bytes name) {
    return der::sequence({der::element(der::constructed(4), name)});
}

// Takes DER elements off the front of their container. After the first mistake everything is empty, and ok() is false.
class DerReader {
public:
    explicit DerReader(Bytes bytes) : m_rest(bytes) {}

    // The content of the next element, which has this tag.
    Bytes take(uint8_t tag) {
        auto const whole = next();
        if (!m_ok || std::to_integer<uint8_t>(whole.front()) != tag) return fail();
        return whole.subspan(m_header);
    }
    // The next element with tag and length.
    Bytes next() {
        if (!m_ok || m_rest.size() < 2) return fail();
        auto const first = std::to_integer<size_t>(m_rest[1]);
        size_t length = first;
        m_header = 2;
        if (first >= 0x80) {
            auto const octets = first & 0x7F;
            if (octets == 0 || octets > 3 || m_rest.size() < 2 + octets) return fail();
            length = 0;
            for (size_t i = 0; i < octets; ++i) length = length << 8 | std::to_integer<size_t>(m_rest[2 + i]);
            m_header += octets;
        }
        if (m_rest.size() - m_header < length) return fail();
        auto const whole = m_rest.first(m_header + length);
        m_rest = m_rest.subspan(m_header + length);
        return whole;
    }
    bool at_end() const noexcept { return m_rest.empty(); }
    bool ok() const noexcept { return m_ok; }

private:
    Bytes fail() {
        m_ok = false;
        m_rest = {};
        return {};
    }

    Bytes m_rest;
    size_t m_header = 0;
    bool m_ok = true;
};

ByteVector unsigned_number(Bytes integer) {
    if (integer.size() > 1 && integer.front() == std::byte{0}) integer = integer.subspan(1);
    return {integer.begin(), integer.end()};
}

std::string text_of(Bytes bytes) {
    std::string text;
    for (std::byte b : bytes) text += static_cast<char>(b);
    return text;
}

// 0 where it is no GeneralizedTime in UTC.
int64_t time_of(Bytes bytes) {
    std::tm utc{};
    auto const text = text_of(bytes);
    auto const* end = ::strptime(text.c_str(), "%Y%m%d%H%M%SZ", &utc);
    return end && *end == '\0' ? ::timegm(&utc) : 0;
}

// The platform's names among an extension's GeneralNames.
void read_names(Bytes names, PlatformCertificate& to) {
    DerReader relative(
        DerReader(DerReader(DerReader(names).take(der::Sequence)).take(der::constructed(4))).take(der::Sequence));
    while (relative.ok() && !relative.at_end()) {
        DerReader pair(DerReader(relative.take(der::Set)).take(der::Sequence));
        auto const type = pair.next();
        auto const value = text_of(pair.take(der::Utf8String));
        for (auto [wanted, field] : {std::pair{oid::k_platform_manufacturer, &to.manufacturer},
                                     {oid::k_platform_model, &to.model},
                                     {oid::k_platform_version, &to.version},
                                     {oid::k_platform_serial, &to.platform_serial}})
            if (pair.ok() && std::ranges::equal(type, der::oid(wanted))) *field = value;
    }
}

} // namespace

Result<ByteVector> Authority::issue_platform(crypto::Certificate const& holder, Uuid const& vm, int64_t now) const {
    auto const& issuer = m_chain.front();
    auto const holder_issuer = general_names(TRY(holder.issuer_name()));
    auto const signed_part = der::sequence({
        der::integer(1), // version 2
        // baseCertificateID [0], issuerName [0] of the v2Form [0]
        der::sequence({der::element(der::constructed(0), {holder_issuer, TRY(holder.serial_number())})}),
        der::element(der::constructed(0), general_names(TRY(issuer.subject_name()))),
        m_key.algorithm(),
        TRY(crypto::random_serial()),
        der::sequence({der::generalized_time(now), der::generalized_time(issuer.not_after())}),
        attributes(),
        extensions(vm, issuer.key_identifier()),
    });
    auto const signature = TRY(m_key.sign(signed_part));
    return der::sequence({signed_part, m_key.algorithm(), der::bits(signature)});
}

Result<PlatformCertificate> parse_platform_certificate(Bytes bytes) {
    PlatformCertificate certificate;
    DerReader file(bytes);
    DerReader whole(file.take(der::Sequence));
    auto const signed_part = whole.next();
    (void)whole.take(der::Sequence); // algorithm
    auto const signature = whole.take(der::BitString);
    DerReader info(DerReader(signed_part).take(der::Sequence));
    auto const version = info.take(der::Integer);
    DerReader holder(DerReader(info.take(der::Sequence)).take(der::constructed(0)));
    (void)holder.take(der::Sequence); // issuer
    certificate.holder_serial = unsigned_number(holder.take(der::Integer));
    (void)info.take(der::constructed(0)); // issuer
    (void)info.take(der::Sequence);       // algorithm
    certificate.serial = unsigned_number(info.take(der::Integer));
    DerReader validity(info.take(der::Sequence));
    certificate.not_before = time_of(validity.take(der::GeneralizedTime));
    certificate.not_after = time_of(validity.take(der::GeneralizedTime));
    (void)info.take(der::Sequence); // attributes
    DerReader extensions(info.take(der::Sequence));
    while (extensions.ok() && !extensions.at_end()) {
        DerReader one(extensions.take(der::Sequence));
        auto const type = one.next();
        auto const value = one.take(der::OctetString);
        if (one.ok() && std::ranges::equal(type, der::oid(oid::k_subject_alternative_name)))
            read_names(value, certificate);
    }
    bool const well_formed = file.ok() && file.at_end() && whole.ok() && whole.at_end() && info.ok() && info.at_end() &&
                             holder.ok() && validity.ok() && extensions.ok() && version.size() == 1 &&
                             version.front() == std::byte{1} && signature.size() > 1 &&
                             !certificate.platform_serial.empty();
    if (!well_formed) return make_error(ErrorCode::Corrupt, "{} bytes are no platform certificate", bytes.size());
    certificate.signed_part.assign(signed_part.begin(), signed_part.end());
    certificate.signature.assign(signature.begin() + 1, signature.end());
    return certificate;
}

} // namespace coffer::vmm
