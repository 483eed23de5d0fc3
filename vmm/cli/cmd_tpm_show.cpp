// coffer tpm show NAME, coffer tpm pcrs NAME
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "devices/tpm/tpm_facts.hpp"
#include "vmm/cli/cmd_tpm.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/tpm_access.hpp"
#include "vmm/cli/wording.hpp"

namespace coffer::cli {

namespace {

struct Options {
    std::string name;
    bool json = false;
    int passphrase_fd = -1;
};

std::string firmware_version(uint64_t version) {
    return fmt::format("{}.{}.{}.{}", version >> 48, version >> 32 & 0xFFFF, version >> 16 & 0xFFFF, version & 0xFFFF);
}

std::string revision_text(uint32_t revision) {
    return fmt::format("{}.{:02}", revision / 100, revision % 100);
}

nlohmann::json to_json(devices::TpmFacts const& facts, Options const& options, vmm::TpmKind kind) {
    auto banks = nlohmann::json::array();
    for (auto const& bank : devices::k_pcr_banks)
        if ((facts.banks & bank.bit) != 0) banks.push_back(bank.name);
    auto indices = nlohmann::json::array();
    for (auto const& index : facts.nv_indices)
        indices.push_back({{"handle", fmt::format("{:#010x}", index.handle)},
                           {"size", index.size},
                           {"attributes", fmt::format("{:#010x}", index.attributes)}});
    auto persistent = nlohmann::json::array();
    for (uint32_t handle : facts.persistent) persistent.push_back(fmt::format("{:#010x}", handle));
    auto keys = nlohmann::json::array();
    for (auto const& key : facts.endorsement_keys) {
        nlohmann::json entry = {{"type", key.type}};
        if (!key.name.empty()) entry["name"] = format_hex(key.name);
        keys.push_back(std::move(entry));
    }
    return {{"name", options.name},
            {"interface", vmm::to_string(kind)},
            {"family", facts.family},
            {"revision", revision_text(facts.revision)},
            {"manufacturer", facts.manufacturer},
            {"vendor", facts.vendor},
            {"firmware", firmware_version(facts.firmware)},
            {"banks", std::move(banks)},
            {"nv",
             {{"indices", std::move(indices)},
              {"persistent", std::move(persistent)},
              {"persistent_available", facts.persistent_available}}},
            {"auth",
             {{"owner", facts.owner_auth_set},
              {"endorsement", facts.endorsement_auth_set},
              {"lockout", facts.lockout_auth_set}}},
            {"clear_disabled", facts.clear_disabled},
            {"lockout",
             {{"locked", facts.locked_out},
              {"failures", facts.lockout_counter},
              {"max_failures", facts.max_auth_failures},
              {"interval", facts.lockout_interval},
              {"recovery", facts.lockout_recovery}}},
            {"ek", std::move(keys)}};
}

void print_row(std::string_view what, std::string_view value) {
    print_line(fmt::format("{:<13} {}", what, value));
}

void print_facts(devices::TpmFacts const& facts, Options const& options, vmm::TpmKind kind) {
    print_row("name", options.name);
    print_row("interface", vmm::to_string(kind));
    print_row("TPM", fmt::format("{} revision {}", facts.family, revision_text(facts.revision)));
    print_row("manufacturer", fmt::format("{}, {}", facts.manufacturer, facts.vendor));
    print_row("firmware", firmware_version(facts.firmware));
    print_row("PCR banks", devices::format_pcr_banks(facts.banks));
    uint64_t bytes = 0;
    for (auto const& index : facts.nv_indices) bytes += index.size;
    print_row("NV", fmt::format("{} indices with {} bytes, {} persistent objects, room for at least {} more",
                                facts.nv_indices.size(), bytes, facts.persistent.size(), facts.persistent_available));
    for (auto const& index : facts.nv_indices)
        print_row("NV index",
                  fmt::format("{:#010x}: {} bytes, attributes {:#010x}", index.handle, index.size, index.attributes));
    for (uint32_t handle : facts.persistent) print_row("object", fmt::format("{:#010x}", handle));
    print_row("passwords",
              fmt::format("owner {}, endorsement {}, lockout {}", facts.owner_auth_set ? "set" : "empty",
                          facts.endorsement_auth_set ? "set" : "empty", facts.lockout_auth_set ? "set" : "empty"));
    if (facts.clear_disabled) print_row("clear", "disabled for the guest");
    print_row("lockout", fmt::format("{}: {} of {} failures, one forgotten every {} s, recovery {} s",
                                     facts.locked_out ? "LOCKED" : "not locked", facts.lockout_counter,
                                     facts.max_auth_failures, facts.lockout_interval, facts.lockout_recovery));
    for (auto const& key : facts.endorsement_keys)
        print_row("EK " + std::string(key.type), key.name.empty()
                                                     ? "the TPM refuses: its endorsement hierarchy has a password"
                                                     : format_hex(key.name));
}

Result<int> show(Context const& context, Options const& options) {
    auto access = TRY(TpmAccess::open(context, options.name, options.passphrase_fd, TpmChanges::Discard));
    devices::TpmClient client(access->tpm());
    TRY(client.startup());
    auto facts = TRY(devices::read_tpm_facts(client));
    auto kind = access->home().config().tpm;
    if (options.json)
        print_line(dump(to_json(facts, options, kind)));
    else
        print_facts(facts, options, kind);
    return to_int(ExitCode::Ok);
}

Result<int> pcrs(Context const& context, Options const& options) {
    auto access = TRY(TpmAccess::open(context, options.name, options.passphrase_fd, TpmChanges::Discard));
    devices::TpmClient client(access->tpm());
    TRY(client.startup());
    auto active = TRY(client.active_banks());
    nlohmann::json json = nlohmann::json::object();
    for (auto const& bank : devices::k_pcr_banks) {
        if ((active & bank.bit) == 0) continue;
        auto values = TRY(client.read_pcrs(bank));
        if (!options.json) print_line(fmt::format("{}:", bank.name));
        auto array = nlohmann::json::array();
        for (size_t pcr = 0; pcr < values.size(); ++pcr) {
            auto hex = format_hex(values[pcr]);
            if (!options.json) print_line(fmt::format("  {:<2}: {}", pcr, hex));
            array.push_back(std::move(hex));
        }
        json[bank.name] = std::move(array);
    }
    if (options.json) print_line(dump(json));
    return to_int(ExitCode::Ok);
}

void add_verb(CLI::App& tpm, Context& context, std::string const& verb_name, std::string const& description,
              Result<int> (*action)(Context const&, Options const&)) {
    auto* verb = tpm.add_subcommand(verb_name, description);
    auto options = std::make_shared<Options>();
    verb->add_option("NAME", options->name, "The VM, which is off")->required();
    verb->add_flag("--json", options->json, "Print JSON");
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback([&context, options, action] {
        context.action = [&context, options, action] { return action(context, *options); };
    });
}

} // namespace

void register_tpm_show(CLI::App& tpm, Context& context) {
    add_verb(tpm, context, "show",
             "Show a TPM: maker, PCR banks, NV use, lockout state and the names of its endorsement keys", show);
}

void register_tpm_pcrs(CLI::App& tpm, Context& context) {
    add_verb(tpm, context, "pcrs",
             "Show the active PCR banks with the values that PCRs have at power-on, before anything is measured", pcrs);
}

} // namespace coffer::cli
