// coffer create NAME
#include <filesystem>

#include <CLI/CLI.hpp>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/random.hpp"
#include "vmm/cli/cmd_create_from.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/memory_size.hpp"
#include "vmm/cli/new_disks.hpp"
#include "vmm/cli/new_tpm.hpp"
#include "vmm/cli/provider_choice.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/keeper_client.hpp"

namespace coffer::cli {

namespace {

namespace fs = std::filesystem;

// Where Debian's package ovmf has its images. The build with secure boot needs no SMM: it is the variable store with
// Microsoft's keys enrolled that turns checking on.
constexpr char const* k_firmware_code = "/usr/share/OVMF/OVMF_CODE_4M.fd";
constexpr char const* k_firmware_variables = "/usr/share/OVMF/OVMF_VARS_4M.fd";
constexpr char const* k_firmware_variables_secure = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd";
// Both lie in the 16 MiB below 4 GiB, in blocks of 4 KiB.
constexpr uint64_t k_max_flash = uint64_t{16} << 20;
constexpr uint64_t k_flash_block = 4096;

struct CreateOptions {
    std::string name;
    std::string memory = "1G";
    uint32_t cpus = 1;
    std::vector<std::string> disks;
    bool encrypt_disks = false;
    bool integrity = false;
    std::string tpm;
    std::string pcr_banks;
    std::string provider;
    bool encrypt = false;
    bool secure_boot = false;
    std::string firmware;
    std::string variables;
    int passphrase_fd = -1;
    std::string from;
    CloneOptions clone; // with --from
    bool memory_given = false;
    bool cpus_given = false;
};

Result<std::string> absolute(std::string const& path) {
    std::error_code error;
    auto result = fs::absolute(path, error);
    if (error) return make_error(ErrorCode::Io, "cannot resolve {}: {}", path, error.message());
    return result.lexically_normal().native();
}

// Firmware images and the variables of a new VM.
Result<ByteVector> choose_firmware(CreateOptions const& options, vmm::VmConfig& config) {
    config.secure_boot = options.secure_boot;
    bool const own = !options.firmware.empty();
    if (own != !options.variables.empty())
        return make_error(ErrorCode::InvalidArgument, "--firmware and --variables belong together: give both or none");
    config.firmware_code = TRY(absolute(own ? options.firmware : k_firmware_code));
    config.firmware_variables = TRY(absolute(own                   ? options.variables
                                             : options.secure_boot ? k_firmware_variables_secure
                                                                   : k_firmware_variables));
    auto read = [&](std::string const& path) -> Result<ByteVector> {
        auto image = read_file(path, k_max_flash);
        if (!image && image.error().code() == ErrorCode::NotFound && !own)
            return make_error(ErrorCode::NotFound,
                              "{} is missing: install the package 'ovmf', or give --firmware and --variables", path);
        auto content = TRY(std::move(image));
        if (content.empty() || content.size() % k_flash_block != 0)
            return make_error(ErrorCode::InvalidArgument,
                              "{} is no firmware image: it has {} bytes, which is not a multiple of {}", path,
                              content.size(), k_flash_block);
        return content;
    };
    auto code = TRY(read(config.firmware_code));
    auto variables = TRY(read(config.firmware_variables));
    if (code.size() + variables.size() > k_max_flash)
        return make_error(ErrorCode::InvalidArgument, "{} and {} together are larger than {}", config.firmware_code,
                          config.firmware_variables, format_size(k_max_flash));
    return variables;
}

// --tpm's values without --from.
bool is_tpm_kind(std::string_view text) noexcept {
    return text.empty() || text == "crb" || text == "tis" || text == "tis13" || text == "none";
}

Result<int> create_from_template(Context const& context, CreateOptions const& options) {
    if (!options.disks.empty() || options.encrypt_disks || options.integrity || options.secure_boot ||
        !options.firmware.empty() || !options.variables.empty() || options.tpm == "none")
        return make_error(
            ErrorCode::InvalidArgument,
            "disks and firmware of a VM that is made --from a template are the template's, and so is its "
            "TPM: --disk, --encrypt-disks, --firmware, --variables, --secure-boot and --tpm none do not go with it");
    CreateFrom request;
    request.name = options.name;
    request.source = options.from;
    request.options = options.clone;
    request.options.tpm = options.tpm;
    request.options.pcr_banks = options.pcr_banks;
    request.options.provider = options.provider;
    request.encrypt = options.encrypt;
    if (options.memory_given) request.memory = TRY(parse_memory_size(options.memory));
    if (options.cpus_given) request.cpus = options.cpus;
    request.passphrase_fd = options.passphrase_fd;
    return create_from(context, request);
}

Result<NewDisks> plan_disks(CreateOptions const& options) {
    if (options.integrity && !options.encrypt_disks)
        return make_error(ErrorCode::InvalidArgument, "--integrity goes with --encrypt-disks: give both");
    if (options.encrypt_disks && options.disks.empty())
        return make_error(ErrorCode::InvalidArgument,
                          "--encrypt-disks is for VMs with disks: give --disk FILE to encrypt the content of a raw "
                          "image, or --disk new:SIZE for an empty disk");
    return NewDisks::plan(options.disks, !options.encrypt_disks ? vmm::DiskProtection::None
                                         : options.integrity    ? vmm::DiskProtection::Authenticated
                                                                : vmm::DiskProtection::Unauthenticated);
}

Result<int> create(Context const& context, CreateOptions const& options) {
    if (!options.from.empty()) return create_from_template(context, options);
    if (!is_tpm_kind(options.tpm) || !options.clone.disk_folder.empty() || options.clone.no_disks)
        return make_error(
            ErrorCode::InvalidArgument,
            "--tpm copy, replace and add, --disk-folder and --no-disks are for VMs that are made --from a "
            "template");
    auto location = TRY(context.location(options.name));
    vmm::VmConfig config;
    config.name = options.name;
    config.uuid = TRY(crypto::random_uuid());
    config.memory = TRY(parse_memory_size(options.memory));
    config.cpus = options.cpus;
    config.tpm = parse_tpm_kind(options.tpm);
    if (!options.pcr_banks.empty()) config.pcr_banks = TRY(devices::parse_pcr_banks(options.pcr_banks));
    if (!options.pcr_banks.empty() && config.tpm == vmm::TpmKind::None)
        return make_error(ErrorCode::InvalidArgument, "--pcr-banks is for VMs with a TPM, and --tpm none was given");
    config.created = wall_clock_seconds();
    auto const disks = TRY(plan_disks(options));
    config.disks = disks.configs();
    auto variables = TRY(choose_firmware(options, config));
    std::optional<ProviderInfo> provider;
    if (config.tpm != vmm::TpmKind::None || options.encrypt || options.encrypt_disks || !options.provider.empty())
        provider = TRY(choose_provider(ProviderRegistry(location.root.providers()), options.provider));
    config.encrypt = options.encrypt || (provider && config.tpm == vmm::TpmKind::None);
    TRY(vmm::check_vm_config(config));

    std::optional<vmm::HomeSeal> seal;
    TpmStateBytes tpm;
    HomeOpener opener(location.root, Context::keeper_options(options.passphrase_fd));
    if (provider) {
        seal = TRY(opener.make_seal(provider->id, options.name));
        tpm = TRY(make_new_tpm(location.root, opener, provider->id, config));
    }
    TRY(vmm::create_home(location, config, variables, std::move(seal), tpm.bytes(), disks.for_home(config.uuid)));
    if (provider)
        print_line(fmt::format("created VM '{}', encrypted under key provider '{}', TPM {}", config.name,
                               provider->name, vmm::to_string(config.tpm)));
    else
        print_line(fmt::format("created VM '{}', unencrypted, without TPM", config.name));
    for (auto const& path : disks.imported())
        print_line(fmt::format("the disk's content is encrypted in the VM's home; {} still has it in the clear: delete "
                               "it when the VM is found to work",
                               path));
    if (provider && provider->keys_on_disk()) print_line(unprotected_provider_warning(provider->name));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_create(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("create", "Make a VM");
    auto options = std::make_shared<CreateOptions>();
    verb->add_option("NAME", options->name, "The VM's name: letters, digits, '.', '_' and '-'")->required();
    auto* memory = verb->add_option("--memory", options->memory, "Memory, such as 512M or 4G")
                       ->capture_default_str()
                       ->type_name("SIZE");
    auto* cpus = verb->add_option("--cpus", options->cpus, "Virtual CPUs")->capture_default_str()->type_name("N");
    verb->add_option("--disk", options->disks,
                     "A raw disk image or block device; may be given several times. With --encrypt-disks: its content "
                     "is copied, or "
                     "new:SIZE for an empty disk")
        ->allow_extra_args(false) // one value each, so that a NAME may follow
        ->type_name("FILE");
    verb->add_flag("--encrypt-disks", options->encrypt_disks,
                   "Keep the content of the disks encrypted in the VM's home (AES-256-XTS)");
    verb->add_flag("--integrity", options->integrity,
                   "With --encrypt-disks: authenticate the content, so that changes of the images are seen");
    verb->add_option(
            "--tpm", options->tpm,
            "TPM 2.0: crb (default), tis (FIFO, as PTP has it), tis13 (FIFO, as TIS 1.3 has it) or none. With --from: "
            "copy the template's, replace it by a new one, or add one (of kind crb) [the setting clone.tpm-policy]")
        ->check(CLI::IsMember({"crb", "tis", "tis13", "none", "copy", "replace", "add"}))
        ->type_name("KIND");
    verb->add_option("--from", options->from, "Make the VM of this template: a full copy, disks included")
        ->type_name("TEMPLATE");
    add_clone_options(*verb, options->clone);
    verb->add_option("--pcr-banks", options->pcr_banks,
                     "The TPM's PCR banks: a list of sha1, sha256, sha384 and sha512 [all of them]")
        ->type_name("LIST");
    verb->add_option("--provider", options->provider,
                     "The key provider that the home is encrypted under [the default, or the only one there is]")
        ->type_name("NAME");
    verb->add_flag("--encrypt", options->encrypt,
                   "Encrypt the home also where the VM has no TPM, or loses it by 'coffer tpm remove'");
    verb->add_flag("--secure-boot", options->secure_boot, "Start with Microsoft's secure boot keys enrolled");
    auto* firmware = verb->add_option("--firmware", options->firmware, "UEFI firmware code image [Debian's ovmf]")
                         ->type_name("CODE.fd");
    verb->add_option("--variables", options->variables, "Variable store that goes with it, copied into the home")
        ->type_name("VARS.fd");
    verb->get_option("--secure-boot")->excludes(firmware);
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback([&context, options, memory, cpus] {
        options->memory_given = memory->count() > 0;
        options->cpus_given = cpus->count() > 0;
        context.action = [&context, options] { return create(context, *options); };
    });
}

} // namespace coffer::cli
