#include "vmm/machine/machine.hpp"

#include "base/log.hpp"
#include "vmm/machine/memory_use.hpp"

namespace coffer::vmm {

Result<std::unique_ptr<Machine>> Machine::create(PlatformConfig config, std::unique_ptr<Partition> partition,
                                                 std::unique_ptr<GuestRam> ram) {
    std::unique_ptr<Machine> machine(new Machine(std::move(partition)));
    auto& part = *machine->m_partition;
    auto const& capabilities = part.capabilities();
    uint32_t cpus = config.vm.cpus;
    if (cpus > capabilities.max_vcpus)
        return make_error(ErrorCode::Unsupported,
                          "the VM has {} CPUs, and the backend '{}' can run {}; create it with fewer --cpus, or run it "
                          "with another --accel",
                          cpus, capabilities.name, capabilities.max_vcpus);
    machine->m_loop = TRY(IoLoop::create());
    if (!ram) ram = std::make_unique<GuestRam>(TRY(GuestRam::create(config.vm.memory)));
    COFFER_ASSERT(ram->low_size() + ram->high_size() == config.vm.memory);
    machine->m_ram = std::move(ram);
    machine->m_ram->on_write([&part](GuestPhysAddr first, size_t size) { part.memory_written(first, size); });
    for (auto const& region : machine->m_ram->regions()) TRY(part.map(region));
    machine->m_platform = TRY(Platform::create(
        std::move(config), {.loop = *machine->m_loop, .ram = *machine->m_ram, .partition = part, .control = *machine}));
    std::vector<std::unique_ptr<Vcpu>> vcpus;
    for (unsigned index = 0; index < cpus; ++index)
        vcpus.push_back(
            TRY(part.create_vcpu(index, machine->m_platform->guest_io(), machine->m_platform->cpu_interrupts(index))));
    auto* self = machine.get();
    machine->m_vcpus =
        std::make_unique<VcpuThreads>(std::move(vcpus), [self](unsigned index, std::optional<Error> error) {
            self->vcpu_ended(index, std::move(error));
        });
    return machine;
}

Machine::~Machine() {
    m_vcpus.reset();
    if (m_loop) m_loop->stop();
}

void Machine::start() {
    m_loop->start();
    m_vcpus->resume();
}

MachineEnd Machine::wait() {
    for (;;) {
        std::unique_lock lock(m_mutex);
        m_changed.wait(lock, [this] { return m_power_off || m_reset || m_stop || m_failure || !m_tasks.empty(); });
        bool goes_on = !m_power_off && !m_stop && !m_failure;
        if (goes_on && !m_tasks.empty()) {
            run_tasks(lock);
            continue;
        }
        if (!goes_on) {
            auto end = m_failure ? MachineEnd::Failed : m_power_off ? MachineEnd::PowerOff : MachineEnd::Stopped;
            auto dropped = std::exchange(m_tasks, {});
            lock.unlock();
            m_vcpus->pause();
            return end;
        }
        lock.unlock();
        m_vcpus->pause();
        auto done = carry_out_reset();
        lock.lock();
        m_reset = false;
        if (!done)
            m_failure = std::move(done).error().with_context("cannot reset the machine");
        else
            m_vcpus->resume();
    }
}

void Machine::run_tasks(std::unique_lock<std::mutex>& lock) {
    auto tasks = std::exchange(m_tasks, {});
    lock.unlock();
    m_vcpus->pause();
    m_loop->freeze();
    m_paused = Pause{wall_clock_ns(), m_partition->guest_tsc()};
    for (auto& task : tasks) task();
    tasks.clear();
    m_paused.reset();
    m_loop->thaw();
    lock.lock();
    if (!m_stop && !m_power_off && !m_reset && !m_failure) m_vcpus->resume();
}

void Machine::while_paused(std::function<void()> task) {
    std::lock_guard lock(m_mutex);
    m_tasks.push_back(std::move(task));
    wake_owner();
}

Result<void> Machine::carry_out_reset() {
    ++m_resets;
    log::debug("reset {}", m_resets);
    TRY(m_platform->flush());
    if (m_platform->memory_overwrite_requested()) {
        if (m_before_wipe) m_before_wipe();
        m_ram->wipe();
        m_platform->memory_was_overwritten();
    }
    TRY(m_partition->reset());
    m_platform->reset(devices::ResetKind::Warm);
    for (auto const& vcpu : m_vcpus->vcpus()) TRY(vcpu->reset());
    return {};
}

Result<void> Machine::close() {
    auto flushed = m_platform->flush();
    m_loop->stop();
    return flushed;
}

void Machine::vcpu_ended(unsigned index, std::optional<Error> error) {
    std::lock_guard lock(m_mutex);
    // A guest may well fault on its way out.
    if (m_failure || m_reset || m_power_off) return;
    m_failure = error
                    ? std::move(*error).with_context(fmt::format("CPU {}", index))
                    : make_error(ErrorCode::Corrupt,
                                 "the guest ended itself by a triple fault on CPU {} (a fault while handling a fault: "
                                 "a bad image, or a fault of the guest's own)",
                                 index);
    m_changed.notify_all();
}

void Machine::wake_owner() noexcept {
    m_changed.notify_all();
    if (m_vcpus) m_vcpus->kick_all();
}

void Machine::request_power_off() noexcept {
    std::lock_guard lock(m_mutex);
    m_power_off = true;
    wake_owner();
}

void Machine::request_reset() noexcept {
    std::lock_guard lock(m_mutex);
    m_reset = true;
    wake_owner();
}

void Machine::stop() noexcept {
    std::lock_guard lock(m_mutex);
    m_stop = true;
    wake_owner();
}

MachineStatistics Machine::statistics() const {
    MachineStatistics total;
    for (auto const& vcpu : m_vcpus->vcpus()) {
        auto one = vcpu->statistics();
        total.completed_instructions += one.completed_instructions;
        for (auto const& [kind, count] : one.exits_by_kind) total.exits_by_kind[kind] += count;
    }
    total.resets = m_resets;
    total.own_memory = own_memory(*m_ram);
    return total;
}

} // namespace coffer::vmm
