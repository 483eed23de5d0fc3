// coffer host cert|trust|list|untrust: who this host is to others, and whom it migrates VMs with
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/output.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/migrate/host_identity.hpp"

namespace coffer::cli {

namespace {

constexpr size_t k_max_pem = size_t{64} << 10;

struct HostOptions {
    std::string file;
    std::string name;
    bool json = false;
    bool renew = false;
};

nlohmann::json to_json(crypto::Certificate const& certificate, crypto::Digest const& fingerprint) {
    return {{"fingerprint", crypto::format_fingerprint(fingerprint)},
            {"subject", certificate.subject()},
            {"not_before", certificate.not_before()},
            {"not_after", certificate.not_after()}};
}

std::string dates(crypto::Certificate const& certificate) {
    auto const now = wall_clock_seconds();
    auto const text =
        fmt::format("{} to {}", format_time(certificate.not_before()), format_time(certificate.not_after()));
    return crypto::check_dates(certificate, now) ? text : text + " (not valid now)";
}

Result<int> certificate(Context const& context, HostOptions const& options) {
    vmm::HostTrust const trust(TRY(context.root()));
    auto const identity = options.renew ? TRY(trust.renew()) : TRY(trust.identity());
    auto const fingerprint = TRY(crypto::fingerprint_of(identity.certificate));
    auto const pem = TRY(identity.certificate.to_pem());
    if (!options.file.empty()) TRY(write_or_print(options.file, pem));
    if (options.json) {
        auto json = to_json(identity.certificate, fingerprint);
        json["certificate"] = pem;
        print_line(dump(json));
        return to_int(ExitCode::Ok);
    }
    if (options.renew) print_line("made a new key and certificate: the other hosts have to trust it anew");
    print_line(fmt::format("subject  {}", identity.certificate.subject()));
    print_line(fmt::format("SHA-256  {}", crypto::format_fingerprint(fingerprint)));
    print_line(fmt::format("valid    {}", dates(identity.certificate)));
    if (options.file.empty()) print_line(pem.ends_with('\n') ? pem.substr(0, pem.size() - 1) : pem);
    return to_int(ExitCode::Ok);
}

Result<int> trust(Context const& context, HostOptions const& options) {
    vmm::HostTrust const trust(TRY(context.root()));
    auto const content = TRY(read_file(options.file, k_max_pem));
    std::string const text = [&] {
        std::string copy;
        for (std::byte byte : content) copy.push_back(static_cast<char>(byte));
        return copy;
    }();
    auto const certificates = TRY_CONTEXT(crypto::Certificate::parse_pem(text), options.file);
    if (certificates.size() != 1)
        return make_error(ErrorCode::InvalidArgument,
                          "{} holds {} certificates, and should hold that of one host ('coffer host cert --export')",
                          options.file, certificates.size());
    auto const own = TRY(trust.identity());
    if (TRY(crypto::fingerprint_of(own.certificate)) == TRY(crypto::fingerprint_of(certificates.front())))
        return make_error(ErrorCode::InvalidArgument, "{} is this host's own certificate: trust it on the other host",
                          options.file);
    auto const host = TRY(trust.trust(certificates.front(), options.name));
    print_line(fmt::format("trusts '{}' (SHA-256 {}): compare that with 'coffer host cert' there", host.name,
                           crypto::format_fingerprint(host.fingerprint)));
    return to_int(ExitCode::Ok);
}

Result<int> list(Context const& context, HostOptions const& options) {
    vmm::HostTrust const trust(TRY(context.root()));
    auto array = nlohmann::json::array();
    for (auto const& host : TRY(trust.list())) {
        if (options.json) {
            auto json = to_json(host.certificate, host.fingerprint);
            json["name"] = host.name;
            json["since"] = host.since;
            array.push_back(std::move(json));
            continue;
        }
        print_line(fmt::format("{:<24}  {}  {}", host.name, crypto::format_fingerprint(host.fingerprint),
                               dates(host.certificate)));
    }
    if (options.json) print_line(dump(array));
    return to_int(ExitCode::Ok);
}

Result<int> untrust(Context const& context, HostOptions const& options) {
    vmm::HostTrust const trust(TRY(context.root()));
    auto const gone = TRY(trust.untrust(options.name));
    print_line(
        fmt::format("no longer trusts '{}' (SHA-256 {})", gone.name, crypto::format_fingerprint(gone.fingerprint)));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_host(CLI::App& app, Context& context) {
    auto* host =
        app.add_subcommand("host", "This host's certificate, and the other hosts that VMs migrate to and from");
    host->require_subcommand(1);
    auto options = std::make_shared<HostOptions>();
    auto add = [&](char const* name, char const* what, auto action) {
        auto* verb = host->add_subcommand(name, what);
        verb->callback([&context, options, action] {
            context.action = [&context, options, action] { return action(context, *options); };
        });
        return verb;
    };
    auto* cert = add("cert", "Show this host's certificate, which is made when first asked for", certificate);
    cert->add_option("--export", options->file, "Write it to FILE in PEM, for 'coffer host trust' on other hosts")
        ->type_name("FILE");
    cert->add_flag("--renew", options->renew, "Make a new key and certificate; other hosts have to trust it anew");
    cert->add_flag("--json", options->json, "Print JSON");
    auto* pin = add("trust", "Let VMs migrate to and from the host that has exactly this certificate", trust);
    pin->add_option("FILE", options->file, "Its certificate, PEM")->required();
    pin->add_option("--name", options->name, "What to call it; otherwise as the certificate does");
    auto* show = add("list", "List the hosts that are trusted", list);
    show->add_flag("--json", options->json, "Print JSON");
    auto* drop = add("untrust", "No longer trust a host", untrust);
    drop->add_option("HOST", options->name, "Its name, or its certificate's SHA-256")->required();
}

} // namespace coffer::cli
