#include "vmm/machine/run_vm.hpp"

#include <csignal>
#include <fcntl.h>
#include <unistd.h>

#include "base/file.hpp"
#include "base/log.hpp"
#include "base/tagged.hpp"
#include "vmm/control/backup.hpp"
#include "vmm/control/rekey.hpp"
#include "vmm/control/server.hpp"
#include "vmm/control/status.hpp"
#include "vmm/control/stop.hpp"
#include "vmm/disk/home_disks.hpp"
#include "vmm/home/backup.hpp"
#include "vmm/machine/agent_session.hpp"
#include "vmm/machine/console.hpp"
#include "vmm/machine/event_log_request.hpp"
#include "vmm/machine/machine.hpp"
#include "vmm/machine/moving_run.hpp"
#include "vmm/machine/outgoing_run.hpp"
#include "vmm/machine/sandbox.hpp"
#include "vmm/machine/serial_input.hpp"
#include "vmm/machine/stop_signals.hpp"

namespace coffer::vmm {

namespace {

constexpr int k_exit_integrity = 65; // ExitCode::Integrity of the command line
constexpr size_t k_max_firmware = size_t{16} << 20;

// A guest console that nobody looks at.
class NoOutput final : public devices::ByteSink {
    void write(Bytes) noexcept override {}
};

Result<UniqueFd> duplicate(int fd) {
    UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!copy.valid()) return errno_error(errno, "cannot duplicate a descriptor");
    return copy;
}

class Runner {
public:
    Runner(HomeSession& home, RunOptions options) : m_home(home), m_options(std::move(options)) {}

    Result<RunOutcome> run();

private:
    Result<std::unique_ptr<Partition>> make_partition();
    Result<PlatformConfig> make_config();
    Result<void> open_serial(PlatformConfig& config);
    Result<void> start_watching();
    Result<void> make_control();
    Result<void> open_saved();
    Result<void> restore_saved();
    void serve_saved();
    void serve_migration();
    void serve_move();
    [[noreturn]] void memory_lost(Error const& error) noexcept;
    control::StatusAnswer status();
    void ask_to_stop(bool force);
    bool console_is_standard_streams() const {
        return !m_options.command && (!m_options.serial || *m_options.serial == "-");
    }
    Result<RunOutcome> outcome(MachineEnd end);
    void report();
    // Device lock held. The first reason to end counts.
    void end_with(RunEnd end, int code = 0);

    HomeSession& m_home;
    RunOptions m_options;
    std::unique_ptr<StopSignals> m_signals;
    std::string m_backend;
    std::unique_ptr<devices::ByteSink> m_serial_output;
    std::unique_ptr<AgentSession> m_agent;
    std::optional<HomeDisks> m_disks;
    std::optional<AgentSessionState> m_saved_agent;
    std::unique_ptr<Machine> m_machine;
    std::unique_ptr<SavedRun> m_saved; // may be filling the machine's memory: ends before it
    std::unique_ptr<OutgoingRun> m_outgoing;
    std::unique_ptr<MovingRun> m_moving;
    std::unique_ptr<RawTerminal> m_terminal;
    std::unique_ptr<SerialInput> m_input;
    std::unique_ptr<devices::Timer> m_timeout;
    // Under the device lock while the machine runs.
    std::optional<RunOutcome> m_asked_end;
    std::optional<Error> m_agent_error;
    std::optional<Error> m_home_error;
    Nanoseconds m_powered_on = 0;
    std::atomic<control::RunState> m_state{control::RunState::Running};
    std::unique_ptr<control::Server> m_control; // last: its handlers use the others
};

Result<std::unique_ptr<Partition>> Runner::make_partition() {
    if (m_options.incoming) {
        m_backend = m_options.incoming->backend();
        return m_options.incoming->take_partition();
    }
    auto choice = choose_accelerator(m_options.accelerator);
    m_backend = choice.kind == AcceleratorKind::Kvm ? "kvm" : "soft";
    log::info("backend {} because {}", m_backend, choice.reason);
    PartitionConfig config{.vcpus = m_home.config().cpus};
    if (choice.kind == AcceleratorKind::Kvm) return create_kvm_partition(config);
    return create_soft_partition(config);
}

Result<void> Runner::open_saved() {
    m_saved = TRY(SavedRun::open(m_home, m_options.saved));
    auto const* state = m_options.incoming ? &m_options.incoming->state() : m_saved->state();
    if (!state) return {};
    if (m_options.command)
        return make_error(ErrorCode::InvalidArgument,
                          "the VM is suspended, and --exec is for one that is powered on: resume it without, or drop "
                          "the suspended machine with --discard-suspended");
    if (!state->agent_session.empty()) {
        AgentSessionState agent;
        TRY(decode_fields(state->agent_session, agent));
        m_options.command = agent.command;
        m_saved_agent = std::move(agent);
    }
    // A machine goes on where it ran, if that is here.
    if (m_options.accelerator == AcceleratorPreference::Auto) {
        bool const on_kvm = state->backend == "kvm" && ::access("/dev/kvm", R_OK | W_OK) == 0;
        m_options.accelerator = on_kvm ? AcceleratorPreference::Kvm : AcceleratorPreference::Soft;
    }
    return {};
}

Result<void> Runner::restore_saved() {
    if (m_options.incoming) return m_machine->restore_state(m_options.incoming->state());
    TRY(m_saved->restore(*m_machine, [this](Error const& error) { memory_lost(error); }));
    return {};
}

// A vCPU or device waits for the page inside of the host's kernel, and nothing but the end of the process ends that.
// The home is as after a power cut, which it bears.
void Runner::memory_lost(Error const& error) noexcept {
    RawTerminal::restore_now();
    log::error("the VM was stopped: {}", error.message());
    ::_exit(k_exit_integrity);
}

void Runner::serve_saved() {
    m_saved->serve(*m_control, *m_machine, *m_disks,
                   {.may_suspend = [this]() -> Result<void> {
                        if (m_asked_end) return make_error(ErrorCode::Busy, "the VM is about to end");
                        return {};
                    },
                    .save_agent = [this]() -> ByteVector {
                        if (!m_agent) return {};
                        return encode_fields(m_agent->save());
                    },
                    .suspended = [this] { end_with(RunEnd::Suspended, m_options.command ? 1 : 0); }});
}

void Runner::serve_migration() {
    OutgoingRun::Hooks hooks;
    hooks.may_leave = [this]() -> Result<void> {
        if (m_asked_end) return make_error(ErrorCode::Busy, "the VM is about to end");
        return {};
    };
    hooks.moved = [this] { end_with(RunEnd::Moved, m_options.command ? 1 : 0); };
    hooks.stopping = [this] {
        std::lock_guard lock(m_machine->loop().device_lock());
        return m_asked_end.has_value();
    };
    hooks.arriving = m_options.incoming;
    m_outgoing = std::make_unique<OutgoingRun>(m_home, *m_machine, *m_saved, *m_disks, std::move(hooks));
    m_outgoing->serve(*m_control);
}

void Runner::serve_move() {
    m_moving = std::make_unique<MovingRun>(m_home, *m_machine, *m_saved, *m_disks,
                                           MovingRun::Hooks{.may_move = [this]() -> Result<void> {
                                                                if (m_asked_end)
                                                                    return make_error(ErrorCode::Busy,
                                                                                      "the VM is about to end");
                                                                return {};
                                                            },
                                                            .lost =
                                                                [this](Error error) {
                                                                    m_home_error = std::move(error);
                                                                    m_machine->stop();
                                                                }});
    m_moving->serve(*m_control);
}

Result<void> Runner::open_serial(PlatformConfig& config) {
    if (m_options.serial && *m_options.serial != "-") {
        auto file = TRY(open_file(*m_options.serial, O_WRONLY | O_CREAT | O_TRUNC | O_NOCTTY));
        m_serial_output = std::make_unique<OutputThread>(std::move(file), m_options.serial->native());
    } else if (m_options.command) {
        // Standard output is the command's.
        m_serial_output = std::make_unique<NoOutput>();
    } else {
        m_serial_output = std::make_unique<OutputThread>(TRY(duplicate(STDOUT_FILENO)), "standard output");
    }
    config.serial = m_serial_output.get();
    config.on_serial_room = [this] {
        if (m_input) m_input->on_room();
    };
    return {};
}

Result<PlatformConfig> Runner::make_config() {
    PlatformConfig config;
    config.vm = m_home.config();
    config.kernel = std::move(m_options.kernel);
    if (m_options.incoming || m_saved->state()) {
        // Its content came with the machine; a later start reads it.
        TRY_CONTEXT(open_file(config.vm.firmware_code, O_RDONLY | O_NOCTTY), "firmware");
    } else {
        auto firmware = read_file(config.vm.firmware_code, k_max_firmware);
        if (!firmware) return std::move(firmware).error().with_context("firmware");
        config.firmware_code = std::move(*firmware);
    }
    config.variables = TRY(m_home.load(HomeFile::Nvram));
    config.variable_store = &m_home.store(HomeFile::Nvram);
    if (config.vm.tpm != TpmKind::None) {
        PlatformConfig::Tpm tpm;
        tpm.state = TRY(load_tpm(m_home));
        tpm.store = &m_home.store(HomeFile::Tpm);
        config.tpm = std::move(tpm);
    }
    m_disks = TRY(HomeDisks::open(m_home, m_options.incoming ? HomeDisks::Note::Later : HomeDisks::Note::Now));
    config.disks = m_disks->backends();
    TRY(m_options.incoming ? m_options.incoming->configure(config) : m_saved->configure(config));
    TRY(open_serial(config));
    if (m_options.command) {
        auto output = std::make_unique<OutputThread>(TRY(duplicate(STDOUT_FILENO)), "standard output");
        auto errors = std::make_unique<OutputThread>(TRY(duplicate(STDERR_FILENO)), "standard error");
        m_agent = std::make_unique<AgentSession>(*m_options.command, std::move(output), std::move(errors));
        config.agent = &m_agent->from_guest();
        config.on_agent_open = [this](bool open) { m_agent->port_opened(open); };
        config.on_agent_room = [this] { m_agent->port_writable(); };
    }
    return config;
}

void Runner::end_with(RunEnd end, int code) {
    if (!m_asked_end) m_asked_end = RunOutcome{end, code};
    m_state = control::RunState::Ending;
    if (m_options.incoming) m_options.incoming->cancel();
    m_machine->stop();
}

Result<void> Runner::start_watching() {
    auto& loop = m_machine->loop();
    std::lock_guard lock(loop.device_lock());
    m_signals->watch(loop, [this](int number) { end_with(RunEnd::Interrupted, number); });
    if (m_options.timeout) {
        m_timeout = loop.make_timer([this] { end_with(RunEnd::TimedOut); });
        m_timeout->arm(loop.now() + *m_options.timeout);
    }
    if (console_is_standard_streams()) {
        m_input = std::make_unique<SerialInput>(loop, m_machine->platform(), STDIN_FILENO, m_terminal != nullptr,
                                                [this] { end_with(RunEnd::Quit); });
        m_input->start();
    }
    if (m_agent)
        m_agent->attach(loop, m_machine->platform(),
                        {.on_exit =
                             [this](int code) {
                                 m_asked_end = RunOutcome{RunEnd::CommandEnded, code};
                             },
                         .on_stop =
                             [this](std::optional<Error> error) {
                                 m_agent_error = std::move(error);
                                 m_machine->stop();
                             }});
    return {};
}

control::StatusAnswer Runner::status() {
    return {.backend = m_backend,
            .pid = static_cast<uint32_t>(::getpid()),
            .uptime_ms = static_cast<uint64_t>((monotonic_now() - m_powered_on) / k_ns_per_ms),
            .state = m_state};
}

void Runner::ask_to_stop(bool force) {
    std::lock_guard lock(m_machine->loop().device_lock());
    if (force)
        end_with(RunEnd::Interrupted, SIGTERM);
    else
        m_machine->platform().press_power_button();
}

Result<void> Runner::make_control() {
    m_control = TRY(control::Server::create(m_home.location()));
    m_control->on<control::StatusRequest>(
        [this](control::StatusRequest const&, control::Conversation&) -> Result<control::StatusAnswer> {
            return status();
        });
    m_control->on<control::StopRequest>(
        [this](control::StopRequest const& request, control::Conversation&) -> Result<control::NoAnswer> {
            ask_to_stop(request.force);
            return control::NoAnswer{};
        });
    m_control->on<control::BackupRequest>(
        [this](control::BackupRequest const& request, control::Conversation& with) -> Result<control::NoAnswer> {
            auto const file = with.take_descriptor();
            BackupOptions options;
            options.provider_name = request.provider_name;
            options.provider_kind = request.provider_kind;
            TRY(write_backup(m_home, file.get(), "the backup", options));
            return control::NoAnswer{};
        });
    m_control->on<control::RekeyRequest>(
        [this](control::RekeyRequest const& request, control::Conversation& with) -> Result<control::NoAnswer> {
            TRY(control::check_current(request, m_home.header()));
            auto seal = TRY(control::seal_of(request, with.take_key()));
            TRY(m_home.rekey(std::move(seal)));
            return control::NoAnswer{};
        });
    m_control->on<control::EventLogRequest>(
        [this](control::EventLogRequest const&, control::Conversation& with) -> Result<control::EventLogAnswer> {
            return answer_event_log(*m_machine, with);
        });
    return {};
}

void Runner::report() {
    if (!m_options.verbose) return;
    auto statistics = m_machine->statistics();
    log::info("completed instructions: {}", statistics.completed_instructions);
    log::info("backend: {}", m_backend);
    for (auto const& [kind, count] : statistics.exits_by_kind) log::info("exits {}: {}", kind, count);
    log::info("resets: {}", statistics.resets);
    if (statistics.own_memory) log::info("memory of the VMM itself: {} KiB", *statistics.own_memory >> 10);
}

Result<RunOutcome> Runner::outcome(MachineEnd end) {
    if (end == MachineEnd::Failed) return *m_machine->failure();
    if (m_home_error) return *m_home_error;
    if (m_asked_end) return *m_asked_end;
    if (m_agent_error) return *m_agent_error;
    if (m_options.command) return make_error(ErrorCode::Io, "the guest switched itself off before the command ended");
    return RunOutcome{};
}

Result<RunOutcome> Runner::run() {
    m_signals = TRY(StopSignals::create());
    TRY(open_saved());
    if (console_is_standard_streams() && !m_options.serial) m_terminal = TRY(RawTerminal::enter(STDIN_FILENO));
    auto partition = TRY(make_partition());
    auto config = TRY(make_config());
    auto ram = m_options.incoming ? m_options.incoming->take_ram() : nullptr;
    m_machine = TRY(Machine::create(std::move(config), std::move(partition), std::move(ram)));
    TRY(restore_saved()); // steps the clock that timeouts are measured by
    TRY(start_watching());
    if (m_saved_agent) TRY(m_agent->restore(*m_saved_agent));
    TRY(make_control());
    serve_saved();
    serve_migration();
    serve_move();
    TRY(enter_sandbox());
    if (m_options.incoming) {
        m_options.incoming->passed("machine");
        m_control->start(); // the source may come back by it
        TRY(m_options.incoming->wait_for_go(m_home));
    } else {
        TRY(m_saved->begin());
    }
    m_powered_on = monotonic_now();
    m_machine->start();
    m_saved->begun();
    if (m_options.incoming) {
        m_options.incoming->confirm();
        if (auto noted = m_disks->note_epochs(); !noted) log::warning("{}", noted.error().message());
    } else {
        m_control->start();
    }
    auto end = m_machine->wait();
    m_control.reset();
    auto closed = m_machine->close();
    // No thread of the machine's runs from here on, so the members need no lock.
    m_input.reset();
    m_timeout.reset();
    m_agent.reset(); // writes out what the command printed
    m_serial_output = std::make_unique<NoOutput>();
    m_terminal.reset();
    report();
    auto ended = outcome(end);
    m_saved->end(*m_machine);
    m_machine.reset(); // its disk threads end before the disks are closed
    // What is left of a VM that has moved is an old copy, and is not touched any more.
    bool const moved = m_asked_end && m_asked_end->end == RunEnd::Moved;
    auto rested = moved ? Result<void>() : m_disks->close();
    TRY_CONTEXT(std::move(closed), "the VM has ended, but its home could not be brought up to date");
    TRY_CONTEXT(std::move(rested), "the VM has ended, but its disks could not be brought to rest");
    return ended;
}

} // namespace

Result<RunOutcome> run_vm(HomeSession& home, RunOptions options) {
    return Runner(home, std::move(options)).run();
}

} // namespace coffer::vmm
