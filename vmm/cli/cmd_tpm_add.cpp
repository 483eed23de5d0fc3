// coffer tpm add NAME
#include <CLI/CLI.hpp>

#include "vmm/cli/cmd_tpm.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/new_tpm.hpp"
#include "vmm/cli/provider_choice.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/home/home_convert.hpp"
#include "vmm/home/keeper_client.hpp"

namespace coffer::cli {

namespace {

struct AddOptions {
    std::string name;
    std::string tpm = "crb";
    std::string pcr_banks;
    std::string provider;
    int passphrase_fd = -1;
};

Result<int> add(Context const& context, AddOptions const& options) {
    auto location = TRY(context.location(options.name));
    HomeOpener opener(location.root, Context::keeper_options(options.passphrase_fd));
    auto home = TRY(opener.open(location, vmm::HomeAccess::Writer));
    auto config = home->config();
    if (config.tpm != vmm::TpmKind::None)
        return make_error(ErrorCode::AlreadyExists, "VM '{}' has a TPM already ({})", options.name,
                          vmm::to_string(config.tpm));
    if (!home->further_files().empty()) return vmm::has_snapshots(options.name);
    config.tpm = parse_tpm_kind(options.tpm);
    if (!options.pcr_banks.empty()) config.pcr_banks = TRY(devices::parse_pcr_banks(options.pcr_banks));
    if (home->encrypted()) {
        if (!options.provider.empty())
            return make_error(ErrorCode::InvalidArgument,
                              "the home of '{}' is encrypted already, under the provider that it has: leave --provider "
                              "out",
                              options.name);
        auto const provider = TRY(vmm::summarize_home(location)).provider;
        auto tpm = TRY(make_new_tpm(location.root, opener, provider, config));
        // The state before the configuration: a TPM that the configuration has must never lack its state.
        TRY(home->commit(vmm::HomeFile::Tpm, tpm.bytes()));
        TRY(home->commit(vmm::HomeFile::Config, vmm::encode_vm_config(config)));
        TRY(home->append_history(vmm::HistoryKind::TpmAdded, vmm::to_string(config.tpm)));
        print_line(fmt::format("VM '{}' has a new TPM, {}", options.name, vmm::to_string(config.tpm)));
        return to_int(ExitCode::Ok);
    }
    auto provider = TRY(choose_provider(ProviderRegistry(location.root.providers()), options.provider));
    auto* keeper = TRY(opener.keeper());
    auto seal = TRY(keeper->make_proven_seal(provider.id, options.name));
    auto tpm = TRY(make_new_tpm(location.root, opener, provider.id, config));
    TRY(vmm::convert_home(location, *home, config, tpm.bytes(), std::move(seal), vmm::HistoryKind::TpmAdded));
    print_line(fmt::format("VM '{}' has a new TPM, {}; its home is now encrypted under key provider '{}'", options.name,
                           vmm::to_string(config.tpm), provider.name));
    if (provider.keys_on_disk()) print_line(unprotected_provider_warning(provider.name));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_tpm_add(CLI::App& tpm, Context& context) {
    auto* verb = tpm.add_subcommand("add", "Give a VM without TPM a new one; an unencrypted home becomes encrypted");
    auto options = std::make_shared<AddOptions>();
    verb->add_option("NAME", options->name, "The VM, which is off")->required();
    verb->add_option("--tpm", options->tpm, "TPM 2.0: crb, tis or tis13")
        ->check(CLI::IsMember({"crb", "tis", "tis13"}))
        ->capture_default_str()
        ->type_name("KIND");
    verb->add_option("--pcr-banks", options->pcr_banks,
                     "Its PCR banks: a list of sha1, sha256, sha384 and sha512 [all of them]")
        ->type_name("LIST");
    verb->add_option("--provider", options->provider,
                     "The key provider for a home that is unencrypted so far [the default, or the only one there is]")
        ->type_name("NAME");
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback([&context, options] { context.action = [&context, options] { return add(context, *options); }; });
}

} // namespace coffer::cli
