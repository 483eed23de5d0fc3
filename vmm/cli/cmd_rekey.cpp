// coffer rekey NAME
#include <algorithm>

#include <CLI/CLI.hpp>

#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/control/client.hpp"
#include "vmm/control/rekey.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_open.hpp"
#include "vmm/home/keeper_client.hpp"
#include "vmm/snapshot/snapshot_store.hpp"

namespace coffer::cli {

namespace {

struct RekeyOptions {
    std::string name;
    std::string provider;
    bool deep = false;
    bool all = false;
    int passphrase_fd = -1;
    int new_passphrase_fd = -1;
};

// Which key a home was under, and is under now.
struct Change {
    Uuid old_provider;
    std::string old_key;
    Uuid new_provider;
    std::string new_key;
    bool disks = false; // the home has encrypted disks, which have keys of their own
};

class Rekey {
public:
    Rekey(vmm::HomeLocation location, RekeyOptions const& options)
        : m_location(std::move(location)), m_options(options), m_registry(m_location.root.providers()) {}

    Result<int> run() {
        if (m_options.all && !m_options.deep)
            return make_error(ErrorCode::InvalidArgument, "--all is for --deep: otherwise snapshots stay as they are");
        if (!m_options.provider.empty()) m_wanted = TRY(m_registry.find(m_options.provider));
        if (m_options.new_passphrase_fd >= 0 && !m_wanted)
            return make_error(ErrorCode::InvalidArgument, "--new-passphrase-fd belongs to --provider");
        auto const user = TRY(vmm::home_user(m_location));
        if (user && m_options.deep)
            return make_error(ErrorCode::Busy,
                              "VM '{}' is in use (process {}): a deep rekey rewrites its files, and needs it powered "
                              "off. Without --deep the VM may run",
                              m_location.name, *user);
        auto const change = user ? TRY(while_running()) : TRY(while_off());
        report(change, user.has_value());
        return to_int(ExitCode::Ok);
    }

private:
    // Of the provider that the home is under. The keeper stays, so that nobody is asked twice.
    Result<vmm::KeeperProcess*> keeper() {
        if (!m_keeper)
            m_keeper.emplace(
                TRY(vmm::KeeperProcess::start(m_location.root, Context::keeper_options(m_options.passphrase_fd))));
        return &*m_keeper;
    }

    // Of the provider that the home is to be under; nothing was changed yet.
    Result<vmm::HomeSeal> make_seal(Uuid const& current) {
        if (!m_wanted || m_wanted->id == current) return TRY(keeper())->make_proven_seal(current, m_location.name);
        auto next =
            TRY(vmm::KeeperProcess::start(m_location.root, Context::keeper_options(m_options.new_passphrase_fd)));
        return next.make_proven_seal(m_wanted->id, m_location.name);
    }

    // The process that runs the VM has the home's keys: the current provider is not asked for anything.
    Result<Change> while_running() {
        // Whether anybody takes requests is worth knowing before a passphrase is asked for; nobody waits for that.
        TRY(vmm::control::Client::connect(m_location));
        auto const summary = TRY(vmm::summarize_home(m_location));
        if (!summary.encrypted) return unencrypted();
        auto const seal = TRY(make_seal(summary.provider));
        auto const request = vmm::control::RekeyRequest::of(seal, summary.provider, summary.key_id);
        auto client = TRY(vmm::control::Client::connect(m_location));
        vmm::control::CallOptions call;
        call.key = &seal.key;
        TRY(client.call(request, call));
        return Change{summary.provider, summary.key_id, seal.provider, seal.key_id.text(), false};
    }

    Result<Change> while_off() {
        auto unwrap = [this](vmm::BundleHeader const& header) -> Result<crypto::BundleKey> {
            return TRY(keeper())->unwrap(header);
        };
        auto home = TRY(vmm::open_home(m_location, vmm::HomeAccess::Writer, unwrap));
        auto const header = home->header();
        if (!header) return unencrypted();
        if (m_options.deep && !m_options.all && !home->further_files().empty())
            return make_error(ErrorCode::InvalidArgument,
                              "VM '{}' has snapshots or is suspended, and a deep rekey must rewrite these files, "
                              "too: give --all for that, or delete the snapshots",
                              m_location.name);
        auto seal = TRY(make_seal(header->provider));
        auto const& disks = home->config().disks;
        bool const has_disks = std::any_of(
            disks.begin(), disks.end(), [](auto const& disk) { return disk.protection != vmm::DiskProtection::None; });
        Change change{header->provider, header->key_id, seal.provider, seal.key_id.text(), has_disks};
        if (!m_options.deep) {
            TRY(home->rekey(std::move(seal)));
            return change;
        }
        ProgressLine line(fmt::format("rekeying '{}'", m_location.name));
        TRY(home->rekey_deep(std::move(seal), vmm::rewrite_machine_image,
                             [&line](uint64_t done, uint64_t total) { line.show(done, total); }));
        return change;
    }

    Error unencrypted() const {
        return make_error(ErrorCode::InvalidArgument, "VM '{}' is unencrypted: there is no key to replace",
                          m_location.name);
    }

    std::string describe(Uuid const& provider, std::string_view key) const {
        auto info = m_registry.find(provider);
        return info ? fmt::format("key {} of provider '{}'", key, info->name)
                    : fmt::format("key {} of provider {}", key, provider.to_string());
    }

    void report(Change const& change, bool running) const {
        auto const old_key = describe(change.old_provider, change.old_key);
        print_line(fmt::format("{} VM '{}' under {}{}", m_options.deep ? "deep-rekeyed" : "rekeyed", m_location.name,
                               describe(change.new_provider, change.new_key), running ? "; it ran on" : ""));
        print_line(fmt::format("note: copies and backups of the home that were made before still open with {}, which "
                               "was not destroyed",
                               old_key));
        if (m_options.deep && change.disks)
            print_line(
                "note: the images of encrypted disks were not rewritten: their own keys are as before, in a file of "
                "the home that was");
        if (m_options.deep)
            print_line("note: what the disk keeps of the blocks that were overwritten is not erased by this");
        if (auto info = m_registry.find(change.new_provider); info && info->keys_on_disk())
            print_line(unprotected_provider_warning(info->name));
    }

    vmm::HomeLocation m_location;
    RekeyOptions const& m_options;
    ProviderRegistry m_registry;
    std::optional<ProviderInfo> m_wanted;
    std::optional<vmm::KeeperProcess> m_keeper;
};

} // namespace

void register_rekey(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("rekey", "Put a VM's home under a new key, of the same provider or another one");
    auto options = std::make_shared<RekeyOptions>();
    verb->add_option("NAME", options->name, "The VM; it may run, but for --deep")->required();
    verb->add_option("--provider", options->provider, "Put the home under this key provider")->type_name("NAME");
    verb->add_flag("--deep", options->deep,
                   "Encrypt the whole home anew, under a new data encryption key. The VM must be off");
    verb->add_flag("--all", options->all, "With --deep: snapshots and a suspended machine, too");
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->add_option("--new-passphrase-fd", options->new_passphrase_fd,
                     "Read the passphrase of --provider's provider from this open file descriptor")
        ->check(CLI::Range(0, 1 << 20))
        ->type_name("N");
    verb->callback([&context, options] {
        context.action = [&context, options]() -> Result<int> {
            return Rekey(TRY(context.location(options->name)), *options).run();
        };
    });
}

} // namespace coffer::cli
