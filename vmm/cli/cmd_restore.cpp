// coffer restore FILE
#include <algorithm>
#include <fcntl.h>

#include <CLI/CLI.hpp>

#include "base/log.hpp"
#include "vmm/cli/cloning.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/disk/disk_files.hpp"
#include "vmm/home/backup.hpp"
#include "vmm/home/disk_copies.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::cli {

namespace {

namespace fs = std::filesystem;

struct RestoreArguments {
    std::string file;
    std::string name;
    CloneOptions options;
    int passphrase_fd = -1;
};

// The VM of this UUID in the root; nothing where there is none.
Result<std::optional<std::string>> find_vm(vmm::HomeRoot const& root, Uuid const& vm) {
    for (auto const& name : TRY(vmm::list_homes(root))) {
        auto summary = vmm::summarize_home({root, name});
        if (summary && summary->uuid == vm) return std::optional(name);
    }
    return std::optional<std::string>();
}

// Says which key is wanted, and where it would come from.
Error needs_key(vmm::BackupHeader const& header, fs::path const& path, Error const& cause) {
    auto const bring = header.provider_kind == ProviderKind::Native
                           ? fmt::format("bring that provider to this host: its backup, or its folder providers/{}",
                                         header.provider.to_string())
                           : std::string("make that key server known to this host under the same id, or see to it that "
                                         "it answers");
    return make_error(cause.code(),
                      "cannot restore {}: it needs key '{}' of key provider '{}' ({}, {}), which cannot be had: {}. If "
                      "this host does not have the provider, {}",
                      path.native(), header.key_id, header.provider_name, header.provider.to_string(),
                      coffer::to_string(header.provider_kind), cause.message(), bring);
}

// Raw disks of the backup, which `place` gives their paths; the new configuration has them.
template <class Place>
Result<vmm::DiskCopies> plan_disks(vmm::BackupFile const& backup, vmm::VmConfig& config, Place place) {
    vmm::DiskCopies disks;
    for (size_t number = 0; number < config.disks.size(); ++number) {
        auto& disk = config.disks[number];
        auto const* part = backup.header().find(fmt::format("{}{}", vmm::k_disk_file_prefix, number));
        if (!part || disk.protection != vmm::DiskProtection::None) continue;
        fs::path const to = place(fs::path(disk.path));
        disk.path = to.native();
        auto fill = [&backup, part](int fd, fs::path const& name, vmm::CopyProgress const& progress) {
            return backup.extract_disk(*part, fd, name, progress);
        };
        TRY(disks.add(to, part->content_size, fill));
    }
    return disks;
}

Result<void> copy_disks(vmm::DiskCopies& disks) {
    ProgressLine progress("restoring disks");
    auto const total = disks.total();
    auto show = [&](uint64_t done) -> Result<void> {
        progress.show(done, total);
        return {};
    };
    TRY(disks.copy(show));
    return disks.place();
}

Result<fs::path> absolute_folder(std::string const& given) {
    if (given.empty()) return fs::path();
    std::error_code error;
    auto folder = fs::absolute(given, error).lexically_normal();
    if (error || !fs::is_directory(folder, error))
        return make_error(ErrorCode::NotFound, "--disk-folder {} is no folder", given);
    return folder;
}

std::string event_text(vmm::BackupHeader const& header) {
    return fmt::format("from a backup of {}, writing {} of the home", format_time(header.created), header.sequence);
}

// In place of a home that was lost: the same VM.
Result<void> restore_in_place(vmm::HomeLocation const& location, vmm::BackupFile const& backup,
                              vmm::BackupContent content, RestoreArguments const& arguments) {
    auto const& header = backup.header();
    auto const record = TRY(vmm::read_host_record(location.host_record()));
    auto config = content.config;
    if (arguments.options.no_disks) config.disks.clear();
    auto const folder = TRY(absolute_folder(arguments.options.disk_folder));
    auto disks = TRY(plan_disks(
        backup, config, [&](fs::path const& path) { return folder.empty() ? path : folder / path.filename(); }));
    vmm::HomeContents contents;
    contents.nvram = content.nvram;
    contents.tpm = config.tpm == vmm::TpmKind::None ? Bytes() : Bytes(content.tpm);
    contents.history = std::move(content.history);
    contents.event = vmm::HistoryKind::Restored;
    contents.event_text = event_text(header);
    bool const older = record && record->vm == header.vm && record->sequence > header.sequence;
    if (older)
        contents.event_text +=
            fmt::format("; this host had seen writing {}: a rollback that the owner asked for", record->sequence);
    contents.disks.secrets = content.disks;
    contents.disks.make_images = [&](fs::path const& home) -> Result<void> {
        for (size_t number = 0; number < config.disks.size(); ++number) {
            auto const& disk = config.disks[number];
            auto const* part = header.find(fmt::format("{}{}", vmm::k_disk_file_prefix, number));
            if (!part || disk.protection == vmm::DiskProtection::None) continue;
            auto const path = disk.file(home);
            auto to = TRY(open_file(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW));
            TRY(backup.extract_disk(*part, to.get(), path, [](uint64_t) { return Result<void>(); }));
        }
        return {};
    };
    TRY(copy_disks(disks));
    TRY(vmm::restore_home(location, config, contents, std::move(content.seal), header.sequence));
    disks.keep();
    print_line(fmt::format("restored VM '{}' as it was on {}", location.name, format_time(header.created)));
    if (older)
        log::warning(
            "the backup is older than what this host has seen of '{}' (writing {}, and {} before it was lost): "
            "its TPM and UEFI state are as old. The home's history says so",
            location.name, header.sequence, record->sequence);
    for (size_t number = 0; number < config.disks.size(); ++number) {
        auto const& disk = config.disks[number];
        if (!disk.read_only && !header.find(fmt::format("{}{}", vmm::k_disk_file_prefix, number)))
            log::warning("disk {} is not in the backup{}", disk.path,
                         disk.protection == vmm::DiskProtection::None
                             ? ": the VM uses what is at that path"
                             : ", and its image went with the home: the VM does not start without it");
    }
    return {};
}

// Beside the original, or under another name: another VM.
Result<void> restore_as_clone(vmm::HomeLocation const& location, vmm::BackupFile const& backup,
                              vmm::BackupContent content, RestoreArguments const& arguments, HomeOpener& opener) {
    CloneSource source;
    source.config = std::move(content.config);
    source.nvram = std::move(content.nvram);
    if (source.config.tpm != vmm::TpmKind::None) source.tpm = TpmStateBytes(std::move(content.tpm));
    if (content.seal) source.provider = content.seal->provider;
    source.event = vmm::HistoryKind::Restored;
    source.event_text = fmt::format("{}, of VM '{}' ({})", event_text(backup.header()), source.config.name,
                                    source.config.uuid.to_string());
    auto const folder = TRY(absolute_folder(arguments.options.disk_folder));
    source.plan_disks = [&backup, folder, &location](vmm::VmConfig& config) -> Result<vmm::DiskCopies> {
        auto disks = TRY(plan_disks(backup, config, [&](fs::path const& path) {
            return (folder.empty() ? path.parent_path() : folder) / (location.name + "-" + path.filename().native());
        }));
        // Two VMs must not write to one image.
        std::vector<vmm::DiskConfig> kept;
        for (size_t number = 0; number < config.disks.size(); ++number) {
            auto const& disk = config.disks[number];
            if (disk.read_only || backup.header().find(fmt::format("{}{}", vmm::k_disk_file_prefix, number)))
                kept.push_back(disk);
            else
                log::warning("disk {} is not in the backup: '{}' does not have it", disk.path, location.name);
        }
        config.disks = std::move(kept);
        return disks;
    };
    source.open_disk = [&backup, secrets = std::move(content.disks), original = source.config.disks](
                           vmm::DiskConfig const& disk,
                           fs::path const& home) -> Result<std::unique_ptr<vmm::EncryptedDisk>> {
        auto const of_disk = [&](vmm::DiskConfig const& one) { return one.uuid == disk.uuid; };
        auto const number = std::find_if(original.begin(), original.end(), of_disk) - original.begin();
        auto const* part = backup.header().find(fmt::format("{}{}", vmm::k_disk_file_prefix, number));
        auto known = TRY(vmm::DiskSecrets::decode(secrets));
        auto const* secret = known.find(disk.uuid);
        if (!part || !secret)
            return make_error(ErrorCode::Integrity, "the backup lacks the content or the key of {}", disk.path);
        auto const image = home / k_disk_source;
        {
            auto to = TRY(open_file(image, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW));
            TRY(backup.extract_disk(*part, to.get(), image, [](uint64_t) { return Result<void>(); }));
        }
        return vmm::open_disk(image, *secret, {backup.header().vm, disk.protection});
    };
    return make_clone(location, std::move(source), arguments.options, opener);
}

Result<int> restore(Context const& context, RestoreArguments const& arguments) {
    auto backup = TRY(vmm::BackupFile::open(arguments.file));
    auto const& header = backup.header();
    auto const location = TRY(context.location(arguments.name.empty() ? header.name : arguments.name));
    if (fs::exists(fs::symlink_status(location.folder())))
        return make_error(ErrorCode::AlreadyExists,
                          "there is a VM '{}' already ({}): restore beside it with --name, or remove it first",
                          location.name, location.folder().native());
    auto const original = TRY(find_vm(location.root, header.vm));
    bool const in_place = !original && location.name == header.name;
    if (in_place && (!arguments.options.tpm.empty() || !arguments.options.provider.empty()))
        return make_error(ErrorCode::InvalidArgument,
                          "'{}' is restored as the same VM, with its TPM and provider: --tpm and --provider are for a "
                          "restore under another name, or beside the original",
                          location.name);
    HomeOpener opener(location.root, Context::keeper_options(arguments.passphrase_fd));
    std::optional<Error> no_key;
    auto content = backup.unlock([&](vmm::BundleHeader const& keys) {
        auto key = opener.unwrap(keys);
        if (!key) no_key = key.error();
        return key;
    });
    if (no_key) return needs_key(header, arguments.file, *no_key);
    if (!content) return std::move(content).error();
    if (in_place)
        TRY(restore_in_place(location, backup, std::move(*content), arguments));
    else
        TRY(restore_as_clone(location, backup, std::move(*content), arguments, opener));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_restore(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("restore", "Make a VM of a backup: the same one where it was lost; under another "
                                               "name, or beside the original, another one");
    auto arguments = std::make_shared<RestoreArguments>();
    verb->add_option("FILE", arguments->file, "The backup")->required();
    verb->add_option("--name", arguments->name, "Another name for the VM")->type_name("NAME");
    verb->add_option("--tpm", arguments->options.tpm,
                     "For another VM: copy the TPM, or replace it by a new one [the setting clone.tpm-policy]")
        ->check(CLI::IsMember({"copy", "replace"}))
        ->type_name("POLICY");
    verb->add_option("--provider", arguments->options.provider,
                     "For another VM: the key provider that its home is encrypted under [the backup's]")
        ->type_name("NAME");
    add_clone_options(*verb, arguments->options);
    add_passphrase_option(*verb, arguments->passphrase_fd);
    verb->callback(
        [&context, arguments] { context.action = [&context, arguments] { return restore(context, *arguments); }; });
}

} // namespace coffer::cli
