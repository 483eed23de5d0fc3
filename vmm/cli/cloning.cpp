#include "vmm/cli/cloning.hpp"

#include <CLI/CLI.hpp>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "crypto/random.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/cli/provider_choice.hpp"
#include "vmm/cli/wording.hpp"

namespace coffer::cli {

void add_clone_options(CLI::App& verb, CloneOptions& options) {
    auto* folder = verb.add_option("--disk-folder", options.disk_folder,
                                   "Where the copies of disk images go, as NAME-FILE [beside the images]")
                       ->type_name("DIR");
    verb.add_flag("--no-disks", options.no_disks, "Copy no disks: the new VM has none")->excludes(folder);
}

Result<CloneSource> read_source(vmm::HomeSession& home) {
    CloneSource source;
    source.config = home.config();
    source.nvram = TRY(home.load(vmm::HomeFile::Nvram));
    if (source.config.tpm != vmm::TpmKind::None) source.tpm = TpmStateBytes(TRY(vmm::load_tpm(home)));
    return source;
}

std::string_view to_string(CloneTpm tpm) noexcept {
    switch (tpm) {
    case CloneTpm::None: return "none";
    case CloneTpm::Copy: return "copied";
    case CloneTpm::Replace: return "replaced";
    case CloneTpm::Add: return "added";
    }
    return "unknown";
}

Result<CloneTpm> decide_tpm(CloneOptions const& options, vmm::Settings const& settings, vmm::VmConfig const& source,
                            vmm::TpmKind& kind) {
    bool const has_tpm = source.tpm != vmm::TpmKind::None;
    kind = source.tpm;
    if (!options.pcr_banks.empty() && (options.tpm == "copy" || options.tpm.empty()))
        return make_error(ErrorCode::InvalidArgument, "--pcr-banks is for a new TPM: give --tpm replace or add");
    if (options.tpm.empty() && !has_tpm) return CloneTpm::None;
    auto policy = options.tpm.empty() ? settings.clone_tpm_policy() : vmm::parse_tpm_policy(options.tpm);
    if (policy) {
        if (!has_tpm)
            return make_error(ErrorCode::InvalidArgument, "'{}' has no TPM to {}; --tpm add gives the new VM one",
                              source.name, vmm::to_string(*policy));
        return *policy == vmm::TpmPolicy::Copy ? CloneTpm::Copy : CloneTpm::Replace;
    }
    if (has_tpm)
        return make_error(ErrorCode::InvalidArgument, "'{}' has a TPM already: give --tpm copy or replace",
                          source.name);
    kind = options.tpm == "add" ? vmm::TpmKind::Crb : parse_tpm_kind(options.tpm);
    return CloneTpm::Add;
}

Result<vmm::VmConfig> clone_config(vmm::VmConfig const& source, std::string const& name) {
    auto config = source;
    config.name = name;
    config.uuid = TRY(crypto::random_uuid());
    config.created = wall_clock_seconds();
    config.is_template = false;
    return config;
}

Result<std::optional<ProviderInfo>> clone_provider(vmm::HomeRoot const& root, CloneOptions const& options,
                                                   CloneSource const& source, vmm::VmConfig const& config) {
    ProviderRegistry const registry(root.providers());
    if (options.provider.empty() && source.provider) return std::optional(TRY(registry.find(*source.provider)));
    if (options.provider.empty() && config.tpm == vmm::TpmKind::None && !config.encrypt)
        return std::optional<ProviderInfo>();
    return std::optional(TRY(choose_provider(registry, options.provider)));
}

void report_clone_tpm(CloneTpm tpm, std::string_view source, std::string_view clone) {
    switch (tpm) {
    case CloneTpm::None: break;
    case CloneTpm::Copy:
        log::warning("'{}' and '{}' now share the secrets of one TPM: each opens what the other sealed, and both have "
                     "the same endorsement key. --tpm replace gives a new TPM",
                     clone, source);
        break;
    case CloneTpm::Replace:
        print_line(fmt::format("'{}' has a new TPM: what '{}' sealed to its own (BitLocker, LUKS, keys) does not open "
                               "in the copy; have recovery keys ready",
                               clone, source));
        break;
    case CloneTpm::Add: print_line(fmt::format("'{}' has a new TPM", clone)); break;
    }
}

namespace {
// Copies of the disks that the configuration has, which has the copies then.
Result<vmm::DiskCopies> copies_of_disks(std::string const& name, CloneOptions const& options, CloneSource const& source,
                                        vmm::VmConfig& config) {
    std::filesystem::path folder = options.disk_folder;
    if (!folder.empty()) {
        std::error_code error;
        folder = std::filesystem::absolute(folder, error).lexically_normal();
        if (error || !std::filesystem::is_directory(folder, error))
            return make_error(ErrorCode::NotFound, "--disk-folder {} is no folder", options.disk_folder);
    }
    auto disks = TRY(vmm::DiskCopies::plan(config.disks, name, folder, source.open_layers));
    config.disks = disks.disks();
    return disks;
}
} // namespace

Result<void> make_clone(vmm::HomeLocation const& location, CloneSource source, CloneOptions const& options,
                        HomeOpener& opener, std::function<void(vmm::VmConfig&)> const& change) {
    if (std::filesystem::exists(std::filesystem::symlink_status(location.folder())))
        return make_error(ErrorCode::AlreadyExists, "there is a VM '{}' already ({})", location.name,
                          location.folder().native());
    auto config = TRY(clone_config(source.config, location.name));
    auto const settings = TRY(vmm::Settings::load(location.root));
    auto const tpm = TRY(decide_tpm(options, settings, source.config, config.tpm));
    if (!options.pcr_banks.empty()) config.pcr_banks = TRY(devices::parse_pcr_banks(options.pcr_banks));
    if (change) change(config);
    if (options.no_disks) config.disks.clear();
    auto disks =
        source.plan_disks ? source.plan_disks(config) : copies_of_disks(location.name, options, source, config);
    if (!disks) return std::move(disks).error();
    auto const encrypted_disks = TRY(ClonedDisks::plan(config, source.open_disk));
    auto const provider = TRY(clone_provider(location.root, options, source, config));
    config.encrypt = config.encrypt || (provider && config.tpm == vmm::TpmKind::None);
    TRY(vmm::check_vm_config(config));

    // What may fail for want of a key comes before what takes long.
    std::optional<vmm::HomeSeal> seal;
    if (provider) seal = TRY(opener.make_seal(provider->id, location.name));
    if (provider && (tpm == CloneTpm::Replace || tpm == CloneTpm::Add))
        source.tpm = TRY(make_new_tpm(location.root, opener, provider->id, config));
    {
        ProgressLine progress("copying disks");
        auto const total = disks->total();
        auto show = [&](uint64_t done) -> Result<void> {
            progress.show(done, total);
            return {};
        };
        TRY(disks->copy(show));
    }
    TRY(disks->place());
    vmm::HomeContents contents;
    contents.nvram = source.nvram;
    contents.tpm = source.tpm.bytes();
    contents.disks = encrypted_disks.for_home(config.uuid);
    contents.event = source.event;
    contents.event_text = fmt::format(
        "{}, TPM: {}",
        source.event_text.empty() ? fmt::format("of VM '{}' ({})", source.config.name, source.config.uuid.to_string())
                                  : source.event_text,
        to_string(tpm));
    TRY(vmm::create_home(location, config, contents, std::move(seal)));
    disks->keep();
    print_line(fmt::format("made VM '{}' of '{}', {}", location.name, source.config.name,
                           provider ? fmt::format("encrypted under key provider '{}'", provider->name)
                                    : std::string("unencrypted")));
    for (auto const& disk : config.disks)
        if (disk.protection != vmm::DiskProtection::None)
            print_line(fmt::format("disk {} in the home, encrypted under a key of its own", disk.path));
        else
            print_line(fmt::format("disk {}{}", disk.path, disk.read_only ? ", shared: it is read-only" : ""));
    report_clone_tpm(tpm, source.config.name, location.name);
    if (provider && provider->keys_on_disk()) print_line(unprotected_provider_warning(provider->name));
    return {};
}

} // namespace coffer::cli
