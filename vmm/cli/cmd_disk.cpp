// coffer disk export | check
#include <algorithm>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <unistd.h>

#include "base/file.hpp"
#include "base/log.hpp"
#include "devices/storage/raw_disk.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/new_disks.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/disk/disk_files.hpp"
#include "vmm/disk/home_disks.hpp"

namespace coffer::cli {

namespace {

namespace fs = std::filesystem;

struct DiskOptions {
    std::string name;
    size_t index = 0;
    std::string file;
    int passphrase_fd = -1;
};

struct OpenDisk {
    std::unique_ptr<vmm::HomeSession> home; // its lock keeps the VM off
    vmm::DiskConfig config;
    std::unique_ptr<vmm::EncryptedDisk> disk;
};

Result<OpenDisk> open_home_of(Context const& context, DiskOptions const& options) {
    auto location = TRY(context.location(options.name));
    OpenDisk open;
    open.home = TRY(vmm::unlock_home(location, Context::keeper_options(options.passphrase_fd)));
    auto const& disks = open.home->config().disks;
    if (options.index >= disks.size())
        return make_error(ErrorCode::NotFound, "VM '{}' has no disk {}: it has {}, and the first is disk 0",
                          options.name, options.index, disks.size());
    open.config = disks[options.index];
    return open;
}

Result<void> open_encrypted(OpenDisk& open) {
    auto secrets = TRY(vmm::HomeDisks::load_secrets(*open.home));
    open.disk = TRY(vmm::HomeDisks::open_encrypted(*open.home, open.config, secrets));
    return {};
}

Error not_encrypted(DiskOptions const& options, vmm::DiskConfig const& disk) {
    return make_error(ErrorCode::InvalidArgument, "disk {} of VM '{}' is not encrypted: it is {} itself", options.index,
                      options.name, disk.path);
}

Result<void> write_export(devices::BlockBackend& disk, fs::path const& path, std::string_view what) {
    UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file.valid() && errno == EEXIST)
        return make_error(ErrorCode::AlreadyExists, "there is a file {} already", path.native());
    if (!file.valid()) return errno_error(errno, fmt::format("cannot make {}", path.native()));
    auto written = [&]() -> Result<void> {
        if (::ftruncate(file.get(), static_cast<off_t>(disk.size())) != 0)
            return errno_error(errno, fmt::format("cannot make {} of {} bytes", path.native(), disk.size()));
        auto raw = TRY(devices::RawDisk::open(path, {}));
        ProgressLine progress{std::string(what)};
        return vmm::copy_disk(disk, *raw, [&](uint64_t done, uint64_t total) { progress.show(done, total); });
    }();
    if (!written) ::unlink(path.c_str());
    return written;
}

Result<int> export_disk(Context const& context, DiskOptions const& options) {
    auto open = TRY(open_home_of(context, options));
    auto const what = fmt::format("exporting disk {}", options.index);
    if (open.config.protection == vmm::DiskProtection::None) {
        // With snapshots, what was written since is in the home.
        auto content = TRY(vmm::open_if_layered(*open.home, open.config));
        if (!content) return not_encrypted(options, open.config);
        TRY(write_export(*content, options.file, what));
    } else {
        TRY(open_encrypted(open));
        TRY(write_export(*open.disk, options.file, what));
        TRY(open.disk->close());
    }
    print_line(fmt::format("wrote disk {} of VM '{}', unencrypted, to {}", options.index, options.name, options.file));
    return to_int(ExitCode::Ok);
}

// Reads everything; damage is counted, so that all of it is told at once.
Result<int> check_disk(Context const& context, DiskOptions const& options) {
    auto open = TRY(open_home_of(context, options));
    if (open.config.protection == vmm::DiskProtection::None) return not_encrypted(options, open.config);
    TRY(open_encrypted(open));
    if (open.config.protection != vmm::DiskProtection::Authenticated)
        return make_error(ErrorCode::Unsupported,
                          "disk {} of VM '{}' is unauthenticated: changes of its content cannot be seen", options.index,
                          options.name);
    constexpr uint64_t k_piece = uint64_t{1} << 20;
    constexpr uint64_t k_unit = vmm::disk_spec::k_unit_size;
    ByteVector buffer(k_piece);
    uint64_t bad = 0;
    uint64_t const size = open.disk->size();
    {
        ProgressLine progress(fmt::format("checking disk {}", options.index));
        for (uint64_t at = 0; at < size; at += k_piece) {
            MutBytes const piece = MutBytes(buffer).first(std::min(k_piece, size - at));
            auto read = open.disk->read(at, piece);
            if (!read && read.error().code() != ErrorCode::Integrity) return std::move(read).error();
            for (uint64_t unit = 0; !read && unit < piece.size(); unit += k_unit) {
                auto one = open.disk->read(at + unit, piece.first(std::min<uint64_t>(k_unit, piece.size() - unit)));
                if (one) continue;
                if (one.error().code() != ErrorCode::Integrity) return std::move(one).error();
                ++bad;
                constexpr uint64_t k_told = 16;
                if (bad <= k_told) log::error("{}", one.error().message());
            }
            progress.show(at + piece.size(), size);
        }
    }
    TRY(open.disk->close());
    if (bad != 0)
        return make_error(ErrorCode::Integrity, "{} of {} data units of disk {} of VM '{}' fail authentication", bad,
                          open.disk->header().layout.units(), options.index, options.name);
    print_line(fmt::format("disk {} of VM '{}' is whole: {}", options.index, options.name, format_size(size)));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_disk(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("disk", "Disks of VMs that are off");
    verb->require_subcommand(1);
    auto options = std::make_shared<DiskOptions>();
    auto add = [&](char const* name, char const* help, auto action) {
        auto* sub = verb->add_subcommand(name, help);
        sub->add_option("NAME", options->name, "The VM")->required();
        sub->add_option("INDEX", options->index, "Number of the disk, from 0")->required();
        add_passphrase_option(*sub, options->passphrase_fd);
        sub->callback([&context, options, action] {
            context.action = [&context, options, action] { return action(context, *options); };
        });
        return sub;
    };
    add("export", "Write the content of a disk that is encrypted, or has layers, to a new file, unencrypted",
        export_disk)
        ->add_option("FILE", options->file, "The raw image to make")
        ->required();
    add("check", "Read an authenticated disk whole and authenticate every unit of it", check_disk);
}

} // namespace coffer::cli
