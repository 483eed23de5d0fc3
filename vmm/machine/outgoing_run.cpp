#include "vmm/machine/outgoing_run.hpp"

#include <thread>

#include "base/log.hpp"
#include "vmm/migrate/precopy_policy.hpp"

namespace coffer::vmm {

namespace {

control::MigrationOutcome to_control(migrate::Outcome outcome) noexcept {
    switch (outcome) {
    case migrate::Outcome::Moved: return control::MigrationOutcome::Moved;
    case migrate::Outcome::StillHere: return control::MigrationOutcome::StillHere;
    case migrate::Outcome::Undecided: break;
    }
    return control::MigrationOutcome::Undecided;
}

// Of a backend that cannot tell what a guest writes: memory is sent as a whole, with the guest stopped.
class NoDirtyLog final : public DirtyLog {
public:
    explicit NoDirtyLog(GuestRam const& ram) : m_ram(ram) {}
    Result<void> start() override { return {}; }
    Result<void> stop() override { return {}; }
    Result<std::vector<uint64_t>> harvest(GuestPhysAddr gpa) override {
        for (auto const& region : m_ram.regions())
            if (region.gpa == gpa) return std::vector<uint64_t>((region.size / k_ram_page + 63) / 64);
        return make_error(ErrorCode::Internal, "no region of RAM is there");
    }

private:
    GuestRam const& m_ram;
};

} // namespace

struct OutgoingRun::Leaving {
    migrate::Peer peer;
    control::MigrateRequest request;
    std::unique_ptr<migrate::Stream> stream;
    std::optional<migrate::Source> source;
    std::unique_ptr<NoDirtyLog> no_log;
    std::unique_ptr<MemorySender> sender;
    std::unique_ptr<migrate::DiskSender> disks;
    std::vector<PrecopyRound> rounds;
    uint64_t bytes = 0;
    uint64_t disk_bytes = 0;
    std::string expected; // the downtime, for the user
    Nanoseconds begun = 0;
    Nanoseconds stopped = 0;
    Nanoseconds ended = 0;
    std::atomic<bool> given_up{false};
    std::atomic<bool> committed{false}; // no longer to be given up

    std::mutex mutex;
    std::condition_variable changed;
    std::optional<Result<migrate::Outcome>> result;
    std::atomic<bool> running{false}; // on the owner's thread

    void finish(Result<migrate::Outcome> outcome) {
        std::lock_guard lock(mutex);
        if (!result) result = std::move(outcome);
        changed.notify_all();
    }
};

void OutgoingRun::serve(control::Server& server) {
    server.on<control::MigrateRequest>(
        [this](control::MigrateRequest const& request, control::Conversation& with) { return leave(request, with); });
    server.on<control::SettleRequest>([this](control::SettleRequest const& request, control::Conversation& with) {
        // Of a machine that waits for its source, it is the source that asks.
        if (m_hooks.arriving && m_hooks.arriving->is_waiting()) return m_hooks.arriving->come_back(request, with);
        return settle(request, with);
    });
}

Result<migrate::HelloMessage> OutgoingRun::describe(bool copy_disks) const {
    migrate::HelloMessage hello;
    hello.version = COFFER_VERSION;
    auto const& partition = m_machine.partition();
    hello.backend = partition.capabilities().name;
    hello.cpuid = read_guest_cpuid(partition);
    hello.tsc_hz = partition.tsc_hz();
    hello.physical_address_bits = static_cast<uint8_t>(partition.physical_address_bits());
    hello.platform = m_machine.platform().describe_for_saving();
    auto const& disks = m_home.config().disks;
    for (size_t i = 0; i < disks.size(); ++i) {
        bool const in_home = disks[i].protection != DiskProtection::None;
        hello.disks.push_back({in_home ? "" : disks[i].path, hello.platform.disk_sizes[i], disks[i].read_only, in_home,
                               copy_disks && !in_home});
    }
    return hello;
}

// All that the guest writes, and images outside of the home where they are to be copied.
std::vector<migrate::DiskFile> OutgoingRun::disk_files(bool copy_disks) const {
    auto const& disks = m_home.config().disks;
    std::vector<migrate::DiskFile> files;
    auto add_image = [&](size_t disk, std::filesystem::path const& path, uint64_t size, DirtyBlocks* dirty) {
        files.push_back({{.disk = static_cast<uint32_t>(disk + 1), .size = size}, path, dirty});
    };
    for (auto const& [file, disk, in_home] : m_disks.written_files()) {
        if (!in_home) {
            if (copy_disks) add_image(disk, file->path(), file->size(), &file->dirty());
            continue;
        }
        // An image whose changes are all seen is made with all of its blocks (create_disk()).
        bool const reserve = disks[disk].protection == DiskProtection::Authenticated &&
                             file->path() == disks[disk].file(m_home.location().folder());
        files.push_back({{.name = file->path().filename(), .size = file->size(), .reserve = reserve},
                         file->path(),
                         &file->dirty()});
    }
    auto const sizes = m_machine.platform().describe_for_saving().disk_sizes;
    for (size_t i = 0; i < disks.size(); ++i)
        if (copy_disks && disks[i].read_only && disks[i].protection == DiskProtection::None)
            add_image(i, disks[i].path, sizes[i], nullptr);
    return files;
}

// Shows how a round goes on, a few times a second.
class OutgoingRun::RoundProgress {
public:
    RoundProgress(Leaving& leaving, control::Conversation& with) : m_leaving(leaving), m_with(with) {}
    // `sent`: bytes in all rounds; `what`: the round. With the guest stopped nobody is told.
    void show(uint64_t done, uint64_t total, uint64_t sent, std::string const& what) {
        if (m_leaving.running) return;
        auto const now = monotonic_now();
        if (now - m_last < k_ns_per_s / 4) return;
        auto const rate = static_cast<double>(sent - m_last_sent) * 1e9 / static_cast<double>(now - m_last);
        m_last = now;
        m_last_sent = sent;
        m_with.progress(done, total, fmt::format("{}, {:.0f} MiB/s{}", what, rate / (1 << 20), m_leaving.expected));
        if (m_with.cancelled()) m_leaving.given_up = true;
    }

private:
    Leaving& m_leaving;
    control::Conversation& m_with;
    Nanoseconds m_last = monotonic_now();
    uint64_t m_last_sent = 0;
};

// Most of the disks goes before memory: what is written to them meanwhile goes with memory's rounds.
Result<void> OutgoingRun::send_disks(Leaving& leaving, control::Conversation& with) {
    constexpr uint64_t k_little = uint64_t{4} << 20;
    constexpr uint32_t k_max_rounds = 20;
    auto const line = std::make_shared<RoundProgress>(leaving, with);
    migrate::DiskSender::Options options;
    options.cancelled = [&leaving] { return leaving.given_up.load(); };
    options.progress = [line](migrate::DiskProgress const& progress) {
        line->show(progress.done, progress.total, progress.bytes,
                   fmt::format("round {}, {} MiB of disks", progress.round, progress.total >> 20));
    };
    leaving.disks =
        TRY(migrate::DiskSender::create(*leaving.stream, disk_files(leaving.request.copy_disks), std::move(options)));
    TRY(m_disks.tidy());
    for (uint64_t before = UINT64_MAX;;) {
        auto const report = TRY(leaving.disks->send_round());
        leaving.disk_bytes += report.bytes;
        if (report.bytes > 0)
            log::info("migration: disks, round {}, {} MiB, {} KiB left, {} ms", report.round, report.bytes >> 20,
                      report.remaining >> 10, report.duration / k_ns_per_ms);
        if (report.remaining <= k_little || report.remaining > before / 4 * 3 || report.round == k_max_rounds)
            return {};
        before = report.remaining;
    }
}

Result<void> OutgoingRun::send_memory(Leaving& leaving, control::Conversation& with) {
    m_saved.finish_memory();
    auto* log = m_machine.partition().dirty_log();
    if (!log) {
        log::warning("the backend '{}' does not tell what the guest writes: it stands still while memory is sent",
                     m_machine.partition().capabilities().name);
        leaving.no_log = std::make_unique<NoDirtyLog>(m_machine.ram());
    }
    MemorySender::Options options;
    options.compress = leaving.request.compress;
    options.cancelled = [&leaving] { return leaving.given_up.load(); };
    options.settle = [&leaving] { return leaving.source->wait_until_taken(); };
    options.progress = [line = std::make_shared<RoundProgress>(leaving, with)](SendProgress const& progress) {
        line->show(progress.done, progress.total, progress.bytes,
                   fmt::format("round {}, {} pages", progress.round, progress.total));
    };
    auto& stream = *leaving.stream;
    leaving.sender = TRY(MemorySender::create(
        m_machine.ram(), leaving.no_log ? *leaving.no_log : *log,
        [&stream](Bytes batch) { return stream.send(migrate::MessageType::Memory, batch); }, std::move(options)));
    if (leaving.no_log) return {};
    // However it ends, the guest runs as before.
    std::shared_ptr<void> const unthrottled(nullptr, [this](void*) { m_machine.throttle(0); });
    PrecopyGoals goals;
    goals.downtime = static_cast<Nanoseconds>(leaving.request.downtime_ms) * k_ns_per_ms;
    for (;;) {
        auto const decision = decide_precopy(goals, leaving.rounds);
        if (decision.next == PrecopyNext::SwitchOver) return {};
        if (decision.next == PrecopyNext::GiveUp)
            return make_error(
                ErrorCode::Timeout,
                "the guest writes its memory or disks faster than they can be sent, and would stand still for about "
                "{} ms: try again when it does less, or with --downtime {}",
                decision.expected_downtime / k_ns_per_ms, 2 * decision.expected_downtime / k_ns_per_ms);
        if (!leaving.rounds.empty())
            leaving.expected = fmt::format(", expected downtime {} ms", decision.expected_downtime / k_ns_per_ms);
        m_machine.throttle(decision.throttle);
        // What is in a disk's journal is moved to its place now, and not by the destination with the guest stopped.
        TRY(m_disks.tidy());
        leaving.disk_bytes += TRY(leaving.disks->send_round()).bytes;
        auto const report = TRY(leaving.sender->send_round());
        leaving.bytes += report.bytes;
        leaving.rounds.push_back({report, decision.throttle, leaving.disks->remaining()});
        log::info("migration: round {}, {} pages, {} of zeros, {} left, {} ms", report.round, report.pages,
                  report.zero_pages, report.remaining, report.duration / k_ns_per_ms);
    }
}

Result<migrate::Outcome> OutgoingRun::switch_over(Leaving& leaving) {
    {
        std::lock_guard lock(m_machine.loop().device_lock());
        TRY(m_hooks.may_leave());
    }
    auto& times = leaving.source->times();
    times.begin();
    leaving.stopped = monotonic_now();
    auto const state = TRY(m_saved.encode_state(WithFirmware::No));
    times.done("state");
    auto const rest = TRY(leaving.sender->send_rest());
    leaving.bytes += rest.bytes;
    times.done("memory");
    m_disks.let_go(); // all is written
    leaving.disk_bytes += TRY(leaving.disks->send_round()).bytes;
    times.done("disks");
    TRY(leaving.source->prepare(state, leaving.sender->digest()));
    if (leaving.given_up) return make_error(ErrorCode::Cancelled, "it was given up");
    leaving.committed = true;
    auto outcome = TRY(leaving.source->hand_over());
    leaving.ended = monotonic_now();
    log::info("migration: the guest stood still for {:.1f} ms: {} ms",
              static_cast<double>(leaving.ended - leaving.stopped) / 1e6, times.text());
    return outcome;
}

void OutgoingRun::end_as_moved() {
    std::lock_guard lock(m_machine.loop().device_lock());
    m_hooks.moved();
}

// The guest is about to go on here. The destination gives up what it opened, and may need a moment for that.
void OutgoingRun::stay() {
    constexpr int k_tries = 50;
    for (int tries = 1;; ++tries) {
        auto held = m_disks.hold();
        if (held) return;
        if (tries == k_tries) {
            log::warning("{}", held.error().message());
            return;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
}

// On the owner's thread: the guest stands still until somebody has asked the other host.
void OutgoingRun::wait_until_settled(Leaving& leaving) {
    std::unique_lock lock(m_mutex);
    m_decision.reset();
    m_undecided = OutgoingMigration{leaving.source->id(),
                                    m_home.config().uuid,
                                    m_home.config().name,
                                    leaving.peer.fingerprint,
                                    leaving.peer.name,
                                    leaving.peer.place,
                                    0,
                                    OutgoingState::HandedOver};
    leaving.finish(migrate::Outcome::Undecided);
    while (!m_decision) {
        m_changed.wait_for(lock, std::chrono::milliseconds(100));
        lock.unlock();
        bool const stopping = m_hooks.stopping();
        lock.lock();
        if (stopping && !m_decision) break;
    }
    m_undecided.reset();
    auto const decision = m_decision;
    lock.unlock();
    // Without one the machine ends here, and the other host may have it.
    if (decision == migrate::Outcome::Moved) end_as_moved();
    if (decision == migrate::Outcome::StillHere) stay();
}

Result<control::MigrateAnswer> OutgoingRun::leave(control::MigrateRequest const& request, control::Conversation& with) {
    auto leaving = std::make_shared<Leaving>();
    leaving->request = request;
    leaving->begun = monotonic_now();
    leaving->peer = {request.peer.fingerprint, request.peer.name, request.peer.place, request.peer.exporter};
    migrate::Stream::Options options;
    options.cancelled = [&with, raw = leaving.get()] {
        // On the owner's thread the client's is the one that asks.
        if (!raw->running && with.cancelled()) raw->given_up = true;
        return raw->given_up && !raw->committed;
    };
    leaving->stream = std::make_unique<migrate::Stream>(with.take_descriptor(), std::move(options));

    auto const sent = [&]() -> Result<void> {
        auto hello = TRY(describe(request.copy_disks));
        std::set<std::string> names;
        for (auto const& file : disk_files(request.copy_disks))
            if (file.message.disk == 0) names.insert(file.message.name);
        leaving->source.emplace(TRY(migrate::Source::begin(m_home, *leaving->stream, leaving->peer, std::move(hello),
                                                           m_machine.platform().firmware_code(), std::move(names))));
        with.progress(0, 0, "asking the other host");
        TRY(leaving->source->greet());
        TRY(leaving->source->send_files(
            {[&](uint64_t done, uint64_t total) { with.progress(done, total, "files of the home"); }}));
        TRY(send_disks(*leaving, with));
        return send_memory(*leaving, with);
    }();
    if (!sent) {
        leaving->stream->send_failure(sent.error());
        return sent.error();
    }
    with.progress(0, 0, "switching over");
    leaving->running = true;
    {
        std::shared_ptr<void> dropped(nullptr, [leaving](void*) {
            leaving->finish(make_error(ErrorCode::Cancelled, "the VM ended before it was migrated"));
        });
        m_machine.while_paused([this, leaving, dropped] {
            auto outcome = leaving->given_up ? Result<migrate::Outcome>(make_error(ErrorCode::Cancelled, "given up"))
                                             : switch_over(*leaving);
            leaving->sender.reset();
            leaving->disks.reset();
            if (!outcome) {
                leaving->source->give_up(outcome.error());
                stay();
            }
            if (outcome && *outcome == migrate::Outcome::Moved) end_as_moved();
            if (outcome && *outcome == migrate::Outcome::Undecided)
                wait_until_settled(*leaving);
            else
                leaving->finish(std::move(outcome));
        });
    }
    std::unique_lock lock(leaving->mutex);
    while (
        !leaving->changed.wait_for(lock, std::chrono::milliseconds(100), [&] { return leaving->result.has_value(); })) {
        lock.unlock();
        if (!leaving->committed && with.cancelled()) leaving->given_up = true;
        lock.lock();
    }
    if (!*leaving->result) return leaving->result->error();
    control::MigrateAnswer answer;
    answer.outcome = to_control(**leaving->result);
    auto const now = monotonic_now();
    answer.downtime_us =
        static_cast<uint64_t>(((leaving->ended != 0 ? leaving->ended : now) - leaving->stopped) / 1000);
    answer.total_ms = static_cast<uint64_t>((now - leaving->begun) / k_ns_per_ms);
    answer.bytes = leaving->bytes;
    answer.disk_bytes = leaving->disk_bytes;
    answer.rounds = static_cast<uint32_t>(leaving->rounds.size());
    return answer;
}

Result<control::SettleAnswer> OutgoingRun::settle(control::SettleRequest const& request, control::Conversation& with) {
    std::lock_guard one(m_settling);
    OutgoingMigration migration;
    {
        std::lock_guard lock(m_mutex);
        if (!m_undecided || m_decision)
            return make_error(ErrorCode::InvalidArgument, "VM '{}' runs here, and no migration of it is to be settled",
                              m_home.config().name);
        migration = *m_undecided;
    }
    if (request.peer.fingerprint != migration.peer)
        return make_error(ErrorCode::Permission,
                          "VM '{}' was handed over to host '{}', and the one that was asked is another", migration.name,
                          migration.peer_name);
    migrate::Stream::Options options;
    options.cancelled = [&with] { return with.cancelled(); };
    migrate::Stream stream(with.take_descriptor(), std::move(options));
    auto const outcome = TRY(migrate::settle(
        stream, MigrationJournal(m_home.location().root), migration, {[&]() -> Result<void> {
            return m_home.claim(HistoryKind::Other,
                                fmt::format("taken back: host '{}' gave the migration up", migration.peer_name));
        }}));
    std::lock_guard lock(m_mutex);
    m_decision = outcome;
    m_changed.notify_all();
    return control::SettleAnswer{to_control(outcome)};
}

} // namespace coffer::vmm
