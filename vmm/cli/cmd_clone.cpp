// coffer clone SRC DST, and coffer create NAME --from TEMPLATE
#include <CLI/CLI.hpp>

#include "vmm/cli/cloning.hpp"
#include "vmm/cli/cmd_create_from.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/suspended.hpp"
#include "vmm/disk/home_disks.hpp"
#include "vmm/home/home_admin.hpp"

namespace coffer::cli {

namespace {

struct CloneArguments {
    std::string source;
    std::string target;
    CloneOptions options;
    int passphrase_fd = -1;
};

// The source's home stays locked while the result lives, so that nothing changes while it is copied.
struct OpenedSource {
    std::unique_ptr<vmm::HomeSession> home;
    CloneSource content;
};

Result<OpenedSource> open_source(vmm::HomeLocation const& location, HomeOpener& opener) {
    auto user = vmm::home_user(location);
    if (user && user->has_value())
        return make_error(ErrorCode::Busy,
                          "VM '{}' is running (process {}): power it off first, a VM is copied while "
                          "it is off",
                          location.name, **user);
    OpenedSource source;
    source.home = TRY(opener.open(location, vmm::HomeAccess::Writer));
    TRY(refuse_suspended(*source.home, "it is copied"));
    source.content = TRY(read_source(*source.home));
    if (auto header = source.home->header()) source.content.provider = header->provider;
    if (TRY(has_snapshots(*source.home)))
        print_line(fmt::format("note: the new VM is '{}' as it is now; its snapshots are not copied", location.name));
    source.content.open_layers = [home = source.home.get()](vmm::DiskConfig const& disk) {
        return vmm::open_if_layered(*home, disk);
    };
    source.content.open_disk =
        [home = source.home.get()](vmm::DiskConfig const& disk,
                                   std::filesystem::path const&) -> Result<std::unique_ptr<vmm::EncryptedDisk>> {
        auto secrets = TRY(vmm::HomeDisks::load_secrets(*home));
        return vmm::HomeDisks::open_encrypted(*home, disk, secrets);
    };
    return source;
}

Result<int> clone(Context const& context, CloneArguments const& arguments) {
    auto target = TRY(context.location(arguments.target));
    auto location = TRY(context.location(arguments.source));
    HomeOpener opener(target.root, Context::keeper_options(arguments.passphrase_fd));
    auto source = TRY(open_source(location, opener));
    TRY(make_clone(target, std::move(source.content), arguments.options, opener));
    return to_int(ExitCode::Ok);
}

} // namespace

Result<int> create_from(Context const& context, CreateFrom const& request) {
    auto target = TRY(context.location(request.name));
    auto location = TRY(context.location(request.source));
    HomeOpener opener(target.root, Context::keeper_options(request.passphrase_fd));
    auto source = TRY(open_source(location, opener));
    if (!source.content.config.is_template)
        return make_error(
            ErrorCode::InvalidArgument,
            "'{}' is no template: mark it as one with 'coffer template {}', or copy it with 'coffer clone "
            "{} {}'",
            request.source, request.source, request.source, request.name);
    TRY(make_clone(target, std::move(source.content), request.options, opener, [&](vmm::VmConfig& config) {
        if (request.memory) config.memory = *request.memory;
        if (request.cpus) config.cpus = *request.cpus;
        config.encrypt = config.encrypt || request.encrypt;
    }));
    return to_int(ExitCode::Ok);
}

void register_clone(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("clone", "Make a VM of another one that is off: a full copy, disks included");
    auto arguments = std::make_shared<CloneArguments>();
    verb->add_option("SRC", arguments->source, "The VM to copy")->required();
    verb->add_option("DST", arguments->target, "The new VM's name")->required();
    verb->add_option(
            "--tpm", arguments->options.tpm,
            "copy: the new VM has the same TPM, and opens what the other sealed; replace: it has a new one [the "
            "setting clone.tpm-policy]")
        ->check(CLI::IsMember({"copy", "replace"}))
        ->type_name("POLICY");
    verb->add_option("--pcr-banks", arguments->options.pcr_banks, "PCR banks of a TPM that is replaced")
        ->type_name("LIST");
    verb->add_option("--provider", arguments->options.provider,
                     "The key provider that the new home is encrypted under [the source's]")
        ->type_name("NAME");
    add_clone_options(*verb, arguments->options);
    add_passphrase_option(*verb, arguments->passphrase_fd);
    verb->callback(
        [&context, arguments] { context.action = [&context, arguments] { return clone(context, *arguments); }; });
}

} // namespace coffer::cli
