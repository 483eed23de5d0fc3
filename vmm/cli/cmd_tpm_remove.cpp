// coffer tpm remove NAME
#include <algorithm>
#include <iostream>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "vmm/cli/cmd_tpm.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/home/home_convert.hpp"

namespace coffer::cli {

namespace {

struct RemoveOptions {
    std::string name;
    bool yes = false;
    bool keep_encryption = false;
    int passphrase_fd = -1;
};

Result<void> confirm(std::string const& name, bool keep_encryption) {
    if (::isatty(STDIN_FILENO) != 1)
        return make_error(ErrorCode::InvalidArgument,
                          "removing the TPM of '{}' destroys its keys for good, and with them what the guest sealed "
                          "(BitLocker, LUKS, keys): give --yes if that is wanted",
                          name);
    print_line(fmt::format(
        "This destroys the TPM of '{}' for good. In the guest:\n"
        "  - BitLocker asks for its recovery key: have it, or suspend BitLocker, first;\n"
        "  - LUKS volumes that systemd-cryptenroll bound to the TPM need another key slot: a passphrase or recovery "
        "key;\n"
        "  - keys and secrets in the TPM, or sealed to it, are lost (Windows Hello, systemd-creds, PKCS#11, SSH).\n"
        "{}\nType the VM's name to go on:",
        name,
        keep_encryption ? "Its home stays encrypted."
                        : "Its home is decrypted: UEFI variables and configuration can then be read and changed by "
                          "whoever has its files (--keep-encryption leaves it encrypted)."));
    std::string answer;
    std::getline(std::cin, answer);
    if (answer != name) return make_error(ErrorCode::Cancelled, "the TPM of '{}' was not removed", name);
    return {};
}

Result<int> remove(Context const& context, RemoveOptions const& options) {
    auto location = TRY(context.location(options.name));
    auto home = TRY(vmm::unlock_home(location, Context::keeper_options(options.passphrase_fd)));
    auto config = home->config();
    // An interrupted removal has taken the TPM from the configuration, and may have left its state.
    bool const unfinished = config.tpm == vmm::TpmKind::None && home->has(vmm::HomeFile::Tpm) &&
                            !TRY(home->load(vmm::HomeFile::Tpm)).empty();
    if (config.tpm == vmm::TpmKind::None && !unfinished)
        return make_error(ErrorCode::InvalidArgument, "VM '{}' has no TPM", options.name);
    if (!home->further_files().empty()) return vmm::has_snapshots(options.name);
    bool const encrypted_disks = std::any_of(config.disks.begin(), config.disks.end(), [](auto const& disk) {
        return disk.protection != vmm::DiskProtection::None; // their keys are in the home
    });
    config.encrypt = config.encrypt || options.keep_encryption || encrypted_disks;
    if (!options.yes) TRY(confirm(options.name, config.encrypt));
    config.tpm = vmm::TpmKind::None;
    if (!config.encrypt) {
        TRY(vmm::convert_home(location, *home, config, {}, std::nullopt, vmm::HistoryKind::TpmRemoved));
        print_line(fmt::format("removed the TPM of '{}'; its home is now unencrypted", options.name));
        return to_int(ExitCode::Ok);
    }
    // The configuration before the state: a TPM that the configuration has must never lack its state. A file of a home
    // does not go away once it was written, so that its age can be told; what is left is an empty one.
    TRY(home->commit(vmm::HomeFile::Config, vmm::encode_vm_config(config)));
    TRY(home->commit(vmm::HomeFile::Tpm, {}));
    TRY(home->append_history(vmm::HistoryKind::TpmRemoved, "the home stays encrypted"));
    print_line(fmt::format("removed the TPM of '{}'; its home stays encrypted", options.name));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_tpm_remove(CLI::App& tpm, Context& context) {
    auto* verb =
        tpm.add_subcommand("remove", "Destroy a VM's TPM; its home is decrypted, unless it was created with --encrypt");
    auto options = std::make_shared<RemoveOptions>();
    verb->add_option("NAME", options->name, "The VM, which is off")->required();
    verb->add_flag("--keep-encryption", options->keep_encryption, "Leave the home encrypted");
    verb->add_flag("--yes", options->yes, "Do not ask");
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback([&context, options] { context.action = [&context, options] { return remove(context, *options); }; });
}

} // namespace coffer::cli
