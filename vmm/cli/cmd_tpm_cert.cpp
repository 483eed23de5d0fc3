// coffer tpm cert show|export|replace NAME
#include <iostream>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "base/clock.hpp"
#include "vmm/ca/tpm_certificates.hpp"
#include "vmm/cli/cmd_tpm.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/home_opener.hpp"
#include "vmm/cli/output.hpp"
#include "vmm/cli/tpm_access.hpp"
#include "vmm/cli/wording.hpp"

namespace coffer::cli {

namespace {

struct Options {
    std::string name;
    bool json = false;
    bool text = false;
    std::string which = "rsa2048";
    std::string der;
    std::string pem;
    bool yes = false;
    int passphrase_fd = -1;
};

constexpr std::string_view k_platform = "platform";
constexpr std::string_view k_chain = "chain";

// One certificate of the TPM, as it is shown.
struct Finding {
    std::string name;
    uint32_t index = 0;
    size_t size = 0;
    std::string problem; // empty: it is what it should be
    std::string serial;
    std::string issuer;
    int64_t not_before = 0;
    int64_t not_after = 0;
    std::string text; // all of it
};

bool sound(std::vector<Finding> const& findings) {
    return std::all_of(findings.begin(), findings.end(), [](auto const& finding) { return finding.problem.empty(); });
}

// Checks an endorsement certificate against the TPM's key and the chain that lies beside it.
Result<Finding> look_at_endorsement(devices::TpmClient& client, devices::EkProfile const& profile, Bytes der,
                                    std::vector<crypto::Certificate> const& chain) {
    Finding finding{std::string(profile.name), profile.certificate_index, der.size(), {}, {}, {}, 0, 0, {}};
    if (der.empty()) {
        finding.problem = "there is none";
        return finding;
    }
    auto certificate = crypto::Certificate::parse_der(der);
    if (!certificate) {
        finding.problem = certificate.error().message();
        return finding;
    }
    finding.serial = certificate->serial();
    finding.issuer = certificate->issuer();
    finding.not_before = certificate->not_before();
    finding.not_after = certificate->not_after();
    finding.text = TRY(certificate->describe());
    auto key = TRY(devices::create_endorsement_key(client, profile.kind));
    if (!key) {
        finding.problem = "the TPM does not show its key: its endorsement hierarchy has a password";
        return finding;
    }
    TRY(devices::flush_object(client, key->handle));
    if (!TRY(vmm::is_about(*certificate, key->public_area))) {
        finding.problem = "it is about another key than the TPM's";
    } else if (chain.empty()) {
        finding.problem = "there is no chain of its authorities in the TPM";
    } else if (auto verified = crypto::verify_chain(*certificate, chain, wall_clock_seconds()); !verified) {
        finding.problem = verified.error().message();
    }
    return finding;
}

Finding look_at_platform(vmm::TpmCertificates const& found, std::vector<crypto::Certificate> const& chain,
                         Uuid const& vm) {
    Finding finding{
        std::string(k_platform), devices::k_platform_certificate_index, found.platform.size(), {}, {}, {}, 0, 0, {}};
    if (found.platform.empty()) {
        finding.problem = "there is none";
        return finding;
    }
    auto certificate = vmm::parse_platform_certificate(found.platform);
    if (!certificate) {
        finding.problem = certificate.error().message();
        return finding;
    }
    finding.serial = format_hex(certificate->serial);
    finding.not_before = certificate->not_before;
    finding.not_after = certificate->not_after;
    finding.text = fmt::format("{}, {}, version {}, serial number {}; holder: the certificate {}\n",
                               certificate->manufacturer, certificate->model, certificate->version,
                               certificate->platform_serial, format_hex(certificate->holder_serial));
    if (!chain.empty()) finding.issuer = chain.front().subject();
    if (certificate->platform_serial != vm.to_string())
        finding.problem = "it is about another VM";
    else if (chain.empty())
        finding.problem = "there is no chain of its authorities in the TPM";
    else if (!chain.front().verifies(certificate->signed_part, certificate->signature))
        finding.problem = "the authority did not sign it";
    return finding;
}

void print_finding(Finding const& finding, bool text) {
    auto row = [](std::string_view what, std::string_view value) { print_line(fmt::format("{:<12} {}", what, value)); };
    row(finding.name, fmt::format("NV index {:#010x}, {} bytes: {}", finding.index, finding.size,
                                  finding.problem.empty() ? "good" : finding.problem));
    if (finding.serial.empty()) return;
    row("  serial", finding.serial);
    row("  issuer", finding.issuer);
    row("  valid", fmt::format("from {} to {}", format_time(finding.not_before),
                               finding.not_after == crypto::k_no_expiry ? "no end" : format_time(finding.not_after)));
    if (text) print_line(finding.text);
}

Result<int> show(Context const& context, Options const& options) {
    auto access = TRY(TpmAccess::open(context, options.name, options.passphrase_fd, TpmChanges::Discard));
    devices::TpmClient client(access->tpm());
    TRY(client.startup());
    auto const found = TRY(vmm::read_tpm_certificates(client));
    auto const chain = TRY(vmm::parse_chain(found.chain));
    std::vector<Finding> findings;
    for (size_t i = 0; i < found.endorsement.size(); ++i)
        findings.push_back(TRY(look_at_endorsement(client, devices::k_ek_profiles[i], found.endorsement[i], chain)));
    findings.push_back(look_at_platform(found, chain, access->home().config().uuid));
    if (options.json) {
        auto certificates = nlohmann::json::array();
        for (auto const& finding : findings)
            certificates.push_back({{"name", finding.name},
                                    {"index", fmt::format("{:#010x}", finding.index)},
                                    {"size", finding.size},
                                    {"good", finding.problem.empty()},
                                    {"problem", finding.problem},
                                    {"serial", finding.serial},
                                    {"issuer", finding.issuer},
                                    {"not_before", finding.not_before},
                                    {"not_after", finding.not_after},
                                    {"text", finding.text}});
        auto authorities = nlohmann::json::array();
        for (auto const& authority : chain) authorities.push_back(authority.subject());
        print_line(dump({{"name", options.name}, {"certificates", certificates}, {"chain", authorities}}));
    } else {
        for (auto const& finding : findings) print_finding(finding, options.text);
        for (auto const& authority : chain) print_line(fmt::format("{:<12} {}", k_chain, authority.subject()));
    }
    if (!sound(findings))
        return make_error(ErrorCode::Corrupt,
                          "not all certificates of the TPM of '{}' are good; 'coffer tpm cert replace {}' issues new "
                          "ones",
                          options.name, options.name);
    return to_int(ExitCode::Ok);
}

Result<int> export_one(Context const& context, Options const& options) {
    if (options.der.empty() == options.pem.empty())
        return make_error(ErrorCode::InvalidArgument, "say where to: either --der FILE or --pem FILE");
    auto access = TRY(TpmAccess::open(context, options.name, options.passphrase_fd, TpmChanges::Discard));
    devices::TpmClient client(access->tpm());
    TRY(client.startup());
    auto const found = TRY(vmm::read_tpm_certificates(client));
    ByteVector der;
    if (options.which == k_platform) der = found.platform;
    if (options.which == k_chain) der = found.chain;
    for (size_t i = 0; i < found.endorsement.size(); ++i)
        if (options.which == devices::k_ek_profiles[i].name) der = found.endorsement[i];
    if (der.empty())
        return make_error(ErrorCode::NotFound, "the TPM of '{}' has no certificate '{}'", options.name, options.which);
    if (!options.der.empty()) {
        std::string bytes;
        for (std::byte b : der) bytes += static_cast<char>(b);
        return write_or_print(options.der, bytes);
    }
    if (options.which == k_platform)
        return write_or_print(options.pem, TRY(crypto::to_pem("ATTRIBUTE CERTIFICATE", der)));
    std::string text;
    for (auto const& certificate : TRY(vmm::parse_chain(der))) text += TRY(certificate.to_pem());
    return write_or_print(options.pem, text);
}

Result<void> confirm(std::string const& name) {
    if (::isatty(STDIN_FILENO) != 1)
        return make_error(ErrorCode::InvalidArgument,
                          "replacing certificates of '{}' cannot be undone: give --yes if that is wanted", name);
    print_line(fmt::format("This replaces the certificates in the TPM of '{}'. Who knows the VM by the old ones has to "
                           "be told. Its keys stay.\nType the VM's name to go on:",
                           name));
    std::string answer;
    std::getline(std::cin, answer);
    if (answer != name) return make_error(ErrorCode::Cancelled, "the certificates of '{}' were not replaced", name);
    return {};
}

Result<int> replace(Context const& context, Options const& options) {
    auto location = TRY(context.location(options.name));
    HomeOpener opener(location.root, Context::keeper_options(options.passphrase_fd));
    auto home = TRY(opener.open(location, vmm::HomeAccess::Writer));
    if (home->config().tpm == vmm::TpmKind::None)
        return make_error(ErrorCode::InvalidArgument, "VM '{}' has no TPM", options.name);
    auto const provider = TRY(vmm::summarize_home(location)).provider;
    if (!options.yes) TRY(confirm(options.name));
    auto* keeper = TRY(opener.keeper());
    auto const opened = TRY(vmm::AuthorityStore(location.root).open_or_make(*keeper, provider));
    auto state = TRY(vmm::load_tpm(*home));
    auto& store = home->store(vmm::HomeFile::Tpm);
    auto tpm = TRY(devices::LibtpmsBackend::create(std::move(state), devices::TpmManufacture::No, store));
    devices::TpmClient client(*tpm);
    TRY(client.startup());
    TRY(vmm::certify_tpm(client, home->config().uuid, opened.authority));
    TRY(client.shutdown());
    TRY(tpm->make_durable());
    print_line(fmt::format("the TPM of '{}' has new certificates of '{}'", options.name,
                           opened.authority.chain().front().subject()));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_tpm_cert(CLI::App& tpm, Context& context) {
    auto* cert = tpm.add_subcommand("cert", "Certificates of a TPM's endorsement keys and of its platform");
    cert->require_subcommand(1);
    auto add = [&](char const* name, char const* description, Result<int> (*action)(Context const&, Options const&)) {
        auto* verb = cert->add_subcommand(name, description);
        auto options = std::make_shared<Options>();
        verb->add_option("NAME", options->name, "The VM, which is off")->required();
        add_passphrase_option(*verb, options->passphrase_fd);
        verb->callback([&context, options, action] {
            context.action = [&context, options, action] { return action(context, *options); };
        });
        return std::pair{verb, options};
    };
    {
        auto [verb, options] = add("show", "Show and check the certificates", show);
        verb->add_flag("--json", options->json, "Print JSON");
        verb->add_flag("--text", options->text, "Print all that is in them");
    }
    {
        auto [verb, options] = add("export", "Write a certificate to a file", export_one);
        verb->add_option("--which", options->which, "rsa2048 (default), ecc-p256, ecc-p384, platform or chain")
            ->check(CLI::IsMember({"rsa2048", "ecc-p256", "ecc-p384", "platform", "chain"}))
            ->type_name("CERT");
        verb->add_option("--der", options->der, "As it lies in the TPM")->type_name("FILE");
        verb->add_option("--pem", options->pem, "In PEM")->type_name("FILE");
    }
    {
        auto [verb, options] = add("replace", "Issue new certificates by this host's certificate authority", replace);
        verb->add_flag("--yes", options->yes, "Do not ask");
    }
}

} // namespace coffer::cli
