// Object identifiers of the TCG (TCG OID Registry 1.00) and of the extensions around them (RFC 5280, RFC 5755).
#pragma once

#include <string_view>

namespace coffer::vmm::oid {

constexpr std::string_view k_tpm_manufacturer = "2.23.133.2.1";
constexpr std::string_view k_tpm_model = "2.23.133.2.2";
constexpr std::string_view k_tpm_version = "2.23.133.2.3";
constexpr std::string_view k_tpm_specification = "2.23.133.2.16";
constexpr std::string_view k_platform_specification = "2.23.133.2.17";
constexpr std::string_view k_tbb_security_assertions = "2.23.133.2.19";
constexpr std::string_view k_credential_specification = "2.23.133.2.23";
constexpr std::string_view k_credential_type = "2.23.133.2.25";
constexpr std::string_view k_platform_manufacturer = "2.23.133.5.1.1";
constexpr std::string_view k_platform_model = "2.23.133.5.1.4";
constexpr std::string_view k_platform_version = "2.23.133.5.1.5";
constexpr std::string_view k_platform_serial = "2.23.133.5.1.6";
constexpr std::string_view k_kp_ek_certificate = "2.23.133.8.1";
constexpr std::string_view k_kp_platform_certificate = "2.23.133.8.2";

constexpr std::string_view k_subject_directory_attributes = "2.5.29.9";
constexpr std::string_view k_key_usage = "2.5.29.15";
constexpr std::string_view k_subject_alternative_name = "2.5.29.17";
constexpr std::string_view k_basic_constraints = "2.5.29.19";
constexpr std::string_view k_certificate_policies = "2.5.29.32";
constexpr std::string_view k_any_policy = "2.5.29.32.0";
constexpr std::string_view k_authority_key_identifier = "2.5.29.35";
constexpr std::string_view k_extended_key_usage = "2.5.29.37";
constexpr std::string_view k_user_notice = "1.3.6.1.5.5.7.2.2";

constexpr std::string_view k_rsa = "1.2.840.113549.1.1.1";
constexpr std::string_view k_ec_public_key = "1.2.840.10045.2.1";
constexpr std::string_view k_curve_p256 = "1.2.840.10045.3.1.7";
constexpr std::string_view k_curve_p384 = "1.3.132.0.34";

} // namespace coffer::vmm::oid
