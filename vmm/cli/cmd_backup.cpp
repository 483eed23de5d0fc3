// coffer backup NAME FILE, coffer backup --inspect FILE
#include <cerrno>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "base/file.hpp"
#include "base/log.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/known_backups.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/control/backup.hpp"
#include "vmm/control/client.hpp"
#include "vmm/disk/disk_layers.hpp"
#include "vmm/home/backup.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/overlay_files.hpp"
#include "vmm/snapshot/snapshot_store.hpp"

namespace coffer::cli {

namespace {

namespace fs = std::filesystem;

struct BackupArguments {
    std::string name;
    std::string file;
    std::string inspect;
    bool disks = false;
    bool json = false;
    int passphrase_fd = -1;
};

// The file that is to be the backup: hidden until it is whole, and gone again where it does not become so.
class NewFile {
public:
    static Result<NewFile> create(fs::path const& path) {
        std::error_code error;
        auto const absolute = fs::absolute(path, error).lexically_normal();
        if (error || !absolute.has_filename())
            return make_error(ErrorCode::InvalidArgument, "'{}' cannot be a file's name", path.native());
        if (fs::exists(fs::symlink_status(absolute, error))) return taken(absolute);
        NewFile file(absolute);
        TRY(remove_file(file.hidden())); // what an interrupted attempt left
        file.m_fd = TRY(open_file(file.hidden(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW));
        return file;
    }
    NewFile(NewFile&&) noexcept = default;
    NewFile& operator=(NewFile&&) = delete;
    ~NewFile() {
        if (m_fd.valid()) ::unlink(hidden().c_str());
    }

    int fd() const noexcept { return m_fd.get(); }
    fs::path const& path() const noexcept { return m_path; }
    // The content is durable already.
    Result<void> place() {
        if (::renameat2(AT_FDCWD, hidden().c_str(), AT_FDCWD, m_path.c_str(), RENAME_NOREPLACE) != 0) {
            if (errno == EEXIST) return taken(m_path);
            return errno_error(errno, fmt::format("cannot rename {} to {}", hidden().native(), m_path.native()));
        }
        m_fd.reset();
        return sync_folder(m_path.parent_path());
    }

private:
    explicit NewFile(fs::path path) : m_path(std::move(path)) {}
    static Error taken(fs::path const& path) {
        return make_error(ErrorCode::AlreadyExists, "{} is there already: a backup replaces no file", path.native());
    }
    fs::path hidden() const { return m_path.parent_path() / ("." + m_path.filename().native() + ".tmp"); }

    fs::path m_path;
    UniqueFd m_fd;
};

// The disks that a backup can hold: those that the VM writes to.
std::vector<vmm::BackupDisk> disks_of(vmm::HomeSession const& home) {
    std::vector<vmm::BackupDisk> disks;
    auto const& configs = home.config().disks;
    for (size_t number = 0; number < configs.size(); ++number)
        if (auto const& disk = configs[number]; !disk.read_only)
            disks.push_back({number, disk.file(home.location().folder()),
                             [&home, &disk] { return vmm::open_if_layered(home, disk); }});
    return disks;
}

void report(std::string const& name, NewFile const& file, bool with_disks) {
    print_line(
        fmt::format("backed up VM '{}' to {}{}", name, file.path().native(), with_disks ? ", disks included" : ""));
}

// So that the key that opens it is not removed. The backup is whole whether this succeeds or not.
void remember(vmm::HomeRoot const& root, KnownBackup backup) {
    if (auto noted = note_backup(root, std::move(backup)); !noted)
        log::warning("'coffer provider prune' will not know of this backup: {}", noted.error().message());
}

// The process that runs the VM writes the backup, between two commits.
Result<int> backup_running(vmm::HomeLocation const& location, BackupArguments const& arguments) {
    if (arguments.disks)
        return make_error(ErrorCode::Busy,
                          "VM '{}' is running, and its disks change while they are read: power it off first, or leave "
                          "--disks out",
                          location.name);
    auto const summary = TRY(vmm::summarize_home(location));
    auto client = TRY(vmm::control::Client::connect(location));
    vmm::control::BackupRequest request;
    if (summary.encrypted) {
        auto provider = TRY(ProviderRegistry(location.root.providers()).find(summary.provider));
        request.provider_name = provider.name;
        request.provider_kind = provider.kind;
    }
    auto file = TRY(NewFile::create(arguments.file));
    vmm::control::CallOptions options;
    options.descriptor = file.fd();
    TRY(client.call(request, options));
    TRY(file.place());
    if (summary.encrypted) remember(location.root, {file.path().native(), summary.provider, summary.key_id});
    report(arguments.name, file, false);
    print_line("note: it is the running VM's state at one moment, as after a power failure; disks are not in it");
    return to_int(ExitCode::Ok);
}

Result<int> backup(Context const& context, BackupArguments const& arguments) {
    auto location = TRY(context.location(arguments.name));
    if (auto user = vmm::home_user(location); user && user->has_value()) return backup_running(location, arguments);
    auto home = TRY(vmm::unlock_home(location, Context::keeper_options(arguments.passphrase_fd)));
    vmm::BackupOptions options;
    if (auto header = home->header()) {
        auto provider = TRY(ProviderRegistry(location.root.providers()).find(header->provider));
        options.provider_name = provider.name;
        options.provider_kind = provider.kind;
    }
    uint64_t total = 0;
    auto const disks = disks_of(*home);
    if (arguments.disks) {
        options.disks = disks;
        for (auto const& disk : disks) {
            std::error_code error;
            auto const size = fs::file_size(disk.image, error);
            if (error)
                return make_error(ErrorCode::InvalidArgument, "disk {} cannot be in a backup: {}", disk.image.native(),
                                  error.message());
            total += size;
        }
    }
    auto file = TRY(NewFile::create(arguments.file));
    {
        ProgressLine progress("backing up disks");
        options.progress = [&](uint64_t done) -> Result<void> {
            progress.show(done, total);
            return {};
        };
        TRY(vmm::write_backup(*home, file.fd(), file.path(), options));
    }
    TRY(file.place());
    if (auto header = home->header()) remember(location.root, {file.path().native(), header->provider, header->key_id});
    report(arguments.name, file, arguments.disks);
    if (!arguments.disks && !disks.empty())
        print_line("note: the content of its disks is not in it; --disks puts it there");
    if (!arguments.disks && vmm::has_overlay_files(location))
        print_line(
            "note: what was written to its disks since its first snapshot is in its home, and not in the disks' own "
            "files: without --disks this backup does not bring it back");
    auto const store = TRY(vmm::SnapshotStore::open(*home));
    if (!store.index().snapshots.empty()) print_line("note: its snapshots are not in it");
    if (store.suspended())
        print_line("note: the VM is suspended, and its memory is not in it: what is restored starts as after a power "
                   "failure");
    return to_int(ExitCode::Ok);
}

std::string_view to_string(vmm::BackupPartKind kind) noexcept {
    switch (kind) {
    case vmm::BackupPartKind::Keys: return "keys";
    case vmm::BackupPartKind::Data: return "data";
    case vmm::BackupPartKind::Disk: return "disk";
    }
    return "unknown";
}

nlohmann::json to_json(vmm::BackupHeader const& header) {
    auto parts = nlohmann::json::array();
    for (auto const& part : header.parts) {
        nlohmann::json json = {{"name", part.name},
                               {"kind", to_string(part.kind)},
                               {"size", part.content_size},
                               {"stored", part.stored_size}};
        if (part.kind != vmm::BackupPartKind::Disk) json["written"] = part.written;
        if (part.kind == vmm::BackupPartKind::Data) json["generation"] = part.generation;
        parts.push_back(std::move(json));
    }
    nlohmann::json json = {{"version", vmm::backup_spec::k_version},
                           {"name", header.name},
                           {"uuid", header.vm.to_string()},
                           {"created", header.created},
                           {"encrypted", header.encrypted},
                           {"size", header.file_size()},
                           {"parts", std::move(parts)}};
    if (header.encrypted) {
        json["provider"] = {{"id", header.provider.to_string()},
                            {"name", header.provider_name},
                            {"kind", coffer::to_string(header.provider_kind)}};
        json["key_id"] = header.key_id;
        json["sequence"] = header.sequence;
    }
    return json;
}

Result<int> inspect(BackupArguments const& arguments) {
    auto const file = TRY(vmm::BackupFile::open(arguments.inspect));
    auto const& header = file.header();
    if (arguments.json) {
        print_line(dump(to_json(header)));
        return to_int(ExitCode::Ok);
    }
    auto row = [](std::string_view what, std::string_view value) { print_line(fmt::format("{:<12} {}", what, value)); };
    row("backup of", fmt::format("{} ({})", header.name, header.vm.to_string()));
    row("made", format_time(header.created));
    row("version", fmt::format("{}", vmm::backup_spec::k_version));
    if (header.encrypted) {
        row("provider", fmt::format("{} ({}, {})", header.provider_name, header.provider.to_string(),
                                    coffer::to_string(header.provider_kind)));
        row("key", header.key_id);
        row("sequence", fmt::format("{}", header.sequence));
    } else {
        row("encryption", "unencrypted");
    }
    for (auto const& part : header.parts)
        row(to_string(part.kind),
            fmt::format(
                "{}: {}, {} in the file{}", part.name, format_size(part.content_size), format_size(part.stored_size),
                part.kind == vmm::BackupPartKind::Disk ? "" : fmt::format(", written {}", format_time(part.written))));
    print_line(header.encrypted
                   ? "This is what the file says in the clear. Restoring proves it; configuration, firmware "
                     "and devices are in the encrypted part 'config'."
                   : "The file is not protected against change.");
    return to_int(ExitCode::Ok);
}

Result<int> run(Context const& context, BackupArguments const& arguments) {
    if (!arguments.inspect.empty()) {
        if (!arguments.name.empty() || arguments.disks)
            return make_error(ErrorCode::InvalidArgument, "--inspect FILE stands alone, or with --json");
        return inspect(arguments);
    }
    if (arguments.file.empty() || arguments.json)
        return make_error(ErrorCode::InvalidArgument,
                          "say which VM to back up and where to: coffer backup NAME FILE; --json goes with --inspect");
    return backup(context, arguments);
}

} // namespace

void register_backup(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("backup", "Write a VM to one file, encrypted as its home is, for 'coffer restore'");
    auto arguments = std::make_shared<BackupArguments>();
    verb->add_option("NAME", arguments->name, "The VM");
    verb->add_option("FILE", arguments->file, "The backup: a file that is not there yet");
    verb->add_flag("--disks", arguments->disks, "With the content of its disks; the VM is off");
    verb->add_option("--inspect", arguments->inspect, "Say what FILE holds and which key it needs; takes no key")
        ->type_name("FILE");
    verb->add_flag("--json", arguments->json, "Print JSON");
    add_passphrase_option(*verb, arguments->passphrase_fd);
    verb->callback(
        [&context, arguments] { context.action = [&context, arguments] { return run(context, *arguments); }; });
}

} // namespace coffer::cli
