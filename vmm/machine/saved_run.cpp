#include "vmm/machine/saved_run.hpp"

#include <condition_variable>

#include "base/log.hpp"

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
    for (auto part : m_machine->ram().parts())
        if (!part.empty()) source.memory.emplace_back(part);
    return source;
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
    auto taken = while_paused(with, [this, &request, &answer](ImageOptions const& watched) -> Result<void> {
        auto begun = monotonic_now();
        auto options = watched;
        options.compress = request.compress;
        auto source = TRY(save());
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
