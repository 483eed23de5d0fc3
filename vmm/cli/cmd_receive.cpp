// coffer receive --listen ADDR:PORT: VMs come from other hosts, and run here.
//
// Three kinds of processes, so that none has what it does not need:
//   - this one listens and starts the others. It reads nothing from the network;
//   - a pump a connection (`receive-pump`) has the host's private key and speaks TLS. It has no VM's keys;
//   - a process a VM (`receive-vm`) asks this host's key provider, by a keeper, takes the VM and becomes the process
//     that runs it. It has neither the host's key nor the network. It lives on when the first one ends.
#include <algorithm>
#include <array>
#include <csignal>
#include <fcntl.h>
#include <map>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "base/log.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/host_link.hpp"
#include "vmm/control/client.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/keeper_client.hpp"
#include "vmm/home/migration_journal.hpp"
#include "vmm/home/passphrase.hpp"
#include "vmm/machine/run_vm.hpp"
#include "vmm/migrate/destination.hpp"
#include "vmm/migrate/pump_sandbox.hpp"

namespace coffer::cli {

namespace {

namespace fs = std::filesystem;
namespace migrate = vmm::migrate;

struct ReceiveOptions {
    std::string listen;
    std::string serial_folder;
    std::string disk_folder;
    std::vector<std::string> shared_folders;
    int passphrase_fd = -1;
    unsigned wait_seconds = 120;
    bool verbose = false;
};

// Of the hidden verbs.
struct ChildOptions {
    std::string from;
    std::string serial_folder;
    std::string disk_folder;
    std::vector<std::string> shared_folders;
    unsigned wait_seconds = 120;
    bool passphrase = false;
    bool verbose = false;
};

constexpr int k_stream_fd = 3;     // to the other process
constexpr int k_second_fd = 4;     // the pump's TCP connection; the VM's passphrase
constexpr size_t k_max_pumps = 16; // connections at a time
constexpr Nanoseconds k_greeting_limit = 30 * k_ns_per_s;

volatile std::sig_atomic_t g_ended = 0;

// A passphrase that every VM's process gets a descriptor of its own to.
class Passphrase {
public:
    static Result<Passphrase> take(int fd) {
        Passphrase passphrase;
        if (fd < 0) return passphrase;
        auto const secret = TRY(vmm::read_passphrase(fd));
        passphrase.m_file = UniqueFd(::memfd_create("coffer-passphrase", MFD_CLOEXEC));
        if (!passphrase.m_file.valid()) return errno_error(errno, "cannot keep the passphrase");
        TRY(write_all(passphrase.m_file.get(), secret.expose(), "the kept passphrase"));
        return passphrase;
    }
    bool given() const noexcept { return m_file.valid(); }
    Result<UniqueFd> open() const {
        if (!given()) return UniqueFd();
        return open_file(fmt::format("/proc/self/fd/{}", m_file.get()), O_RDONLY);
    }

private:
    UniqueFd m_file;
};

// The same program with these descriptors as 3 and 4; all others but the standard ones are closed.
Result<pid_t> start_child(std::vector<std::string> arguments, int stream, int second) {
    std::vector<char*> pointers;
    for (auto& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    auto const nothing = TRY(open_file("/dev/null", O_RDWR));
    pid_t const child = ::fork();
    if (child < 0) return errno_error(errno, "cannot start a process");
    if (child > 0) return child;
    // Between fork and exec: only async-signal-safe calls.
    int const high_stream = ::fcntl(stream, F_DUPFD, 16);
    int const high_second = second >= 0 ? ::fcntl(second, F_DUPFD, 16) : -1;
    bool ready = ::dup2(nothing.get(), STDIN_FILENO) >= 0 && ::dup2(high_stream, k_stream_fd) >= 0;
    if (second >= 0)
        ready = ready && ::dup2(high_second, k_second_fd) >= 0;
    else
        ::close(k_second_fd);
    ready = ready && ::close_range(k_second_fd + 1, ~0U, 0) == 0;
    ::setsid(); // what ends the listening process on its terminal does not end VMs
    ::signal(SIGINT, SIG_DFL);
    ::signal(SIGTERM, SIG_DFL);
    if (ready) ::execv("/proc/self/exe", pointers.data());
    ::_exit(127);
}

Result<void> serve_connection(vmm::HomeRoot const& root, ReceiveOptions const& options, Passphrase const& passphrase,
                              vmm::Accepted connection, std::map<pid_t, bool>& children) {
    std::array<int, 2> pair{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0)
        return errno_error(errno, "cannot make a socket pair");
    UniqueFd const pump_end(pair[0]);
    UniqueFd const vm_end(pair[1]);
    auto const secret = TRY(passphrase.open());
    auto const pump =
        TRY(start_child({"coffer", "--home-root", root.root.native(), "receive-pump", "--from", connection.from},
                        pump_end.get(), connection.socket.get()));
    children[pump] = true;
    std::vector<std::string> arguments{"coffer",     "--home-root", root.root.native(),
                                       "receive-vm", "--wait",      std::to_string(options.wait_seconds)};
    if (!options.serial_folder.empty()) {
        arguments.emplace_back("--serial-folder");
        arguments.push_back(options.serial_folder);
    }
    if (!options.disk_folder.empty()) {
        arguments.emplace_back("--disk-folder");
        arguments.push_back(options.disk_folder);
    }
    for (auto const& folder : options.shared_folders) {
        arguments.emplace_back("--shared-folder");
        arguments.push_back(folder);
    }
    if (secret.valid()) arguments.emplace_back("--passphrase");
    if (options.verbose) arguments.emplace_back("--verbose");
    auto const vm = TRY(start_child(std::move(arguments), vm_end.get(), secret.get()));
    children[vm] = false;
    return {};
}

void reap(std::map<pid_t, bool>& children) {
    for (;;) {
        pid_t const child = ::waitpid(-1, nullptr, WNOHANG);
        if (child <= 0) return;
        children.erase(child);
    }
}

Result<int> receive(Context const& context, ReceiveOptions const& options) {
    auto const root = TRY(context.root());
    auto const place = TRY(vmm::TcpPlace::parse(options.listen));
    auto const passphrase = TRY(Passphrase::take(options.passphrase_fd));
    auto const identity = TRY(vmm::HostTrust(root).identity());
    auto const fingerprint = TRY(crypto::fingerprint_of(identity.certificate));
    auto const listener = TRY(vmm::listen_tcp(place));
    struct sigaction action {};
    action.sa_handler = [](int) { g_ended = 1; };
    for (int number : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(number, &action, nullptr);
    auto const local = TRY(vmm::local_place(listener.get()));
    print_line(fmt::format("listens on {}, as the host with SHA-256 {}", local.to_string(),
                           crypto::format_fingerprint(fingerprint)));
    std::map<pid_t, bool> children; // and whether it is a pump
    while (!g_ended) {
        reap(children);
        auto connection = vmm::accept_tcp(listener.get(), k_ns_per_s / 2);
        if (!connection && connection.error().code() == ErrorCode::Timeout) continue;
        if (!connection) {
            log::warning("{}", connection.error().message());
            ::usleep(500'000);
            continue;
        }
        auto const pumps =
            std::count_if(children.begin(), children.end(), [](auto const& child) { return child.second; });
        if (static_cast<size_t>(pumps) >= k_max_pumps) {
            log::warning("a connection from {} is one too many: {} are open", connection->from, pumps);
            continue;
        }
        auto const from = connection->from;
        if (auto served = serve_connection(root, options, passphrase, std::move(*connection), children); !served)
            log::warning("a connection from {} is not served: {}", from, served.error().message());
    }
    return to_int(ExitCode::Ok);
}

// --- The pump

Result<int> pump(Context const& context, ChildOptions const& options) {
    UniqueFd local(k_stream_fd);
    auto link = HostLink::accept(TRY(context.root()), UniqueFd(k_second_fd), options.from);
    if (!link) return std::move(link).error().with_context(fmt::format("a connection from {}", options.from));
    auto const& peer = link->peer();
    log::info("host '{}' ({}) is connected: {}", peer.name, peer.place, link->describe());
    migrate::Stream stream(std::move(local));
    TRY(stream.send(migrate::ChannelMessage{peer.exporter, peer.fingerprint, peer.name}));
    local = stream.take_socket();
    TRY(vmm::enter_pump_sandbox());
    if (auto pumped = link->pump(local.get(), [] { return true; }); !pumped) log::debug("{}", pumped.error().message());
    return to_int(ExitCode::Ok);
}

// --- The VM's process

// A machine that waits for its source hears of it on a connection of its own; else nobody here runs the VM.
Result<void> answer(vmm::HomeRoot const& root, migrate::Stream stream, migrate::Peer const& peer,
                    migrate::AskMessage const& ask) {
    vmm::HomeLocation const location{root, ask.name};
    vmm::MigrationJournal const journal(root);
    auto const entry = TRY(journal.read_incoming(ask.migration));
    if (entry && entry->state == vmm::IncomingState::Prepared && entry->peer == peer.fingerprint) {
        auto passed = [&]() -> Result<void> {
            auto client = TRY(vmm::control::Client::connect(location));
            vmm::control::SettleRequest request;
            request.migration = ask.migration;
            request.peer.fingerprint = peer.fingerprint;
            request.peer.name = peer.name;
            TRY(client.call(request, {.descriptor = stream.socket()}));
            return {};
        }();
        if (passed) return passed;
        if (passed.error().code() != ErrorCode::NotFound) {
            stream.send_failure(passed.error());
            return passed;
        }
    }
    return migrate::answer_ask(stream, root, peer, ask);
}

// Links are followed: it is where the image lies that counts.
Result<void> check_shared(fs::path const& path, std::vector<std::string> const& folders) {
    std::error_code error;
    auto const place = fs::weakly_canonical(path, error);
    for (auto const& folder : folders) {
        if (error) break;
        auto const root = fs::canonical(folder, error);
        if (!error && std::ranges::mismatch(root, place).in1 == root.end()) return {};
        error.clear();
    }
    return make_error(
        ErrorCode::Permission,
        "disk {} is in no folder that this host shares: start 'coffer receive' with --shared-folder DIR, or "
        "migrate with --copy-disks",
        path.native());
}

Result<int> run_arriving(vmm::HomeRoot const& root, UniqueFd socket, migrate::Peer peer, Bytes hello,
                         ChildOptions const& options) {
    vmm::IncomingRun::Options incoming;
    incoming.root = root;
    incoming.patience = options.wait_seconds * k_ns_per_s;
    incoming.open_key = [&](vmm::BundleHeader const& header) -> Result<crypto::BundleKey> {
        vmm::KeeperOptions keeper_options;
        keeper_options.passphrase_fd = options.passphrase ? k_second_fd : -1;
        keeper_options.may_prompt = false;
        auto keeper = TRY(vmm::KeeperProcess::start(root, keeper_options));
        return keeper.unwrap(header);
    };
    // The other host says the paths: none counts here but within what this host's owner named.
    if (!options.disk_folder.empty())
        incoming.place_disk = [&](size_t, migrate::HelloDisk const& disk) -> Result<fs::path> {
            return fs::absolute(options.disk_folder) / fs::path(disk.path).filename();
        };
    incoming.may_use_disk = [&](fs::path const& path) { return check_shared(path, options.shared_folders); };
    auto const run = vmm::IncomingRun::create(std::move(socket), std::move(peer), std::move(incoming));
    auto const home = TRY(run->take(hello));
    vmm::RunOptions run_options;
    run_options.serial = options.serial_folder.empty() ? fs::path("/dev/null")
                                                       : fs::path(options.serial_folder) / (run->name() + ".serial");
    run_options.verbose = options.verbose;
    run_options.incoming = run.get();
    auto outcome = vmm::run_vm(*home, std::move(run_options));
    if (!outcome) {
        run->fail(outcome.error());
        return std::move(outcome).error().with_context(fmt::format("VM '{}'", run->name()));
    }
    return to_int(ExitCode::Ok);
}

Result<int> become_vm(Context const& context, ChildOptions const& options) {
    if (options.verbose) log::set_level(log::Level::Info);
    auto const root = TRY(context.root());
    migrate::Stream::Options limits;
    limits.silence = k_greeting_limit;
    migrate::Stream stream(UniqueFd(k_stream_fd), std::move(limits));
    auto const greeting = stream.expect(migrate::MessageType::Channel);
    if (!greeting) return to_int(ExitCode::Failure); // the pump has said why
    auto const channel = TRY(migrate::decode_channel(*greeting));
    migrate::Peer const peer{channel.peer, channel.peer_name, "", channel.exporter};
    auto const frame = TRY(stream.receive());
    switch (frame.type) {
    case migrate::MessageType::Hello: return run_arriving(root, stream.take_socket(), peer, frame.body, options);
    case migrate::MessageType::Ask: {
        auto const ask = TRY(migrate::decode_ask(frame.body));
        TRY(answer(root, std::move(stream), peer, ask));
        return to_int(ExitCode::Ok);
    }
    default: return make_error(ErrorCode::Corrupt, "host '{}' does not say what it wants", peer.name);
    }
}

} // namespace

void register_receive(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("receive", "Take VMs that other hosts migrate here, and run them");
    auto options = std::make_shared<ReceiveOptions>();
    verb->add_option("--listen", options->listen, "Where to listen; port 0 is any that is free")
        ->required()
        ->type_name("ADDR:PORT");
    verb->add_option("--serial-folder", options->serial_folder,
                     "Write the serial consoles of VMs that come to NAME.serial in DIR")
        ->type_name("DIR");
    verb->add_option("--disk-folder", options->disk_folder,
                     "Where disk images go that are copied; without it copies are refused")
        ->type_name("DIR");
    verb->add_option("--shared-folder", options->shared_folders,
                     "Take VMs whose disk images lie in DIR, which both hosts share; may be given several times")
        ->allow_extra_args(false)
        ->type_name("DIR");
    verb->add_option("--wait", options->wait_seconds,
                     "How many SECONDS a VM that is ready to go on waits for a source that was lost")
        ->check(CLI::Range(1, 86'400))
        ->capture_default_str();
    verb->add_flag("--verbose", options->verbose, "Say what comes from where");
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback(
        [&context, options] { context.action = [&context, options] { return receive(context, *options); }; });
    // What it starts.
    auto child_options = std::make_shared<ChildOptions>();
    auto* pump_verb = app.add_subcommand("receive-pump")->group("");
    pump_verb->add_option("--from", child_options->from);
    pump_verb->callback([&context, child_options] {
        context.action = [&context, child_options] { return pump(context, *child_options); };
    });
    auto* vm_verb = app.add_subcommand("receive-vm")->group("");
    vm_verb->add_option("--serial-folder", child_options->serial_folder);
    vm_verb->add_option("--disk-folder", child_options->disk_folder);
    vm_verb->add_option("--shared-folder", child_options->shared_folders)->allow_extra_args(false);
    vm_verb->add_option("--wait", child_options->wait_seconds);
    vm_verb->add_flag("--passphrase", child_options->passphrase);
    vm_verb->add_flag("--verbose", child_options->verbose);
    vm_verb->callback([&context, child_options] {
        context.action = [&context, child_options] { return become_vm(context, *child_options); };
    });
}

} // namespace coffer::cli
