// coffer provider add kmip NAME
#include <CLI/CLI.hpp>

#include "vmm/cli/cmd_provider.hpp"
#include "vmm/cli/exit_codes.hpp"

namespace coffer::cli {

namespace {

struct KmipOptions {
    std::string name;
    std::vector<std::string> endpoints;
    std::string authority;
    std::string certificate;
    std::string key;
    std::string version;
    std::string pin;
    std::string id;
    bool wrap_at_server = false;
};

Result<int> add_kmip(Context const& context, KmipOptions const& options) {
    auto root = TRY(context.root());
    kmip::KmipConfig config;
    config.endpoints = options.endpoints;
    config.wrap_at_server = options.wrap_at_server;
    if (!options.version.empty()) {
        auto version = TRY(kmip::parse_version(options.version));
        if (options.wrap_at_server && !kmip::find_version(version)->gcm)
            return make_error(ErrorCode::InvalidArgument,
                              "--wrap-at-server needs KMIP 1.4 or newer, and --version asks for {}", options.version);
        config.major = version.major;
        config.minor = version.minor;
    }
    Uuid id;
    if (!options.id.empty()) {
        auto const parsed = Uuid::parse(options.id);
        if (!parsed || parsed->is_nil())
            return make_error(ErrorCode::InvalidArgument, "--id {}: 'coffer provider show' on the other host says it",
                              options.id);
        id = *parsed;
    }
    if (!options.pin.empty()) config.pin = TRY(kmip::parse_pin(options.pin));
    config.authorities = TRY(kmip::read_pem(options.authority));
    config.certificate = TRY(kmip::read_pem(options.certificate));
    auto key = TRY(kmip::read_key_pem(options.key, false));
    auto info = TRY(ProviderRegistry(root.providers()).add_kmip(options.name, config, key, id));
    print_line(fmt::format("added KMIP key provider '{}' ({}); 'coffer provider test' asks its server", info.name,
                           info.id.to_string()));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_provider_kmip(CLI::App& add, Context& context) {
    auto* verb = add.add_subcommand("kmip", "Keys at a KMIP server, or a cluster of them");
    auto options = std::make_shared<KmipOptions>();
    verb->add_option("NAME", options->name, "What to call it (any text)")->required();
    verb->add_option(
            "--endpoint", options->endpoints,
            "A server of the cluster, port 5696 unless given; may be given several times, and they are asked in "
            "this order")
        ->required()
        ->allow_extra_args(false)
        ->type_name("HOST:PORT");
    verb->add_option("--ca", options->authority, "PEM certificates that the servers' certificates have to chain to")
        ->required()
        ->type_name("FILE");
    verb->add_option("--cert", options->certificate, "This client's certificate, PEM, intermediates behind it")
        ->required()
        ->type_name("FILE");
    verb->add_option("--key", options->key, "Its private key, PEM; a copy is kept, readable by you alone")
        ->required()
        ->type_name("FILE");
    verb->add_option("--version", options->version, "Speak this KMIP version instead of the best that both know")
        ->type_name("N.N");
    verb->add_option("--pin", options->pin,
                     "Besides all checks, accept the server certificate with this SHA-256 fingerprint alone")
        ->type_name("SHA256");
    verb->add_option("--id", options->id,
                     "The id that a provider of the same servers has on another host: homes name their provider by it, "
                     "so that this host opens those of both")
        ->type_name("UUID");
    verb->add_flag("--wrap-at-server", options->wrap_at_server,
                   "Have the server encrypt and decrypt (KMIP 1.4), so that key encryption keys never leave it");
    verb->callback(
        [&context, options] { context.action = [&context, options] { return add_kmip(context, *options); }; });
}

} // namespace coffer::cli
