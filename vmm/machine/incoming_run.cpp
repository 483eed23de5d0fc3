#include "vmm/machine/incoming_run.hpp"

#include "base/log.hpp"
#include "vmm/accel/choose.hpp"

namespace coffer::vmm {

std::unique_ptr<migrate::Stream> IncomingRun::make_stream(UniqueFd socket) {
    migrate::Stream::Options options;
    options.cancelled = [this] { return m_cancelled.load(); };
    return std::make_unique<migrate::Stream>(std::move(socket), std::move(options));
}

std::unique_ptr<IncomingRun> IncomingRun::create(UniqueFd socket, migrate::Peer peer, Options options) {
    std::unique_ptr<IncomingRun> run(new IncomingRun());
    migrate::Destination::Options ours;
    ours.check_machine = [raw = run.get()](migrate::HelloMessage const& hello) { return raw->check_machine(hello); };
    ours.open_key = std::move(options.open_key);
    ours.place_disk = std::move(options.place_disk);
    ours.may_use_disk = std::move(options.may_use_disk);
    ours.patience = options.patience;
    ours.superseded = [raw = run.get()] {
        std::lock_guard lock(raw->m_mutex);
        return !raw->m_waiting.empty();
    };
    auto stream = run->make_stream(std::move(socket));
    run->m_destination = std::make_unique<migrate::Destination>(std::move(options.root), std::move(stream),
                                                                std::move(peer), std::move(ours));
    return run;
}

Result<std::vector<MutBytes>> IncomingRun::check_machine(migrate::HelloMessage const& hello) {
    PartitionConfig config{.vcpus = hello.platform.cpus};
    m_partition = TRY(hello.backend == "kvm" ? create_kvm_partition(config) : create_soft_partition(config));
    if (hello.platform.cpus > m_partition->capabilities().max_vcpus)
        return make_error(ErrorCode::Unsupported, "the VM has {} CPUs, and the backend '{}' can run {} here",
                          hello.platform.cpus, m_partition->capabilities().name, m_partition->capabilities().max_vcpus);
    MachineState machine;
    machine.backend = hello.backend;
    machine.cpuid = hello.cpuid;
    machine.tsc_hz = hello.tsc_hz;
    machine.physical_address_bits = hello.physical_address_bits;
    TRY(check_cpu_fits(machine, *m_partition));
    m_ram = std::make_unique<GuestRam>(TRY(GuestRam::create(hello.platform.memory)));
    return m_ram->parts();
}

Result<std::unique_ptr<HomeSession>> IncomingRun::take(Bytes hello) {
    TRY(m_destination->greet(hello));
    log::info("VM '{}' comes from host '{}'", name(), peer().name);
    TRY(m_destination->receive());
    auto home = TRY(m_destination->open_home());
    auto state = decode_machine_state(m_destination->state());
    if (!state) {
        m_destination->fail(state.error());
        return std::move(state).error();
    }
    m_state = std::move(*state);
    return home;
}

Result<void> IncomingRun::configure(PlatformConfig& config) {
    if (config.variables != m_state->variables || (config.tpm && config.tpm->state != m_state->tpm_permanent))
        return make_error(ErrorCode::Corrupt, "the machine that came and its home are not of one moment");
    config.firmware_memory = m_destination->take_firmware();
    return {};
}

Result<control::SettleAnswer> IncomingRun::come_back(control::SettleRequest const& request,
                                                     control::Conversation& with) {
    if (request.migration != m_destination->hello().migration || request.peer.fingerprint != peer().fingerprint)
        return make_error(ErrorCode::Permission, "this is not the migration that VM '{}' came by", name());
    std::lock_guard lock(m_mutex);
    m_waiting.push_back(with.take_descriptor());
    m_changed.notify_all();
    return control::SettleAnswer{};
}

std::unique_ptr<migrate::Stream> IncomingRun::next_stream(Nanoseconds limit) {
    std::unique_lock lock(m_mutex);
    auto const end = monotonic_now() + limit;
    while (m_waiting.empty()) {
        if (m_cancelled || monotonic_now() >= end) return nullptr;
        m_changed.wait_for(lock, std::chrono::milliseconds(100));
    }
    auto socket = std::move(m_waiting.front());
    m_waiting.pop_front();
    return make_stream(std::move(socket));
}

Result<void> IncomingRun::wait_for_go(HomeSession& home) {
    m_state.reset();
    TRY(m_destination->ready());
    TRY(m_destination->wait_for_go([this](Nanoseconds limit) { return next_stream(limit); }));
    m_is_waiting = false;
    // This host owns it whatever becomes of these writings: the journal says so.
    if (auto claimed = home.claim(HistoryKind::Received, fmt::format("from host '{}'", peer().name)); !claimed)
        log::warning("{}", claimed.error().message());
    return {};
}

void IncomingRun::confirm() noexcept {
    passed("started");
    log::info("migration: from the source's last word to the guest's first step: {} ms", m_destination->times().text());
    m_destination->confirm();
}

} // namespace coffer::vmm
