#include "vmm/machine/saved_run.hpp"

#include <condition_variable>

#include "base/log.hpp"
#include "vmm/migrate/memory_pages.hpp"

namespace coffer::vmm {

namespace {

// A request's work on the owner's thread, as the client's thread sees it.
struct Task {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<Result<void>> result;
    std::atomic<bool> begun{false};
    std::atomic<bool> given_up{false};
    std::atomic<uint64_t> done{0};
    std::atomic<uint64_t> total{0};

    void finish(Result<void> outcome) {
        std::lock_guard lock(mutex);
        if (!result) result = std::move(outcome);
        changed.notify_all();
    }
};

Error changed_meanwhile(std::string_view what) {
    return make_error(ErrorCode::Unsupported,
                      "{} changed while the VM was suspended, and the saved machine does not know of it: undo that, or "
                      "drop the saved machine with 'coffer run --discard-suspended'",
                      what);
}

} // namespace

Result<std::unique_ptr<SavedRun>> SavedRun::open(HomeSession& home, Options options) {
    auto store = TRY(SnapshotStore::open(home));
    std::unique_ptr<SavedRun> run(new SavedRun(std::move(store), options));
    auto& saved = run->m_store;
    if (options.policy == SuspendedPolicy::Require && !saved.suspended())
        return make_error(ErrorCode::InvalidArgument, "the VM '{}' is not suspended: start it with 'coffer run'",
                          home.config().name);
    if (!saved.suspended()) return run;
    if (options.policy == SuspendedPolicy::Discard) {
        TRY(saved.end_suspension());
        log::info("the suspended machine was dropped");
        return run;
    }
    run->m_image = TRY(saved.open_suspended());
    auto state = TRY(run->m_image->read_state());
    run->m_state = TRY(decode_machine_state(state));
    return run;
}

Result<void> SavedRun::configure(PlatformConfig& config) {
    if (!m_state) return {};
    if (config.variables != m_state->variables) return changed_meanwhile("UEFI variables were");
    if (config.tpm && config.tpm->state != m_state->tpm_permanent) return changed_meanwhile("The TPM was");
    config.firmware_code = std::move(m_state->firmware_code);
    return {};
}

Result<void> SavedRun::restore(Machine& machine, LazyMemory::OnFailure on_lost) {
    if (!m_state) return {};
    auto memory = machine.ram().parts();
    auto userfaultfd = m_options.eager ? Result<UniqueFd>(UniqueFd()) : open_userfaultfd();
    if (userfaultfd && !m_options.eager) {
        m_lazy = TRY(LazyMemory::start(std::move(*userfaultfd), std::move(m_image), memory, std::move(on_lost)));
    } else {
        if (!userfaultfd)
            log::warning("all memory is loaded before the guest goes on: {}", userfaultfd.error().message());
        TRY(load_memory(*m_image, memory, {}));
        m_image.reset();
    }
    machine.before_wipe([this] {
        if (m_lazy) m_lazy->finish();
    });
    return machine.restore_state(*m_state);
}

Result<void> SavedRun::begin() {
    if (!m_state) return {};
    m_state.reset();
    m_spent = TRY(m_store.spend_suspension());
    log::info("the saved machine goes on");
    return {};
}

void SavedRun::begun() {
    std::lock_guard guard(m_mutex);
    // Another writer finds it otherwise.
    if (auto removed = m_store.remove_spent(std::exchange(m_spent, {})); !removed)
        log::warning("the spent image of the suspended machine is left for later: {}", removed.error().message());
}

void SavedRun::end(Machine& machine) {
    if (!m_lazy) return;
    if (auto drained = machine.platform().drain(); !drained)
        log::warning("a device could not be brought to rest: {}", drained.error().message());
    m_lazy.reset();
}

void SavedRun::serve(control::Server& server, Machine& machine, HomeDisks const& disks, Hooks hooks) {
    m_machine = &machine;
    m_store.use(disks);
    m_hooks = std::move(hooks);
    server.on<control::SuspendRequest>(
        [this](control::SuspendRequest const& request, control::Conversation& with) -> Result<control::NoAnswer> {
            TRY(suspend(request, with));
            return control::NoAnswer{};
        });
    server.on<control::SnapshotRequest>([this](control::SnapshotRequest const& request, control::Conversation& with) {
        return snapshot(request, with);
    });
}

Result<ByteVector> SavedRun::encode_state(WithFirmware firmware) {
    TRY(m_machine->platform().flush());
    finish_memory();
    auto state = TRY(m_machine->save_state(firmware));
    {
        std::lock_guard lock(m_machine->loop().device_lock());
        state.agent_session = m_hooks.save_agent();
    }
    return encode_machine_state(std::move(state));
}

Result<MachineSource> SavedRun::save() {
    MachineSource source;
    source.state = TRY(encode_state(WithFirmware::Yes));
    source.memory = memory();
    return source;
}

std::vector<Bytes> SavedRun::memory() const {
    std::vector<Bytes> memory;
    for (auto part : m_machine->ram().parts())
        if (!part.empty()) memory.emplace_back(part);
    return memory;
}

Result<void> SavedRun::suspend(control::SuspendRequest const& request, control::Conversation& with) {
    std::lock_guard guard(m_mutex);
    return while_paused(with, [this, compress = request.compress](ImageOptions const& watched) -> Result<void> {
        {
            std::lock_guard lock(m_machine->loop().device_lock());
            TRY(m_hooks.may_suspend());
        }
        auto options = watched;
        options.compress = compress;
        auto source = TRY(save());
        TRY(m_store.suspend(source, options));
        std::lock_guard lock(m_machine->loop().device_lock());
        m_hooks.suspended();
        return {};
    });
}

Result<control::SnapshotAnswer> SavedRun::snapshot(control::SnapshotRequest const& request,
                                                   control::Conversation& with) {
    std::lock_guard guard(m_mutex);
    control::SnapshotAnswer answer{request.tag};
    switch (request.verb) {
    case control::SnapshotVerb::Delete: {
        ImageOptions options;
        options.progress = [&](uint64_t done, uint64_t total) { with.progress(done, total, "merging disks"); };
        options.cancelled = [&] { return with.cancelled(); };
        TRY(m_store.remove(request.tag, options));
        return answer;
    }
    case control::SnapshotVerb::Take: break;
    default: return make_error(ErrorCode::Unsupported, "this coffer does not know what to do with a snapshot");
    }
    return take(request, with);
}

// Most of a snapshot's memory is written while the guest runs, and again what it writes meanwhile, until little is left
// for when it stands still.
class SavedRun::Ahead {
public:
    static Result<std::unique_ptr<Ahead>> begin(DirtyLog& log, GuestRam const& ram,
                                                std::unique_ptr<SnapshotAhead> snapshot) {
        TRY(log.start());
        return std::unique_ptr<Ahead>(new Ahead(log, ram, std::move(snapshot)));
    }
    ~Ahead() {
        // A log that goes on costs speed, nothing else.
        if (auto stopped = m_log.stop(); !stopped) log::debug("{}", stopped.error().message());
    }
    Ahead(Ahead const&) = delete;
    Ahead& operator=(Ahead const&) = delete;

    Result<void> write(ImageOptions const& options) {
        constexpr uint64_t k_little = uint64_t{16} << 20;
        constexpr unsigned k_max_rounds = 8;
        for (unsigned round = 1;; ++round) {
            auto const clusters = take_clusters();
            TRY(m_snapshot->image().write_ahead(clusters, options));
            TRY(harvest_dirty(m_log, m_ram, m_numbers, m_pending));
            uint64_t const left = count_clusters();
            log::debug("snapshot: round {}, {} clusters written, {} written by the guest meanwhile", round,
                       clusters.size(), left);
            bool const worth_it = left * image_spec::k_cluster > k_little && left < clusters.size() / 4 * 3;
            if (!worth_it || round == k_max_rounds) return {};
        }
    }
    // With the machine saved, and standing still.
    Result<void> add_rest(MachineSource& source) {
        TRY(harvest_dirty(m_log, m_ram, m_numbers, m_pending));
        source.ahead = m_snapshot.get();
        source.changed = take_clusters();
        return {};
    }

private:
    Ahead(DirtyLog& log, GuestRam const& ram, std::unique_ptr<SnapshotAhead> snapshot)
        : m_log(log), m_ram(ram), m_snapshot(std::move(snapshot)), m_numbers(ram), m_pending(m_numbers.count()) {
        m_pending.add_all();
    }

    std::vector<uint64_t> clusters() const {
        std::vector<uint64_t> numbers;
        for (auto page = m_pending.next(0); page;) {
            numbers.push_back(*page / image_spec::k_pages_in_cluster);
            page = m_pending.next((numbers.back() + 1) * image_spec::k_pages_in_cluster);
        }
        return numbers;
    }
    uint64_t count_clusters() const { return clusters().size(); }
    std::vector<uint64_t> take_clusters() {
        auto numbers = clusters();
        m_pending = PageSet(m_numbers.count());
        return numbers;
    }

    DirtyLog& m_log;
    GuestRam const& m_ram;
    std::unique_ptr<SnapshotAhead> m_snapshot;
    RamPages m_numbers;
    PageSet m_pending; // not in the image, or written since
};

// Null where nobody tells what the guest writes.
Result<std::unique_ptr<SavedRun::Ahead>> SavedRun::write_ahead(control::SnapshotRequest const& request,
                                                               control::Conversation& with) {
    auto* log = m_machine->partition().dirty_log();
    if (!log) {
        log::warning("the backend '{}' does not tell what the guest writes: it stands still while memory is saved",
                     m_machine->partition().capabilities().name);
        return std::unique_ptr<Ahead>();
    }
    auto snapshot = TRY(m_store.begin(request.tag, request.description, memory()));
    auto ahead = Ahead::begin(*log, m_machine->ram(), std::move(snapshot));
    if (!ahead && ahead.error().code() == ErrorCode::Unsupported) {
        log::warning("the guest stands still while memory is saved: {}", ahead.error().message());
        return std::unique_ptr<Ahead>();
    }
    if (!ahead) return std::move(ahead).error();
    ImageOptions options;
    options.compress = request.compress;
    Nanoseconds told = 0;
    bool given_up = false;
    options.progress = [&](uint64_t done, uint64_t total) {
        auto const now = monotonic_now();
        if (now - told < 100 * k_ns_per_ms) return;
        told = now;
        with.progress(done, total, "saving");
        given_up = with.cancelled();
    };
    options.cancelled = [&] { return given_up; };
    TRY((*ahead)->write(options));
    return ahead;
}

Result<control::SnapshotAnswer> SavedRun::take(control::SnapshotRequest const& request, control::Conversation& with) {
    finish_memory();
    auto const ahead = TRY(write_ahead(request, with));
    control::SnapshotAnswer answer{request.tag};
    auto taken = while_paused(with, [this, &request, &answer, &ahead](ImageOptions const& watched) -> Result<void> {
        auto begun = monotonic_now();
        auto options = watched;
        options.compress = request.compress;
        auto source = TRY(save());
        if (ahead) TRY(ahead->add_rest(source));
        answer.tag = TRY(m_store.take(request.tag, request.description, &source, options)).tag;
        answer.stopped_ms = static_cast<uint64_t>((monotonic_now() - begun) / k_ns_per_ms);
        return {};
    });
    TRY(std::move(taken));
    return answer;
}

Result<void> SavedRun::while_paused(control::Conversation& with, std::function<Result<void>(ImageOptions const&)> work,
                                    std::string_view what) {
    auto task = std::make_shared<Task>();
    {
        // Goes with the last of the machine's hold on the work, done or dropped.
        std::shared_ptr<void> dropped(nullptr, [task](void*) {
            task->finish(make_error(ErrorCode::Cancelled, "the VM ended before it was saved"));
        });
        m_machine->while_paused([task, dropped, work = std::move(work)] {
            task->begun = true;
            if (task->given_up) return;
            ImageOptions options;
            options.progress = [task](uint64_t done, uint64_t total) {
                task->total = total;
                task->done = done;
            };
            options.cancelled = [task] { return task->given_up.load(); };
            task->finish(work(options));
        });
    }
    std::unique_lock lock(task->mutex);
    for (;;) {
        if (task->changed.wait_for(lock, std::chrono::milliseconds(100), [&] { return task->result.has_value(); }))
            return *std::move(task->result);
        lock.unlock();
        with.progress(task->done, task->total, what);
        if (with.cancelled()) task->given_up = true;
        lock.lock();
        // A machine that has ended calls no task, and this must not wait for it.
        if (task->given_up && !task->begun)
            return make_error(ErrorCode::Cancelled, "the VM ended, or the request was given up, before it was saved");
    }
}

} // namespace coffer::vmm
