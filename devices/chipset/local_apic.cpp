#include "devices/chipset/local_apic.hpp"

#include <algorithm>
#include <bit>

#include "base/tagged.hpp"

namespace coffer::devices {

using namespace lapic;

void LocalApic::VectorSet::set(uint8_t vector, bool value) noexcept {
    uint32_t mask = 1U << (vector % 32);
    words[vector / 32] = value ? words[vector / 32] | mask : words[vector / 32] & ~mask;
}

int LocalApic::VectorSet::highest() const noexcept {
    for (int i = 7; i >= 0; --i)
        if (uint32_t word = words[static_cast<size_t>(i)]) return i * 32 + 31 - std::countl_zero(word);
    return -1;
}

LocalApic::LocalApic(unsigned index, InterruptLock& lock, ApicBus& bus, Scheduler& scheduler, TscClock const& tsc)
    : m_index(index), m_name(fmt::format("lapic.{}", index)), m_lock(lock), m_bus(bus),
      m_timer(scheduler, tsc, [this] { on_timer(); }) {
    COFFER_ASSERT(index < 0xFF); // 8-bit IDs: 0xFF is broadcast
    m_base = k_base_address | k_base_enabled | (index == 0 ? k_base_bsp : 0);
    reset_registers();
}

void LocalApic::connect(CpuSignals& signals) {
    InterruptGuard guard(m_lock);
    m_signals = &signals;
}

// SDM vol. 3, 11.4.7: the state after power-up, and after INIT but for the ID.
void LocalApic::reset_registers() noexcept {
    m_registers = Registers{};
    m_registers.lvt.fill(k_lvt_masked);
    if (m_base & k_base_bsp) lvt(LVT_LINT0) = static_cast<uint32_t>(DeliveryMode::ExtInt) << k_lvt_mode_shift;
    m_timer.reset();
}

// SDM vol. 3, 11.8.3.1: the processor priority register.
uint8_t LocalApic::priority() const noexcept {
    int in_service = m_registers.isr.highest();
    uint8_t service_class = in_service < 0 ? uint8_t{0} : static_cast<uint8_t>(in_service & 0xF0);
    return (m_registers.tpr & 0xF0) >= service_class ? m_registers.tpr : service_class;
}

uint8_t LocalApic::processor_priority(InterruptGuard const&) const noexcept {
    return priority();
}

bool LocalApic::fixed_ready() const noexcept {
    int requested = m_registers.irr.highest();
    return enabled() && requested >= 0 && (requested & 0xF0) > (priority() & 0xF0);
}

// The 8259A has no priority: TPR does not hold it back.
bool LocalApic::external_ready() const noexcept {
    if (!m_lint0) return false;
    // A disabled local APIC passes INTR to the CPU as it is (SDM vol. 3, 11.4.3).
    if (!enabled()) return m_index == 0;
    uint32_t lint0 = lvt(LVT_LINT0);
    return !(lint0 & k_lvt_masked) &&
           static_cast<DeliveryMode>((lint0 & k_lvt_mode) >> k_lvt_mode_shift) == DeliveryMode::ExtInt;
}

void LocalApic::update(InterruptGuard const&, bool accepted) {
    bool pending = external_ready() || fixed_ready();
    bool before = m_pending.exchange(pending, std::memory_order_acq_rel);
    if (pending && (accepted || !before) && m_signals) m_signals->interrupt_raised();
}

bool LocalApic::accepts(InterruptGuard const&, ApicMessage const& message) const noexcept {
    bool maskable = message.mode == DeliveryMode::Fixed || message.mode == DeliveryMode::LowestPriority;
    if (maskable ? !software_enabled() : !enabled()) return false;
    if (message.destination == k_apic_broadcast) return true;
    if (!message.logical) return message.destination == m_index;
    uint32_t own = logical_id();
    if (x2apic()) // cluster in the upper half, members as bits of the lower
        return message.destination >> 16 == own >> 16 && (message.destination & own & 0xFFFF);
    uint32_t wanted = message.destination & 0xFF;
    own >>= 24;
    if (m_registers.dfr == k_dfr_flat) return wanted & own;
    return wanted >> 4 == own >> 4 && (wanted & own & 0xF);
}

void LocalApic::deliver(InterruptGuard const& guard, ApicMessage const& message) {
    switch (message.mode) {
    case DeliveryMode::Fixed:
    case DeliveryMode::LowestPriority: accept_vector(guard, message.vector, message.level_triggered); break;
    case DeliveryMode::Nmi:
        if (m_signals) m_signals->nmi();
        break;
    case DeliveryMode::Init:
        reset_registers();
        update(guard);
        if (m_signals) m_signals->init();
        break;
    case DeliveryMode::StartUp:
        if (m_signals) m_signals->startup(message.vector);
        break;
    case DeliveryMode::Smi:
    case DeliveryMode::ExtInt: break;
    }
}

void LocalApic::accept_vector(InterruptGuard const& guard, uint8_t vector, bool level) {
    if (vector < k_first_legal_vector) {
        raise_error(guard, k_error_receive_illegal_vector);
        return;
    }
    m_registers.irr.set(vector);
    m_registers.tmr.set(vector, level);
    update(guard, true);
}

void LocalApic::raise_error(InterruptGuard const& guard, uint32_t error) {
    bool is_new = !(m_registers.errors & error);
    m_registers.errors |= error;
    uint32_t entry = lvt(LVT_ERROR);
    // An illegal vector in the error entry itself must not raise an error again.
    if (!is_new || (entry & k_lvt_masked) || (entry & k_lvt_vector) < k_first_legal_vector) return;
    accept_vector(guard, static_cast<uint8_t>(entry & k_lvt_vector), false);
}

void LocalApic::end_of_interrupt(InterruptGuard const& guard) {
    int vector = m_registers.isr.highest();
    if (vector < 0) return;
    auto done = static_cast<uint8_t>(vector);
    m_registers.isr.set(done, false);
    if (m_registers.tmr.has(done)) m_bus.end_of_interrupt(guard, done);
    update(guard);
}

// SDM vol. 3, 11.6.1.
void LocalApic::send_ipi(InterruptGuard const& guard, uint64_t icr) {
    auto low = static_cast<uint32_t>(icr);
    ApicMessage message;
    message.vector = static_cast<uint8_t>(low & 0xFF);
    message.mode = static_cast<DeliveryMode>(low >> 8 & 7);
    message.logical = low & k_icr_logical;
    auto shorthand = static_cast<Shorthand>(low >> k_icr_shorthand_shift & 3);
    switch (message.mode) {
    case DeliveryMode::Fixed:
    case DeliveryMode::LowestPriority:
        if (message.vector < k_first_legal_vector) {
            raise_error(guard, k_error_send_illegal_vector);
            return;
        }
        break;
    case DeliveryMode::Init:
        // The de-assert message only synchronised arbitration IDs on CPUs of long ago.
        if ((low & k_icr_level) && !(low & k_icr_assert)) return;
        [[fallthrough]];
    case DeliveryMode::Nmi:
    case DeliveryMode::StartUp:
        if (shorthand == ToSelf || shorthand == ToAll) return;
        break;
    default: return;
    }
    if (x2apic()) {
        message.destination = static_cast<uint32_t>(icr >> 32);
    } else {
        message.destination = static_cast<uint32_t>(icr >> 56);
        if (message.destination == 0xFF) message.destination = k_apic_broadcast;
    }
    switch (shorthand) {
    case NoShorthand: m_bus.send(guard, message); break;
    case ToSelf:
        if (software_enabled()) deliver(guard, message);
        break;
    case ToAll:
    case ToOthers:
        message.destination = k_apic_broadcast;
        m_bus.send_to_all(guard, message, shorthand == ToOthers ? m_index : k_no_cpu);
        break;
    }
}

void LocalApic::set_lint0(InterruptGuard const& guard, bool asserted) {
    bool rises = asserted && !m_lint0;
    m_lint0 = asserted;
    uint32_t entry = lvt(LVT_LINT0);
    if (rises && enabled() && !(entry & k_lvt_masked)) {
        auto mode = static_cast<DeliveryMode>((entry & k_lvt_mode) >> k_lvt_mode_shift);
        if (mode == DeliveryMode::Fixed) accept_vector(guard, static_cast<uint8_t>(entry & k_lvt_vector), false);
        if (mode == DeliveryMode::Nmi && m_signals) m_signals->nmi();
    }
    update(guard, rises);
}

void LocalApic::on_timer() {
    InterruptGuard guard(m_lock);
    if (!m_timer.take_expiry()) return;
    uint32_t entry = lvt(LVT_TIMER);
    if (!(entry & k_lvt_masked)) accept_vector(guard, static_cast<uint8_t>(entry & k_lvt_vector), false);
}

std::optional<uint8_t> LocalApic::acknowledge() noexcept {
    InterruptGuard guard(m_lock);
    if (external_ready()) {
        uint8_t vector = m_bus.acknowledge_pic(guard);
        update(guard);
        return vector;
    }
    if (!fixed_ready()) {
        update(guard);
        return std::nullopt;
    }
    auto vector = static_cast<uint8_t>(m_registers.irr.highest());
    m_registers.irr.set(vector, false);
    m_registers.isr.set(vector);
    update(guard);
    return vector;
}

uint8_t LocalApic::read_cr8() const noexcept {
    InterruptGuard guard(m_lock);
    return m_registers.tpr >> 4;
}

void LocalApic::write_cr8(uint8_t value) noexcept {
    InterruptGuard guard(m_lock);
    m_registers.tpr = static_cast<uint8_t>(value << 4);
    update(guard);
}

uint64_t LocalApic::read_apic_base() const noexcept {
    InterruptGuard guard(m_lock);
    return m_base;
}

// SDM vol. 3, 11.12.5: x2APIC mode is entered from xAPIC mode and left by disabling only.
bool LocalApic::write_apic_base(uint64_t value) noexcept {
    constexpr uint64_t k_mode = k_base_enabled | k_base_x2apic;
    InterruptGuard guard(m_lock);
    if ((value & ~(k_mode | k_base_bsp)) != k_base_address) return false;
    uint64_t from = m_base & k_mode;
    uint64_t to = value & k_mode;
    bool legal =
        to == from || (to == 0) || (to == k_base_enabled && from == 0) || (to == k_mode && from == k_base_enabled);
    if (!legal) return false;
    m_base = value;
    if (to == 0 && from != 0) reset_registers();
    update(guard);
    return true;
}

uint64_t LocalApic::read_tsc_deadline() const noexcept {
    InterruptGuard guard(m_lock);
    return m_timer.deadline();
}

void LocalApic::write_tsc_deadline(uint64_t value) noexcept {
    InterruptGuard guard(m_lock);
    m_timer.set_deadline(value);
}

void LocalApic::reset(ResetKind) noexcept {
    InterruptGuard guard(m_lock);
    m_base = k_base_address | k_base_enabled | (m_index == 0 ? k_base_bsp : 0);
    reset_registers();
    m_lint0 = false;
    update(guard);
}

Result<ByteVector> LocalApic::save() const {
    InterruptGuard guard(m_lock);
    LocalApicState state;
    state.base = m_base;
    state.tpr = m_registers.tpr;
    state.ldr = m_registers.ldr;
    state.dfr = m_registers.dfr;
    state.svr = m_registers.svr;
    state.errors = m_registers.errors;
    state.esr = m_registers.esr;
    state.icr = m_registers.icr;
    state.divide = m_registers.divide;
    state.isr = m_registers.isr.words;
    state.tmr = m_registers.tmr.words;
    state.irr = m_registers.irr.words;
    state.lvt = m_registers.lvt;
    state.lint0 = m_lint0;
    state.timer = m_timer.saved();
    return encode_fields(state);
}

Result<void> LocalApic::restore(Bytes bytes) {
    LocalApicState state;
    TRY(decode_fields(bytes, state));
    TRY(ApicTimer::check(state.timer));
    constexpr uint64_t k_mode = k_base_enabled | k_base_x2apic;
    bool sound = (state.base & ~(k_mode | k_base_bsp)) == k_base_address && (state.base & k_mode) != k_base_x2apic &&
                 !(state.ldr & 0x00FF'FFFF) && (state.dfr | k_dfr_writable) == k_dfr_flat &&
                 !(state.svr & ~k_svr_writable) && !(state.errors & ~k_error_all) && !(state.esr & ~k_error_all) &&
                 !(state.divide & ~k_divide_writable) && !(static_cast<uint32_t>(state.icr) & ~k_icr_writable) &&
                 (state.isr[0] & 0xFFFF) == 0 && (state.irr[0] & 0xFFFF) == 0 && (state.tmr[0] & 0xFFFF) == 0;
    for (unsigned i = 0; i < k_lvt_count; ++i) sound = sound && !(state.lvt[i] & ~k_lvt_writable[i]);
    if (!sound) return make_error(ErrorCode::Corrupt, "saved state of {} is out of range", m_name);
    InterruptGuard guard(m_lock);
    m_base = state.base;
    m_registers.tpr = state.tpr;
    m_registers.ldr = state.ldr;
    m_registers.dfr = state.dfr;
    m_registers.svr = state.svr;
    m_registers.errors = state.errors;
    m_registers.esr = state.esr;
    m_registers.icr = state.icr;
    m_registers.divide = state.divide;
    m_registers.isr.words = state.isr;
    m_registers.tmr.words = state.tmr;
    m_registers.irr.words = state.irr;
    m_registers.lvt = state.lvt;
    m_lint0 = state.lint0;
    m_timer.load(state.timer, static_cast<ApicTimerMode>((lvt(LVT_TIMER) & k_lvt_timer_mode) >> k_lvt_timer_shift),
                 divider_shift(m_registers.divide));
    update(guard, true);
    return {};
}

} // namespace coffer::devices
