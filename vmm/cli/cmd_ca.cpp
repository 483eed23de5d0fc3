// coffer ca show|export|csr|import|protect: this host's certificate authority for TPMs
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "vmm/ca/authority_store.hpp"
#include "vmm/cli/cmd_ca.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/output.hpp"
#include "vmm/cli/wording.hpp"

namespace coffer::cli {

namespace {

constexpr size_t k_max_pem = size_t{1} << 20;

struct Options {
    bool json = false;
    std::string file;
    bool root_only = false;
    std::string chain;
    std::string key;
    std::string provider;
    int passphrase_fd = -1;
};

// "does not end" for authorities that are valid for ever.
std::string end_text(int64_t not_after) {
    return not_after == crypto::k_no_expiry ? "no end" : format_time(not_after);
}

Result<vmm::AuthorityInfo> require_info(vmm::HomeRoot const& root) {
    auto info = TRY(vmm::AuthorityStore(root).info());
    if (!info)
        return make_error(
            ErrorCode::NotFound,
            "this host has no certificate authority yet: the first TPM that is made makes it, and 'coffer "
            "ca import' brings your own");
    return std::move(*info);
}

// The provider's name, or its id where it is gone.
std::string provider_name(vmm::HomeRoot const& root, Uuid const& id) {
    if (auto providers = ProviderRegistry(root.providers()).list())
        for (auto const& provider : *providers)
            if (provider.id == id) return provider.name;
    return id.to_string() + " (missing)";
}

Result<int> show(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    auto info = TRY(require_info(root));
    bool const own = info.origin == vmm::AuthorityOrigin::Own;
    auto const provider = provider_name(root, info.provider);
    auto array = nlohmann::json::array();
    for (auto const& certificate : info.chain)
        array.push_back({{"subject", certificate.subject()},
                         {"serial", certificate.serial()},
                         {"not_before", certificate.not_before()},
                         {"not_after", certificate.not_after()},
                         {"key_identifier", format_hex(certificate.key_identifier())}});
    if (options.json) {
        print_line(dump({{"origin", own ? "own" : "imported"},
                         {"provider", {{"id", info.provider.to_string()}, {"name", provider}}},
                         {"key_id", info.key_id},
                         {"written", info.written},
                         {"chain", std::move(array)}}));
        return to_int(ExitCode::Ok);
    }
    auto row = [](std::string_view what, std::string_view value) { print_line(fmt::format("{:<12} {}", what, value)); };
    row("origin", own ? "made on this host" : "imported");
    row("written", format_time(info.written));
    row("provider", provider);
    row("key", info.key_id);
    for (size_t i = 0; i < info.chain.size(); ++i) {
        auto const& certificate = info.chain[i];
        row(i == 0 ? "signs TPMs" : i + 1 == info.chain.size() ? "root" : "above", certificate.subject());
        row("", fmt::format("serial {}, from {} to {}", certificate.serial(), format_time(certificate.not_before()),
                            end_text(certificate.not_after())));
    }
    return to_int(ExitCode::Ok);
}

Result<int> export_chain(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    auto info = TRY(require_info(root));
    std::string text;
    for (size_t i = options.root_only ? info.chain.size() - 1 : 0; i < info.chain.size(); ++i)
        text += TRY(info.chain[i].to_pem());
    return write_or_print(options.file, text);
}

Result<int> request(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    auto keeper = TRY(vmm::KeeperProcess::start(root, Context::keeper_options(options.passphrase_fd)));
    auto authority = TRY(vmm::AuthorityStore(root).open(keeper));
    auto const subject = authority.chain().front().subject();
    // The name alone, without "CN=".
    auto const name = subject.substr(0, 3) == "CN=" ? subject.substr(3) : subject;
    return write_or_print(options.file, TRY(crypto::make_request(name, authority.key())));
}

Result<crypto::SigningKey> read_key(std::string const& path) {
    auto content = TRY(read_file(path, k_max_pem));
    auto const secret = crypto::SecretBytes::copy_of(content);
    crypto::wipe_bytes(content);
    return TRY_CONTEXT(crypto::SigningKey::parse_pem(secret), path);
}

Result<crypto::SigningKey> present_key(vmm::AuthorityStore const& store, vmm::KeeperProcess& keeper) {
    auto const authority = TRY(store.open(keeper));
    auto const der = TRY(authority.key().to_der());
    return crypto::SigningKey::parse_der(der.expose());
}

Result<Uuid> choose_provider(vmm::HomeRoot const& root, Options const& options,
                             std::optional<vmm::AuthorityInfo> const& now) {
    ProviderRegistry registry(root.providers());
    if (!options.provider.empty()) return TRY(registry.find(options.provider)).id;
    if (now) return now->provider;
    if (auto chosen = TRY(registry.default_provider())) return *chosen;
    auto const providers = TRY(registry.list());
    if (providers.size() == 1) return providers.front().id;
    return make_error(ErrorCode::InvalidArgument,
                      "say with --provider which key provider protects the authority's key");
}

Result<int> import(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    vmm::AuthorityStore store(root);
    auto const now = TRY(store.info());
    auto const provider = TRY(choose_provider(root, options, now));
    auto const text = TRY(read_file(options.chain, k_max_pem));
    std::string pem;
    for (std::byte b : text) pem += static_cast<char>(b);
    auto chain = crypto::Certificate::parse_pem(pem);
    if (!chain) return make_error(ErrorCode::InvalidArgument, "{}: {}", options.chain, chain.error().message());
    auto keeper = TRY(vmm::KeeperProcess::start(root, Context::keeper_options(options.passphrase_fd)));
    // Without a key the chain is an answer to `ca csr`, and is for the key that is here.
    auto key = TRY(options.key.empty() ? present_key(store, keeper) : read_key(options.key));
    auto authority = TRY_CONTEXT(vmm::Authority::create(std::move(key), std::move(*chain)), options.chain);
    if (authority.chain().front().not_after() <= wall_clock_seconds())
        return make_error(ErrorCode::InvalidArgument, "{}: the first certificate has expired", options.chain);
    TRY(store.import(keeper, provider, authority));
    print_line(fmt::format("TPMs are certified by '{}' from now on; 'coffer tpm cert replace' brings it to those that "
                           "there are",
                           authority.chain().front().subject()));
    return to_int(ExitCode::Ok);
}

Result<int> protect(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    auto const provider = TRY(ProviderRegistry(root.providers()).find(options.provider));
    auto keeper = TRY(vmm::KeeperProcess::start(root, Context::keeper_options(options.passphrase_fd)));
    TRY(vmm::AuthorityStore(root).protect(keeper, provider.id));
    print_line(fmt::format("the certificate authority's keys are under key provider '{}'", provider.name));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_ca(CLI::App& app, Context& context) {
    auto* ca = app.add_subcommand("ca", "This host's certificate authority for TPMs");
    ca->require_subcommand(1);
    auto add = [&](char const* name, char const* description, Result<int> (*action)(Context const&, Options const&)) {
        auto* verb = ca->add_subcommand(name, description);
        auto options = std::make_shared<Options>();
        verb->callback([&context, options, action] {
            context.action = [&context, options, action] { return action(context, *options); };
        });
        return std::pair{verb, options};
    };
    {
        auto [verb, options] = add("show", "Show its certificates and the key provider that protects its keys", show);
        verb->add_flag("--json", options->json, "Print JSON");
    }
    {
        auto [verb, options] = add("export", "Write its certificates in PEM, for those who verify TPMs", export_chain);
        verb->add_option("--file", options->file, "Where to [standard output]")->type_name("FILE");
        verb->add_flag("--root", options->root_only, "The root's certificate alone");
    }
    {
        auto [verb, options] = add("csr",
                                   "Write a certificate request (PKCS #10) for the key that signs TPMs' "
                                   "certificates, for an authority of yours to sign",
                                   request);
        verb->add_option("--file", options->file, "Where to [standard output]")->type_name("FILE");
        add_passphrase_option(*verb, options->passphrase_fd);
    }
    {
        auto [verb, options] =
            add("import", "Take an authority of yours, or a certificate for this one's request", import);
        verb->add_option("--chain", options->chain,
                         "Certificates in PEM: the one that signs TPMs' certificates, those above it, the root")
            ->required()
            ->type_name("FILE");
        verb->add_option("--key", options->key,
                         "The first certificate's private key in PEM, without passphrase [the key that 'ca csr' uses]")
            ->type_name("FILE");
        verb->add_option("--provider", options->provider, "The key provider that protects the key [as before]")
            ->type_name("NAME");
        add_passphrase_option(*verb, options->passphrase_fd);
    }
    {
        auto [verb, options] = add("protect", "Put its keys under another key provider", protect);
        verb->add_option("PROVIDER", options->provider, "The key provider's name")->required();
        add_passphrase_option(*verb, options->passphrase_fd);
    }
}

} // namespace coffer::cli
