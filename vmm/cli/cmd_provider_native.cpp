// coffer provider add native NAME; coffer provider rotate|prune|backup|restore|set
#include <iostream>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "keyprovider/native/native_provider.hpp"
#include "vmm/cli/cmd_provider.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/known_backups.hpp"
#include "vmm/cli/provider_users.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/home/keeper_client.hpp"

namespace coffer::cli {

namespace {

namespace fs = std::filesystem;

struct Options {
    std::string name;
    std::string file;
    std::string new_name;
    std::string required;
    int passphrase_fd = -1;
    int password_fd = -1;
    std::string tcti;
    bool require_host_tpm = false;
    bool ask = false;
    bool require_backup = false;
    bool overwrite = false;
    bool yes = false;

    // The TPM that the provider is bound to; empty: none.
    std::string host_tpm() const {
        if (!require_host_tpm) return {};
        return tcti.empty() ? std::string(k_default_tcti) : tcti;
    }
};

Result<vmm::KeeperProcess> start_manager(vmm::HomeRoot const& root, Options const& options) {
    auto keeper = Context::keeper_options(options.passphrase_fd);
    keeper.manage = true;
    keeper.password_fd = options.password_fd;
    keeper.host_tpm = options.host_tpm();
    return vmm::KeeperProcess::start(root, keeper);
}

Result<fs::path> absolute(std::string const& file) {
    std::error_code error;
    auto path = fs::absolute(file, error);
    if (error) return make_error(ErrorCode::Io, "cannot resolve {}: {}", file, error.message());
    return path.lexically_normal();
}

std::string versions_text(std::vector<uint32_t> const& versions) {
    std::string text;
    for (auto version : versions) text += fmt::format("{}{}", text.empty() ? "" : ", ", version);
    return text;
}

void print_notes(ProviderInfo const& info) {
    if (info.keys_on_disk()) print_line(unprotected_provider_warning(info.name));
    if (info.lacks_backup()) print_line("note: " + missing_backup_warning(info));
}

Result<int> add_native(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    auto keeper = TRY(start_manager(root, options));
    NativeOptions const wanted{options.passphrase_fd >= 0 || options.ask, options.require_backup, options.host_tpm()};
    auto info = TRY(keeper.add_native(options.name, wanted));
    print_line(fmt::format("added native key provider '{}' ({})", info.name, info.id.to_string()));
    print_notes(info);
    return to_int(ExitCode::Ok);
}

Result<int> rotate(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    auto info = TRY(ProviderRegistry(root.providers()).find(options.name));
    auto keeper = TRY(start_manager(root, options));
    info = TRY(keeper.rotate(info.id));
    print_line(fmt::format("key provider '{}' makes new keys from version {} of its key; older versions go on to open "
                           "what is under them ('coffer rekey' moves a VM to the new one)",
                           info.name, info.kdk_version));
    print_notes(info);
    return to_int(ExitCode::Ok);
}

struct Prunable {
    std::vector<uint32_t> unused;
    std::vector<std::string> kept; // a line for each version that has to stay
};

Result<Prunable> find_prunable(vmm::HomeRoot const& root, ProviderRegistry const& registry, ProviderInfo const& info) {
    auto users = TRY(users_of_provider(root, info.id));
    if (!users.unreadable.empty())
        return make_error(ErrorCode::Busy,
                          "key provider '{}' may be used by VMs whose homes cannot be read: {}; repair or remove them "
                          "first",
                          info.name, join(users.unreadable));
    for (auto const& backup : TRY(known_backups(root)))
        if (backup.provider == info.id) users.known.push_back({"the backup " + backup.path, backup.key_id});
    if (users.authority_key) users.known.push_back({"the certificate authority", *users.authority_key});
    Prunable prunable;
    for (auto version : TRY(registry.kdk_versions(info.id))) {
        if (version == info.kdk_version) continue;
        std::vector<ProviderUser> in_use;
        for (auto const& user : users.known)
            if (NativeProvider::kdk_version_of(user.key_id) == version) in_use.push_back(user);
        if (in_use.empty())
            prunable.unused.push_back(version);
        else
            prunable.kept.push_back(fmt::format("version {} stays: it is used by {}", version, names_of(in_use)));
    }
    return prunable;
}

Result<void> confirm_prune(ProviderInfo const& info, std::vector<uint32_t> const& versions) {
    if (::isatty(STDIN_FILENO) != 1)
        return make_error(ErrorCode::InvalidArgument,
                          "removing keys of provider '{}' cannot be undone: give --yes if that is wanted", info.name);
    print_line(
        fmt::format("No VM and no known backup of this host uses version {} of the key of '{}'. Homes "
                    "and backups under it elsewhere open with a backup of the provider alone from then on.\nType the "
                    "provider's name to go on:",
                    versions_text(versions), info.name));
    std::string answer;
    std::getline(std::cin, answer);
    if (answer != info.name) return make_error(ErrorCode::Cancelled, "nothing was removed");
    return {};
}

Result<int> prune(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    ProviderRegistry registry(root.providers());
    auto info = TRY(registry.find(options.name));
    if (info.kind != ProviderKind::Native)
        return make_error(ErrorCode::InvalidArgument, "key provider '{}' is no native one: its keys are at its server",
                          info.name);
    auto prunable = TRY(find_prunable(root, registry, info));
    if (!prunable.unused.empty()) {
        if (!options.yes) TRY(confirm_prune(info, prunable.unused));
        // While the user thought, a VM may have come.
        auto lock = TRY(registry.lock(info.id, ProviderUse::Exclusive));
        info = TRY(registry.find(info.id));
        prunable = TRY(find_prunable(root, registry, info));
        for (auto version : prunable.unused) TRY(registry.remove_kdk(info, version));
    }
    for (auto const& line : prunable.kept) print_line(line);
    print_line(prunable.unused.empty()
                   ? fmt::format("nothing was removed from key provider '{}'", info.name)
                   : fmt::format("removed version {} of the key of '{}'", versions_text(prunable.unused), info.name));
    return to_int(ExitCode::Ok);
}

Result<int> backup(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    auto info = TRY(ProviderRegistry(root.providers()).find(options.name));
    auto file = TRY(absolute(options.file));
    std::error_code ignored;
    if (!options.overwrite && fs::exists(fs::symlink_status(file, ignored))) // before a password is asked for
        return make_error(ErrorCode::AlreadyExists, "{} is there already: name another file, or give --overwrite",
                          file.native());
    auto keeper = TRY(start_manager(root, options));
    info = TRY(keeper.backup(info.id, file, options.overwrite));
    print_line(fmt::format("{} holds all keys of '{}'. Keep it away from this host, and its password away from it",
                           file.native(), info.name));
    return to_int(ExitCode::Ok);
}

Result<int> restore(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    auto file = TRY(absolute(options.file));
    std::error_code ignored;
    if (!fs::exists(file, ignored)) return make_error(ErrorCode::NotFound, "there is no file {}", file.native());
    auto keeper = TRY(start_manager(root, options));
    RestoreOptions wanted;
    wanted.name = options.new_name;
    wanted.passphrase = options.passphrase_fd >= 0 || options.ask;
    wanted.require_backup = options.require_backup;
    wanted.host_tpm = options.host_tpm();
    auto restored = TRY(keeper.restore(file, wanted));
    auto const& info = restored.info;
    if (!restored.merged)
        print_line(fmt::format("restored key provider '{}' ({})", info.name, info.id.to_string()));
    else if (restored.versions.empty())
        print_line(fmt::format("key provider '{}' has all keys of the backup already", info.name));
    else
        print_line(fmt::format("restored version {} of the key of '{}'", versions_text(restored.versions), info.name));
    print_notes(info);
    return to_int(ExitCode::Ok);
}

Result<int> set(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    ProviderRegistry registry(root.providers());
    auto info = TRY(registry.find(options.name));
    info = TRY(registry.require_backup(info.id, options.required == "on"));
    print_line(info.require_backup
                   ? fmt::format("key provider '{}' gives no new keys while it lacks a backup", info.name)
                   : fmt::format("key provider '{}' gives new keys with a backup or without", info.name));
    if (info.lacks_backup()) print_line("note: " + missing_backup_warning(info));
    return to_int(ExitCode::Ok);
}

using Run = Result<int> (*)(Context const&, Options const&);

struct Verb {
    CLI::App* app;
    std::shared_ptr<Options> options;
};

// With options of its own, and NAME where it wants one.
Verb add_verb(CLI::App& parent, Context& context, std::string const& name, std::string const& help, Run run,
              bool named = true) {
    auto options = std::make_shared<Options>();
    auto* verb = parent.add_subcommand(name, help);
    if (named) verb->add_option("NAME", options->name, "The key provider")->required();
    verb->callback(
        [&context, options, run] { context.action = [&context, options, run] { return run(context, *options); }; });
    return {verb, std::move(options)};
}

void add_password_option(Verb const& verb) {
    verb.app
        ->add_option("--password-fd", verb.options->password_fd,
                     "Read the backup's password from this open file descriptor instead of asking for it")
        ->check(CLI::Range(0, 1 << 20))
        ->type_name("N");
}

void add_file_argument(Verb const& verb, std::string const& help) {
    verb.app->add_option("FILE.p12", verb.options->file, help)->required();
}

// What a new provider may want.
void add_new_options(Verb const& verb) {
    verb.app->add_flag("--ask-passphrase", verb.options->ask, "Ask for a new passphrase on the terminal")
        ->excludes("--passphrase-fd");
    verb.app->add_flag("--require-backup", verb.options->require_backup,
                       "Refuse new VMs while the newest key is in no backup");
    auto* bind = verb.app->add_flag("--require-host-tpm", verb.options->require_host_tpm,
                                    "Seal the key to this host's TPM 2.0: it opens on this host alone, and elsewhere "
                                    "from a backup");
    verb.app
        ->add_option("--tcti", verb.options->tcti,
                     "Where that TPM is: device:PATH [device:/dev/tpmrm0]; swtpm:host=ADDRESS,port=N")
        ->needs(bind)
        ->type_name("CONF");
}

} // namespace

void register_provider_add_native(CLI::App& add, Context& context) {
    auto verb =
        add_verb(add, context, "native", "A key kept on this host, under a passphrase if you give one", add_native);
    add_passphrase_option(*verb.app, verb.options->passphrase_fd);
    add_new_options(verb);
}

void register_provider_native(CLI::App& provider, Context& context) {
    auto rotating =
        add_verb(provider, context, "rotate", "Make new keys from a new version of a native provider's key", rotate);
    add_passphrase_option(*rotating.app, rotating.options->passphrase_fd);

    auto pruning =
        add_verb(provider, context, "prune", "Remove old versions of a native provider's key that no VM uses", prune);
    pruning.app->add_flag("--yes", pruning.options->yes, "Do not ask");

    auto saving = add_verb(provider, context, "backup", "Save a native provider's keys in a PKCS#12 file", backup);
    add_file_argument(saving, "The file to make; it is encrypted under a password");
    saving.app->add_flag("--overwrite", saving.options->overwrite, "Replace a file that is there");
    add_passphrase_option(*saving.app, saving.options->passphrase_fd);
    add_password_option(saving);

    auto restoring = add_verb(provider, context, "restore",
                              "Restore a native provider, or keys that it lacks, from a backup", restore, false);
    add_file_argument(restoring, "What 'coffer provider backup' made");
    restoring.app->add_option("--name", restoring.options->new_name, "Another name than in the backup")
        ->type_name("NAME");
    add_passphrase_option(*restoring.app, restoring.options->passphrase_fd);
    add_password_option(restoring);
    add_new_options(restoring);

    auto setting = add_verb(provider, context, "set", "Change what a native provider demands", set);
    setting.app
        ->add_option("--require-backup", setting.options->required,
                     "on: refuse new VMs while the newest key is in no backup")
        ->check(CLI::IsMember({"on", "off"}))
        ->required()
        ->type_name("on|off");
}

} // namespace coffer::cli
