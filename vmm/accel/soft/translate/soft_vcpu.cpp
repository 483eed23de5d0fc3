#include "vmm/accel/soft/translate/soft_vcpu.hpp"

#include <climits>
#include <cstring>
#include <new>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace coffer::vmm::soft {

namespace {

constexpr size_t k_stack = 256 * 1024; // below the frame: fill_tlb() and signal handlers
constexpr uint64_t k_flag_tf = 1 << 8, k_flag_if = 1 << 9;
constexpr uint32_t k_attention_memory_map = 1U << 16;
constexpr uint32_t k_attention_write_tags = 1U << 17;

uint64_t slot_of(uint64_t rflags) {
    return (rflags & 0xFF) << 8 | (rflags >> 11 & 1);
}
uint64_t flags_of(uint64_t slot) {
    return (slot >> 8 & 0xD5) | (slot & 1) << 11;
}

} // namespace

Result<std::unique_ptr<SoftVcpu>> SoftVcpu::create(unsigned index, GuestMemoryMap& memory, GuestIo& io,
                                                   devices::CpuInterrupts* interrupts, uint64_t tsc_hz) {
    install_host_fault_handlers();
    GuardedMemory frame_memory = TRY(GuardedMemory::create(k_stack + align_up(sizeof(Frame), k_page_size)));
    std::unique_ptr<NativeStep> native = TRY(NativeStep::create());
    std::unique_ptr<SoftVcpu> vcpu(new SoftVcpu(std::move(frame_memory), std::move(native)));
    Cpu& cpu = vcpu->cpu();
    cpu.index = index;
    cpu.memory = &memory;
    cpu.io = &io;
    cpu.interrupts = interrupts;
    cpu.tsc_hz = tsc_hz;
    vcpu->m_cache = TRY(CodeCache::create(*vcpu->m_frame, memory));
    cpu.translator = vcpu->m_cache.get();
    // SAFETY: addresses of code, compared with faulting addresses.
    vcpu->m_fault_target.code_begin = reinterpret_cast<uintptr_t>(vcpu->m_cache->code().executable());
    vcpu->m_fault_target.code_end = vcpu->m_fault_target.code_begin + vcpu->m_cache->code().size();
    TRY(vcpu->reset());
    return vcpu;
}

SoftVcpu::SoftVcpu(GuardedMemory memory, std::unique_ptr<NativeStep> native)
    : m_memory(std::move(memory)), m_frame(new (m_memory.data() + k_stack) Frame), m_native(std::move(native)),
      m_interpreter(*m_native) {
    // SAFETY: addresses of code, jumped to by emitted code and by the fault handler.
    m_frame->exit = reinterpret_cast<uint64_t>(&coffer_soft_exit);
    m_frame->cold = reinterpret_cast<uint64_t>(&coffer_soft_cold);
    m_fault_target.landing = reinterpret_cast<uintptr_t>(&coffer_soft_fault);
    m_fault_target.vector = &m_frame->fault_vector;
    m_fault_target.address = &m_frame->fault_address;
}

SoftVcpu::~SoftVcpu() {
    m_cache.reset();
    m_frame->~Frame();
}

// ---- Signals from other threads ----

void SoftVcpu::raise_attention(uint32_t bits) noexcept {
    m_frame->cpu.attention.fetch_or(bits);
    for (auto& salt : m_frame->salt) salt.store(k_salt_poison);
    if (!m_waiting.load()) return;
    // SAFETY: the futex word is the atomic's storage, a lock-free 32-bit integer.
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&m_frame->cpu.attention), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr,
            nullptr, 0);
}

void SoftVcpu::kick() noexcept {
    raise_attention(k_attention_kick);
}
void SoftVcpu::interrupt_raised() noexcept {
    raise_attention(k_attention_interrupt);
}
void SoftVcpu::nmi() noexcept {
    raise_attention(k_attention_nmi);
}
void SoftVcpu::init() noexcept {
    raise_attention(k_attention_init);
}
void SoftVcpu::startup(uint8_t vector) noexcept {
    m_startup_vector.store(vector);
    raise_attention(k_attention_startup);
}
void SoftVcpu::memory_map_changed(uint64_t gpa, size_t size) noexcept {
    m_cache->memory_replaced(gpa, size);
    raise_attention(k_attention_memory_map);
}

void SoftVcpu::drop_write_tags() {
    std::unique_lock lock(m_run_mutex);
    uint64_t const wanted = ++m_drops_wanted;
    if (m_in_run) {
        raise_attention(k_attention_write_tags);
        m_run_changed.wait(lock, [&] { return m_drops_done >= wanted || !m_in_run; });
    }
    if (m_drops_done < wanted) drop_wanted_write_tags();
}

// m_run_mutex held; on the vCPU's thread, or with it outside of run().
void SoftVcpu::drop_wanted_write_tags() noexcept {
    soft::drop_write_tags(cpu());
    m_drops_done = m_drops_wanted;
    m_run_changed.notify_all();
}

void SoftVcpu::wait() {
    ++m_counts.halts;
    m_waiting.store(true);
    // SAFETY: as in raise_attention(). Attention that came in between ends the wait at once.
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&m_frame->cpu.attention), FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr,
            0);
    m_waiting.store(false);
}

// ---- The loop ----

void SoftVcpu::apply_init() noexcept {
    init_cpu(cpu());
    m_cache->translation_changed(true);
    m_nmi_pending = false;
    m_activity = cpu().index == 0 ? CpuActivity::Running : CpuActivity::WaitingForSipi;
}

std::optional<VcpuExit> SoftVcpu::attend() {
    Cpu& c = cpu();
    m_cache->restore_salts();
    uint32_t bits = c.attention.exchange(0);
    if (bits & k_attention_write_tags) {
        std::lock_guard lock(m_run_mutex);
        drop_wanted_write_tags();
    }
    if (bits & k_attention_memory_map) flush_tlb_all(c);
    if (bits & k_attention_stale_code) m_cache->process_stale();
    if (bits & k_attention_init) apply_init();
    if ((bits & k_attention_startup) && m_activity == CpuActivity::WaitingForSipi) {
        // SDM vol. 3, 9.4.3: real mode at vector * 4 KiB.
        Segment& cs = c.segment(SegmentName::Cs);
        uint32_t vector = m_startup_vector.load();
        cs.selector = static_cast<uint16_t>(vector << 8);
        cs.base = vector << 12;
        c.rip = 0;
        m_activity = CpuActivity::Running;
    }
    if (bits & k_attention_nmi) m_nmi_pending = true;
    if (bits & k_attention_kick) return VcpuExit::Kicked;
    return std::nullopt;
}

bool SoftVcpu::deliver_pending() {
    Cpu& c = cpu();
    if (m_activity == CpuActivity::WaitingForSipi || c.interrupt_shadow) return false;
    if (m_nmi_pending && !c.nmi_blocked) {
        m_nmi_pending = false;
        m_activity = CpuActivity::Running;
        finish(deliver_nmi(c));
        return true;
    }
    if (!(c.rflags & k_flag_if) || !c.interrupts || !c.interrupts->has_pending()) return false;
    auto vector = c.interrupts->acknowledge();
    if (!vector) return false;
    ++m_counts.interrupts;
    m_activity = CpuActivity::Running;
    finish(deliver_interrupt(c, *vector));
    return true;
}

Result<VcpuExit> SoftVcpu::run() {
    {
        std::lock_guard lock(m_run_mutex);
        m_in_run = true;
    }
    auto exit = run_until_exit();
    std::lock_guard lock(m_run_mutex);
    m_in_run = false;
    m_run_changed.notify_all();
    return exit;
}

Result<VcpuExit> SoftVcpu::run_until_exit() {
    HostFaultScope scope(m_fault_target);
    m_cache->restore_salts();
    for (;;) {
        if (cpu().attention.load(std::memory_order_relaxed) != 0) {
            if (auto exit = attend()) return *exit;
        }
        if (deliver_pending()) {
            if (m_shutdown) break;
            continue;
        }
        if (m_activity != CpuActivity::Running) {
            wait();
            continue;
        }
        dispatch();
        if (m_shutdown) break;
    }
    m_shutdown = false;
    return VcpuExit::TripleFault;
}

// Delivers what a step ended with.
void SoftVcpu::finish(Step step) {
    switch (step) {
    case Step::Next:
    case Step::Leave: return;
    case Step::Halt: m_activity = CpuActivity::Halted; return;
    case Step::Shutdown: m_shutdown = true; return;
    case Step::Fault:
        ++m_counts.faults;
        cpu().interrupt_shadow = false;
        if (deliver_fault(cpu()) == Step::Shutdown) m_shutdown = true;
        return;
    }
}

void SoftVcpu::interpret() {
    Cpu& c = cpu();
    if (m_trace) m_trace(c);
    ++m_counts.interpreted;
    bool trap = (c.rflags & k_flag_tf) != 0;
    c.interrupt_shadow = false;
    Step step = m_interpreter.step(c);
    m_cache->take_code_changed();
    if (trap && (step == Step::Next || step == Step::Leave)) step = deliver_single_step(c);
    finish(step);
}

void SoftVcpu::dispatch() {
    Cpu& c = cpu();
    ModeKey key = mode_key(c);
    // In the shadow of STI or MOV SS exactly one instruction runs before what is pending now. Where nothing is, what
    // comes later is as if it had come behind the first instructions of the block.
    bool shadow = c.interrupt_shadow;
    if (key.code_bits == 0 || (c.rflags & k_flag_tf) || (shadow && something_pending())) {
        interpret();
        return;
    }
    m_cache->enter_mode(key);
    bool fault;
    Block* block = m_cache->find(key, fault);
    if (!block) {
        if (fault)
            finish(Step::Fault);
        else
            interpret();
        return;
    }
    if (m_trace) m_trace(c);
    m_next_entry = m_cache->entry(*block);
    c.interrupt_shadow = false;
    // Salts are not written between the look at attention and the entry, so that a poisoned one stays.
    do {
        if (!shadow && c.attention.load() != 0) return;
        shadow = false;
        enter(m_next_entry);
    } while (leave() == Next::Enter);
}

bool SoftVcpu::something_pending() const {
    Cpu const& c = m_frame->cpu;
    return c.attention.load() != 0 || m_nmi_pending || (c.interrupts && c.interrupts->has_pending());
}

void SoftVcpu::enter(uint8_t const* code) {
    Frame& f = *m_frame;
    ++m_counts.entries;
    f.host_flags = (f.cpu.rflags & k_native_flags) | 0x202;
    f.flag_slot = slot_of(f.cpu.rflags);
    f.entry = reinterpret_cast<uint64_t>(code); // SAFETY: jumped to by the trampoline
    f.cpu.fxsave[26] = f.cpu.fxsave[27] = 0;    // reserved MXCSR bits would fault
    coffer_soft_enter(&f);
    // The FPU's instruction and data pointers are the host's.
    std::memset(f.cpu.fxsave.data() + 8, 0, 16);
}

SoftVcpu::Next SoftVcpu::leave() {
    Frame& f = *m_frame;
    Cpu& c = f.cpu;
    uint64_t flags = f.host_flags & k_native_flags;
    if (!f.site) {
        c.rflags = (c.rflags & ~k_native_flags) | flags;
        leave_host_fault();
        return Next::Dispatch;
    }
    Site& site = *f.site;
    if (site.flags_in_slot) flags = (flags & ~uint64_t{k_arithmetic_flags}) | flags_of(f.flag_slot);
    c.rflags = (c.rflags & ~k_native_flags) | flags;
    switch (site.kind) {
    case SiteKind::Link: return leave_link(site);
    case SiteKind::Indirect: {
        ++m_counts.indirect;
        m_cache->restore_salts();
        if (c.attention.load() != 0 || m_trace) return Next::Dispatch;
        bool fault;
        Block* block = m_cache->find(mode_key(c), fault);
        if (!block) {
            if (fault) finish(Step::Fault);
            return Next::Dispatch;
        }
        m_cache->insert_jump(*block);
        m_next_entry = m_cache->entry(*block);
        return Next::Enter;
    }
    case SiteKind::Poll:
        ++m_counts.polls;
        c.rip = site.rip;
        return Next::Dispatch;
    case SiteKind::Access: ++m_counts.accesses; return leave_instruction(site);
    case SiteKind::System: ++m_counts.system; return leave_instruction(site);
    case SiteKind::Raise:
        c.rip = site.rip;
        c.fault = Fault{.vector = site.vector};
        finish(Step::Fault);
        return Next::Dispatch;
    case SiteKind::Fetch: c.rip = site.rip; return Next::Dispatch;
    }
    return Next::Dispatch;
}

SoftVcpu::Next SoftVcpu::leave_link(Site& site) {
    Cpu& c = cpu();
    ++m_counts.links;
    c.rip = site.rip;
    if (m_trace || c.attention.load(std::memory_order_relaxed) != 0) return Next::Dispatch;
    uint64_t flushes = m_cache->counters().flushes;
    bool fault;
    Block* block = m_cache->find(mode_key(c), fault);
    if (!block) {
        if (fault)
            finish(Step::Fault);
        else
            interpret();
        return Next::Dispatch;
    }
    // A flush for room takes the site with it.
    if (flushes == m_cache->counters().flushes) m_cache->link(site, *block);
    m_next_entry = m_cache->entry(*block);
    return Next::Enter;
}

Decoded const& SoftVcpu::decoded(Site const& site) {
    // SAFETY: an address as a hash.
    Known& known = m_known[reinterpret_cast<uintptr_t>(&site) / sizeof(Site) % m_known.size()];
    uint64_t flushes = m_cache->counters().flushes;
    if (known.site != &site || known.flushes != flushes) {
        known.site = nullptr;
        COFFER_ASSERT(decode(cpu().mode.code_bits, std::span(site.bytes).first(site.length), known.decoded) ==
                      DecodeStatus::Ok);
        known.site = &site;
        known.flushes = flushes;
    }
    return known.decoded;
}

SoftVcpu::Next SoftVcpu::leave_instruction(Site& site) {
    Cpu& c = cpu();
    c.rip = site.rip;
    Decoded const& instruction = decoded(site);
    ModeKey key = mode_key(c);
    uint64_t next = site.rip + site.length;
    if (c.mode.code_bits != 64) next &= 0xFFFF'FFFF;
    uint8_t const* resume = site.resume;
    uint64_t flushes = m_cache->counters().flushes;
    Step step = m_interpreter.execute(c, instruction);
    bool code_changed = m_cache->take_code_changed();
    if (step == Step::Next && c.rip == next && !code_changed && resume && flushes == m_cache->counters().flushes &&
        mode_key(c) == key && !c.interrupt_shadow && c.attention.load(std::memory_order_relaxed) == 0 &&
        !(c.rflags & k_flag_tf)) {
        m_next_entry = resume;
        return Next::Enter;
    }
    finish(step);
    return Next::Dispatch;
}

void SoftVcpu::leave_host_fault() {
    Frame& f = *m_frame;
    Cpu& c = f.cpu;
    ++m_counts.host_faults;
    CodeCache::Origin origin = m_cache->origin_of(f.fault_address);
    if (!origin.block) abort_with("a host exception in translated code, outside of any guest instruction");
    if (origin.mark.flags_in_slot) c.rflags = (c.rflags & ~uint64_t{k_arithmetic_flags}) | flags_of(f.flag_slot);
    c.rip = origin.block->rip + origin.mark.guest;
    if (origin.block->key.code_bits == 32) c.rip &= 0xFFFF'FFFF;
    c.fault = Fault{.vector = static_cast<Vector>(f.fault_vector)};
    if (c.fault.vector == Vector::GP || c.fault.vector == Vector::AC) c.fault.has_error = true;
    finish(Step::Fault);
}

// ---- State ----

Result<CpuState> SoftVcpu::get_state() {
    CpuState state = save_cpu(cpu());
    state.activity = m_activity;
    state.nmi_pending = m_nmi_pending;
    return state;
}

Result<void> SoftVcpu::set_state(CpuState const& state) {
    TRY(load_cpu(cpu(), state));
    m_activity = state.activity;
    m_nmi_pending = state.nmi_pending;
    m_shutdown = false;
    flush_tlb_all(cpu());
    return {};
}

Result<void> SoftVcpu::reset() {
    reset_cpu(cpu());
    m_activity = cpu().index == 0 ? CpuActivity::Running : CpuActivity::WaitingForSipi;
    m_nmi_pending = false;
    m_shutdown = false;
    flush_tlb_all(cpu());
    m_cache->flush_all();
    return {};
}

VcpuStatistics SoftVcpu::statistics() const {
    Cpu const& c = m_frame->cpu;
    CodeCache::Counters const& cache = m_cache->counters();
    VcpuStatistics statistics;
    statistics.completed_instructions = m_counts.interpreted;
    auto& kinds = statistics.exits_by_kind;
    kinds["mmio"] = c.mmio_accesses;
    kinds["pio"] = c.pio_accesses;
    kinds["entry"] = m_counts.entries;
    kinds["link"] = m_counts.links;
    kinds["indirect"] = m_counts.indirect;
    kinds["poll"] = m_counts.polls;
    kinds["access"] = m_counts.accesses;
    kinds["system"] = m_counts.system;
    kinds["fault"] = m_counts.faults;
    kinds["host-fault"] = m_counts.host_faults;
    kinds["interrupt"] = m_counts.interrupts;
    kinds["halt"] = m_counts.halts;
    kinds["tlb-fill"] = c.tlb_fills;
    kinds["blocks-translated"] = cache.blocks;
    kinds["instructions-translated"] = cache.instructions;
    kinds["blocks-invalidated"] = cache.invalidations;
    kinds["code-flush"] = cache.flushes;
    return statistics;
}

} // namespace coffer::vmm::soft
