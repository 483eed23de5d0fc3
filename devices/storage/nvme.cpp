#include "devices/storage/nvme.hpp"

#include <algorithm>
#include <atomic>

#include "base/log.hpp"
#include "base/tagged.hpp"

namespace coffer::devices {

using namespace nvme;

NvmeController::NvmeController(Config config, BlockBackend& backend, GuestMemory& memory, Scheduler& scheduler)
    : PciFunction({.vendor = k_pci_vendor,
                   .device = k_pci_device,
                   .class_code = k_pci_class,
                   .revision = 1,
                   .subsystem_vendor = k_pci_vendor,
                   .subsystem = k_pci_device,
                   .interrupt_pin = 1,
                   .express = true}),
      m_settings(std::move(config)), m_backend(backend), m_memory(memory), m_scheduler(scheduler),
      m_self(std::make_shared<NvmeController*>(this)),
      m_worker(backend, memory, [&scheduler, weak = std::weak_ptr(m_self)] {
          scheduler.post([weak] {
              if (auto self = weak.lock()) (*self)->take_results();
          });
      }) {
    COFFER_ASSERT(backend.size() % k_lba_size == 0);
    add_memory_bar(0, BarKind::Memory64, k_registers_size, *this);
    add_msix(k_vectors, 4);
    add_power_management();
    add_express();
    reset_features();
}

NvmeController::~NvmeController() = default;

// --- registers ---

bool NvmeController::running() const noexcept {
    return (m_regs.csts & (k_csts_ready | k_csts_fatal)) == k_csts_ready && !m_disabling && bus_master();
}

uint32_t NvmeController::read_register(uint32_t offset) const noexcept {
    switch (offset) {
    case CAP: return static_cast<uint32_t>(k_cap);
    case CAP + 4: return static_cast<uint32_t>(k_cap >> 32);
    case VS: return k_version;
    case INTMS:
    case INTMC: return m_regs.intms;
    case CC: return m_regs.cc;
    case CSTS: return m_regs.csts;
    case AQA: return m_regs.aqa;
    case ASQ: return static_cast<uint32_t>(m_regs.asq);
    case ASQ + 4: return static_cast<uint32_t>(m_regs.asq >> 32);
    case ACQ: return static_cast<uint32_t>(m_regs.acq);
    case ACQ + 4: return static_cast<uint32_t>(m_regs.acq >> 32);
    default: return 0; // reserved, unsupported, and doorbells
    }
}

IoStatus NvmeController::mmio_read(uint64_t offset, MutBytes to) {
    // 3.1: accesses are of 32 bits, or 64 where the register is that wide.
    if (to.size() != 4 && to.size() != 8) return IoStatus::BadSize;
    if (offset % to.size() != 0) return IoStatus::Unaligned;
    for (size_t i = 0; i < to.size(); i += 4)
        store_le<uint32_t>(to, i, read_register(static_cast<uint32_t>(offset + i)));
    return IoStatus::Ok;
}

IoStatus NvmeController::mmio_write(uint64_t offset, Bytes from) {
    if (from.size() != 4 && from.size() != 8) return IoStatus::BadSize;
    if (offset % from.size() != 0) return IoStatus::Unaligned;
    for (size_t i = 0; i < from.size(); i += 4) {
        IoStatus status = write_register(static_cast<uint32_t>(offset + i), load_le<uint32_t>(from, i));
        if (status != IoStatus::Ok) return status;
    }
    return IoStatus::Ok;
}

IoStatus NvmeController::write_register(uint32_t offset, uint32_t value) {
    auto set_half = [](uint64_t& target, bool upper, uint32_t half) {
        target = upper ? (target & 0xFFFF'FFFF) | uint64_t{half} << 32 : (target & ~uint64_t{0xFFFF'FFFF}) | half;
        target &= ~(k_page_size - 1);
    };
    switch (offset) {
    case CAP:
    case CAP + 4:
    case VS:
    case CSTS:
    case NSSR: return IoStatus::Ok; // read-only
    case INTMS:
        m_regs.intms |= value;
        update_intx();
        return IoStatus::Ok;
    case INTMC:
        m_regs.intms &= ~value;
        update_intx();
        return IoStatus::Ok;
    case CC: write_configuration(value & k_cc_writable); return IoStatus::Ok;
    case AQA: m_regs.aqa = value & k_aqa_writable; return IoStatus::Ok;
    case ASQ: set_half(m_regs.asq, false, value); return IoStatus::Ok;
    case ASQ + 4: set_half(m_regs.asq, true, value); return IoStatus::Ok;
    case ACQ: set_half(m_regs.acq, false, value); return IoStatus::Ok;
    case ACQ + 4: set_half(m_regs.acq, true, value); return IoStatus::Ok;
    default: break;
    }
    if (offset < DOORBELLS) return IoStatus::NoSuchRegister;
    write_doorbell((offset - DOORBELLS) / 4, value);
    return IoStatus::Ok;
}

void NvmeController::write_configuration(uint32_t value) {
    uint32_t old = std::exchange(m_regs.cc, value);
    bool was_enabled = (old & k_cc_enable) != 0;
    bool enabled = (value & k_cc_enable) != 0;
    if (was_enabled && !enabled)
        begin_disable();
    else if (!was_enabled && enabled && !m_disabling)
        enable();
    bool asks_shutdown = (value & k_cc_shutdown) != 0 && (old & k_cc_shutdown) == 0;
    if (asks_shutdown && (m_regs.csts & k_csts_shutdown) == 0) begin_shutdown();
}

void NvmeController::enable() {
    m_regs.csts &= ~(k_csts_shutdown | k_csts_fatal);
    auto sq_size = static_cast<uint16_t>((m_regs.aqa & 0xFFF) + 1);
    auto cq_size = static_cast<uint16_t>((m_regs.aqa >> 16 & 0xFFF) + 1);
    // The page size must be 4 KiB, the command set NVM, the arbitration round robin: the only ones CAP offers. Admin
    // queues have 2 to 4096 entries (3.1.8).
    if ((m_regs.cc & (k_cc_page_size | k_cc_command_set | k_cc_arbitration)) != 0 || sq_size < 2 || cq_size < 2) {
        fatal("the controller was enabled with settings that it does not offer");
        return;
    }
    m_sqs[0] = {.valid = true, .size = sq_size, .base = m_regs.asq, .deletion = {}};
    m_cqs[0] = {.valid = true, .interrupts = true, .size = cq_size, .base = m_regs.acq, .waiting = {}};
    m_regs.csts |= k_csts_ready;
}

void NvmeController::begin_disable() {
    m_disabling = true;
    m_worker.cancel();
    // Otherwise the notification that follows the last command finishes it, and RDY stays 1 until then.
    if (m_worker.idle()) finish_disable();
}

void NvmeController::finish_disable() noexcept {
    m_disabling = false;
    clear_queues();
    m_regs.csts = 0;
    // 7.3.2: a controller reset leaves AQA, ASQ and ACQ.
    m_regs.intms = 0;
    reset_features();
    update_intx();
    if ((m_regs.cc & k_cc_enable) != 0) enable();
}

void NvmeController::clear_queues() noexcept {
    m_sqs.fill({});
    for (auto& cq : m_cqs) cq = {};
    m_regs.events.clear();
    m_regs.events_pending = 0;
    m_regs.events_masked = false;
}

void NvmeController::begin_shutdown() {
    m_regs.csts |= k_csts_shutdown_occurring;
    m_worker.submit({.kind = IoRequest::Kind::Shutdown});
}

void NvmeController::fatal(std::string_view what) noexcept {
    static log::RateLimit limit;
    if (limit.allow()) log::warning("{}: fatal for the guest's driver: {}", m_settings.unit, what);
    m_regs.csts |= k_csts_fatal;
}

void NvmeController::config_written(uint16_t, size_t) noexcept {
    update_intx();
    if (running()) fetch_all();
}

// --- queues ---

void NvmeController::write_doorbell(uint32_t index, uint32_t value) {
    auto id = static_cast<uint16_t>(index / 2);
    bool completion = index % 2 != 0;
    if ((m_regs.csts & k_csts_ready) == 0 || m_disabling) return;
    if (index / 2 >= k_queues || (completion ? !m_cqs[id].valid : !m_sqs[id].valid)) {
        report_error_event(ErrorEvent::InvalidDoorbellRegister);
        return;
    }
    if (!completion) {
        if (value >= m_sqs[id].size) {
            report_error_event(ErrorEvent::InvalidDoorbellValue);
            return;
        }
        m_sqs[id].tail = static_cast<uint16_t>(value);
        fetch(id);
        return;
    }
    CompletionQueue& cq = m_cqs[id];
    // The head moves over entries that are there, no further.
    auto distance = [&cq](uint32_t to) { return (to + cq.size - cq.head) % cq.size; };
    if (value >= cq.size || distance(value) > distance(cq.tail)) {
        report_error_event(ErrorEvent::InvalidDoorbellValue);
        return;
    }
    cq.head = static_cast<uint16_t>(value);
    flush_waiting(id);
    update_intx();
    for (uint16_t sq = 0; sq < k_queues; ++sq)
        if (m_sqs[sq].valid && m_sqs[sq].cq == id) fetch(sq);
}

void NvmeController::fetch_all() {
    for (uint16_t id = 0; id < k_queues; ++id) {
        if (m_cqs[id].valid) flush_waiting(id);
        if (m_sqs[id].valid) fetch(id);
    }
    update_intx();
}

// Takes commands as long as their number under way, and the completions for which there is no room, stay below the
// queue's size.
void NvmeController::fetch(uint16_t id) {
    for (;;) {
        SubmissionQueue& sq = m_sqs[id];
        if (!running() || !sq.valid || sq.deletion || sq.head == sq.tail || sq.in_flight >= sq.size) return;
        if (m_cqs[sq.cq].waiting.size() >= m_cqs[sq.cq].size) return;
        Command command;
        if (!m_memory.read(GuestPhysAddr{sq.base + uint64_t{sq.head} * sizeof command},
                           std::as_writable_bytes(std::span(&command, 1)))) {
            fatal("a submission queue is not in RAM");
            return;
        }
        sq.head = static_cast<uint16_t>((sq.head + 1) % sq.size);
        execute(id, command);
    }
}

void NvmeController::execute(uint16_t sq, Command const& command) {
    MaybeOutcome outcome;
    // Fused operations and SGLs are not offered.
    if (command.flags != 0)
        outcome = Outcome{Status::InvalidField};
    else
        outcome = sq == 0 ? execute_admin(command) : execute_io(sq, command);
    if (!outcome) return;
    if (outcome->status != Status::Success) note_error(sq, command, outcome->status);
    complete(sq, command.id, *outcome);
}

NvmeController::Outcome NvmeController::check_transfer(Command const& command, IoRequest& request) const {
    uint64_t blocks = m_backend.size() >> k_lba_shift;
    uint64_t first = uint64_t{command.cdw11} << 32 | command.cdw10;
    uint64_t count = uint64_t{command.cdw12 & 0xFFFF} + 1;
    if (first > blocks || count > blocks - first) return {Status::LbaOutOfRange};
    request.first = first << k_lba_shift;
    request.size = count << k_lba_shift;
    request.prp1 = command.prp1;
    request.prp2 = command.prp2;
    return {};
}

NvmeController::MaybeOutcome NvmeController::execute_io(uint16_t sq, Command const& command) {
    using Kind = IoRequest::Kind;
    IoRequest request{.kind = Kind::Flush, .sq = sq, .command = command.id};
    switch (command.opcode) {
    case FLUSH: request.kind = Kind::Flush; break;
    case READ: request.kind = Kind::Read; break;
    case WRITE: request.kind = Kind::Write; break;
    case WRITE_ZEROES: request.kind = Kind::WriteZeroes; break;
    case DATASET_MANAGEMENT: request.kind = Kind::Deallocate; break;
    default: return Outcome{Status::InvalidOpcode};
    }
    bool all = request.kind == Kind::Flush && command.nsid == k_all_namespaces;
    if (command.nsid != k_namespace && !all) return Outcome{Status::InvalidNamespace};
    bool writes = request.kind != Kind::Flush && request.kind != Kind::Read;
    if (writes && m_backend.read_only()) return Outcome{Status::NamespaceWriteProtected};

    if (request.kind == Kind::Deallocate) {
        request.ranges = (command.cdw10 & 0xFF) + 1;
        request.prp1 = command.prp1;
        request.prp2 = command.prp2;
        if ((command.cdw11 & k_dsm_deallocate) == 0) return Outcome{}; // the other attributes are hints
    } else if (request.kind != Kind::Flush) {
        Outcome checked = check_transfer(command, request);
        if (checked.status != Status::Success) return checked;
        if (request.kind != Kind::WriteZeroes && request.size > k_max_transfer) return Outcome{Status::InvalidField};
        bool cached = (m_regs.features[VOLATILE_WRITE_CACHE] & 1) != 0;
        request.durable = writes && (!cached || (command.cdw12 & k_cdw12_force_unit_access) != 0);
    }
    submit(sq, request);
    return std::nullopt;
}

void NvmeController::submit(uint16_t sq, IoRequest request) {
    ++m_sqs[sq].in_flight;
    m_worker.submit(request);
}

// Under the device lock, on the I/O thread.
void NvmeController::take_results() {
    if (m_disabling) {
        if (m_worker.idle()) finish_disable();
        return;
    }
    for (auto const& result : m_worker.collect()) finish(result);
    if (running()) fetch_all();
}

void NvmeController::finish(IoResult const& result) {
    IoRequest const& request = result.request;
    if (request.kind == IoRequest::Kind::Shutdown) {
        if ((m_regs.csts & k_csts_shutdown) == k_csts_shutdown_occurring)
            m_regs.csts = (m_regs.csts & ~k_csts_shutdown) | k_csts_shutdown_complete;
        if (result.status != Status::Success) fatal("the disk could not be flushed at shutdown");
        return;
    }
    SubmissionQueue& sq = m_sqs[request.sq];
    COFFER_ASSERT(sq.valid && sq.in_flight > 0);
    --sq.in_flight;
    if (result.status == Status::Success) {
        bool reads = request.kind == IoRequest::Kind::Read;
        if (reads || request.kind == IoRequest::Kind::Write) {
            m_regs.counters[reads ? 0 : 1] += request.size >> k_lba_shift;
            m_regs.counters[reads ? 2 : 3] += 1;
        }
    } else {
        if (result.status == Status::WriteFault || result.status == Status::UnrecoveredReadError) ++m_regs.media_errors;
        Command command{};
        command.id = request.command;
        command.nsid = k_namespace;
        command.cdw10 = static_cast<uint32_t>(request.first >> k_lba_shift);
        command.cdw11 = static_cast<uint32_t>(request.first >> k_lba_shift >> 32);
        note_error(request.sq, command, result.status);
    }
    complete(request.sq, request.command, {result.status});
    if (sq.deletion && sq.in_flight == 0) {
        uint16_t command = *sq.deletion;
        sq = {};
        complete(0, command, {});
    }
}

void NvmeController::complete(uint16_t sq, uint16_t command, Outcome outcome) {
    auto status = static_cast<uint16_t>(outcome.status);
    bool permanent = outcome.status != Status::Success && outcome.status != Status::InternalError;
    Completion completion{.result = outcome.result,
                          .reserved = 0,
                          .sq_head = m_sqs[sq].head,
                          .sq_id = sq,
                          .command_id = command,
                          .status = static_cast<uint16_t>((status | (permanent ? k_do_not_retry : 0)) << 1)};
    post(m_sqs[sq].cq, completion);
}

void NvmeController::post(uint16_t id, Completion completion) {
    m_cqs[id].waiting.push_back(completion);
    flush_waiting(id);
}

// Whether anything was written.
bool NvmeController::flush_waiting(uint16_t id) {
    CompletionQueue& cq = m_cqs[id];
    bool any = false;
    while (running() && !cq.waiting.empty() && (cq.tail + 1) % cq.size != cq.head) {
        Completion entry = cq.waiting.front();
        entry.status = static_cast<uint16_t>((entry.status & ~1U) | (cq.phase ? 1U : 0U));
        GuestPhysAddr at{cq.base + uint64_t{cq.tail} * sizeof entry};
        constexpr size_t k_before_phase = offsetof(Completion, command_id);
        // The doubleword with the phase tag last: another CPU may be polling it.
        bool written = m_memory.write(at, object_bytes(entry).first(k_before_phase));
        std::atomic_thread_fence(std::memory_order_release);
        written = written && m_memory.write(GuestPhysAddr{at.value() + k_before_phase},
                                            object_bytes(entry).subspan(k_before_phase));
        if (!written) {
            fatal("a completion queue is not in RAM");
            return any;
        }
        cq.waiting.pop_front();
        cq.tail = static_cast<uint16_t>((cq.tail + 1) % cq.size);
        if (cq.tail == 0) cq.phase = !cq.phase;
        any = true;
    }
    if (any && cq.interrupts && !signal_vector(cq.vector)) update_intx();
    return any;
}

void NvmeController::update_intx() noexcept {
    bool asserted = false;
    for (auto const& cq : m_cqs) {
        bool masked = cq.vector < 32 && (m_regs.intms >> cq.vector & 1U) != 0;
        asserted = asserted || (cq.valid && cq.interrupts && cq.head != cq.tail && !masked);
    }
    set_intx(asserted && !messages_enabled());
}

// --- life ---

void NvmeController::reset(ResetKind) noexcept {
    m_worker.cancel();
    m_worker.wait_idle();
    (void)m_worker.collect();
    m_disabling = false;
    clear_queues();
    m_regs = {};
    reset_features();
    reset_pci();
}

void NvmeController::drain() {
    do {
        m_worker.wait_idle();
        take_results();
    } while (!m_worker.idle());
}

Result<ByteVector> NvmeController::save() const {
    if (!m_worker.idle() || m_disabling)
        return make_error(ErrorCode::Internal, "{}: saved while commands are at the disk", m_settings.unit);
    NvmeState state;
    state.pci = save_pci();
    state.intms = m_regs.intms;
    state.cc = m_regs.cc;
    state.csts = m_regs.csts;
    state.aqa = m_regs.aqa;
    state.asq = m_regs.asq;
    state.acq = m_regs.acq;
    state.features = m_regs.features;
    state.vector_configuration = m_regs.vector_configuration;
    state.events = m_regs.events;
    state.events_pending = m_regs.events_pending;
    state.events_masked = m_regs.events_masked;
    state.counters = m_regs.counters;
    state.media_errors = m_regs.media_errors;
    state.error_count = m_regs.error_count;
    state.last_error = m_regs.last_error;
    for (uint16_t id = 0; id < k_queues; ++id) {
        SubmissionQueue const& sq = m_sqs[id];
        if (sq.valid)
            state.submission.push_back(
                {.id = id, .size = sq.size, .head = sq.head, .tail = sq.tail, .cq = sq.cq, .base = sq.base});
        CompletionQueue const& cq = m_cqs[id];
        if (!cq.valid) continue;
        NvmeCompletionQueueState saved{.id = id,
                                       .size = cq.size,
                                       .head = cq.head,
                                       .tail = cq.tail,
                                       .vector = cq.vector,
                                       .interrupts = cq.interrupts,
                                       .phase = cq.phase,
                                       .base = cq.base,
                                       .waiting = {}};
        for (auto const& completion : cq.waiting) append(saved.waiting, object_bytes(completion));
        state.completion.push_back(std::move(saved));
    }
    return encode_fields(state);
}

Result<void> NvmeController::check_state(NvmeState const& state) const {
    auto refuse = [this](std::string_view what) {
        return make_error(ErrorCode::Corrupt, "{}: saved state has {}", m_settings.unit, what);
    };
    TRY(check_pci(state.pci));
    bool ready = (state.csts & k_csts_ready) != 0;
    std::array<bool, k_queues> sq_seen{};
    std::array<bool, k_queues> cq_seen{};
    auto geometry = [](uint16_t id, uint16_t size, uint16_t head, uint16_t tail, uint64_t base) {
        unsigned largest = id == 0 ? 4096 : k_max_entries;
        return id < k_queues && size >= 2 && size <= largest && head < size && tail < size && base % k_page_size == 0;
    };
    for (auto const& cq : state.completion) {
        if (!geometry(cq.id, cq.size, cq.head, cq.tail, cq.base) || cq_seen[cq.id] || cq.vector >= k_vectors)
            return refuse("an impossible completion queue");
        size_t most = (size_t{cq.size} + k_queues * size_t{k_max_entries}) * sizeof(Completion);
        if (cq.waiting.size() % sizeof(Completion) != 0 || cq.waiting.size() > most)
            return refuse("an impossible list of waiting completions");
        cq_seen[cq.id] = true;
    }
    for (auto const& sq : state.submission) {
        if (!geometry(sq.id, sq.size, sq.head, sq.tail, sq.base) || sq_seen[sq.id] || sq.cq >= k_queues ||
            !cq_seen[sq.cq] || (sq.id == 0) != (sq.cq == 0))
            return refuse("an impossible submission queue");
        sq_seen[sq.id] = true;
    }
    if (ready != sq_seen[0] || ready != cq_seen[0] || (!ready && !state.completion.empty()))
        return refuse("queues that do not match the controller's status");
    bool registers = (state.cc & ~k_cc_writable) == 0 && (state.aqa & ~k_aqa_writable) == 0 &&
                     state.asq % k_page_size == 0 && state.acq % k_page_size == 0 &&
                     (state.csts & ~(k_csts_ready | k_csts_fatal | k_csts_shutdown)) == 0 &&
                     (state.csts & k_csts_shutdown) != k_csts_shutdown && (!ready || (state.cc & k_cc_enable) != 0);
    if (!registers) return refuse("impossible registers");
    if (state.events.size() > k_max_events || (state.events_pending & ~3U) != 0 || (!ready && !state.events.empty()))
        return refuse("impossible asynchronous events");
    return {};
}

void NvmeController::take_registers(NvmeState const& state) {
    m_regs.intms = state.intms;
    m_regs.cc = state.cc;
    m_regs.csts = state.csts;
    m_regs.aqa = state.aqa;
    m_regs.asq = state.asq;
    m_regs.acq = state.acq;
    m_regs.features = state.features;
    m_regs.vector_configuration = state.vector_configuration;
    m_regs.events = state.events;
    m_regs.events_pending = state.events_pending;
    m_regs.events_masked = state.events_masked;
    m_regs.counters = state.counters;
    m_regs.media_errors = state.media_errors;
    m_regs.error_count = state.error_count;
    m_regs.last_error = state.last_error;
}

void NvmeController::resume() noexcept {
    if (running()) fetch_all();
    if ((m_regs.csts & k_csts_shutdown) == k_csts_shutdown_occurring) begin_shutdown();
}

Result<void> NvmeController::restore(Bytes bytes) {
    NvmeState state;
    TRY(decode_fields(bytes, state));
    TRY(check_state(state));
    m_worker.cancel();
    m_worker.wait_idle();
    (void)m_worker.collect();
    m_disabling = false;
    clear_queues();
    take_registers(state);
    for (auto const& saved : state.completion) {
        CompletionQueue& cq = m_cqs[saved.id];
        cq = {.valid = true,
              .interrupts = saved.interrupts,
              .phase = saved.phase,
              .size = saved.size,
              .head = saved.head,
              .tail = saved.tail,
              .vector = saved.vector,
              .base = saved.base,
              .waiting = {}};
        for (size_t at = 0; at < saved.waiting.size(); at += sizeof(Completion)) {
            Completion& completion = cq.waiting.emplace_back();
            std::memcpy(&completion, saved.waiting.data() + at, sizeof completion);
        }
    }
    for (auto const& saved : state.submission)
        m_sqs[saved.id] = {.valid = true,
                           .size = saved.size,
                           .head = saved.head,
                           .tail = saved.tail,
                           .cq = saved.cq,
                           .base = saved.base,
                           .deletion = {}};
    restore_pci(state.pci);
    // What the guest had submitted and was not taken goes on when the machine runs: its RAM may not be back yet.
    m_scheduler.post([weak = std::weak_ptr(m_self)] {
        if (auto self = weak.lock()) (*self)->resume();
    });
    return {};
}

} // namespace coffer::devices
