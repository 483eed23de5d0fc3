#include "devices/chipset/pic.hpp"

#include <utility>

#include "base/tagged.hpp"

namespace coffer::devices {

using namespace pic;

namespace {
constexpr uint8_t bit(unsigned n) {
    return static_cast<uint8_t>(1U << n);
}
} // namespace

Pic::Pic(InterruptLock& lock, Output output) : m_lock(lock), m_report_output(std::move(output)) {}

void Pic::Chip::set_line(unsigned input, bool asserted) noexcept {
    uint8_t mask = bit(input);
    if (elcr & mask) {
        irr = static_cast<uint8_t>(asserted ? irr | mask : irr & ~mask);
    } else if (asserted && !(lines & mask)) {
        irr |= mask;
    }
    lines = static_cast<uint8_t>(asserted ? lines | mask : lines & ~mask);
}

// Distance of the first of `inputs` from the top of the priority order; 8 where there is none.
unsigned Pic::Chip::rank_of_first(uint8_t inputs) const noexcept {
    for (unsigned rank = 0; rank < 8; ++rank)
        if (inputs & bit((rank + top_priority) & 7)) return rank;
    return 8;
}

int Pic::Chip::pending(bool is_master) const noexcept {
    unsigned wanted = rank_of_first(static_cast<uint8_t>(irr & ~imr));
    if (wanted == 8) return -1;
    uint8_t in_service = isr;
    if (special_mask) in_service &= static_cast<uint8_t>(~imr);
    // Special fully nested mode: the slave may interrupt its own service.
    if (special_fully_nested && is_master) in_service &= static_cast<uint8_t>(~bit(k_cascade_input));
    if (wanted >= rank_of_first(in_service)) return -1;
    return static_cast<int>((wanted + top_priority) & 7);
}

void Pic::Chip::acknowledge(unsigned input) noexcept {
    if (!(elcr & bit(input))) irr &= static_cast<uint8_t>(~bit(input));
    if (!auto_eoi) {
        isr |= bit(input);
    } else if (rotate_on_auto_eoi) {
        top_priority = static_cast<uint8_t>((input + 1) & 7);
    }
}

void Pic::Chip::write_icw1(uint8_t value) noexcept {
    irr &= elcr; // the edge detectors are reset; level inputs still ask
    isr = 0;
    imr = 0;
    top_priority = 0;
    read_isr = false;
    poll = false;
    special_mask = false;
    auto_eoi = false;
    rotate_on_auto_eoi = false;
    special_fully_nested = false;
    expect_icw4 = value & ICW1_IC4;
    single = value & ICW1_SNGL;
    init_step = InitStep::Icw2;
}

void Pic::Chip::end_of_interrupt(uint8_t inputs, bool rotate) noexcept {
    unsigned rank = rank_of_first(inputs);
    if (rank == 8) return;
    unsigned input = (rank + top_priority) & 7;
    isr &= static_cast<uint8_t>(~bit(input));
    if (rotate) top_priority = static_cast<uint8_t>((input + 1) & 7);
}

void Pic::Chip::write_ocw2(uint8_t value) noexcept {
    unsigned input = value & 7;
    switch (static_cast<Ocw2>(value >> 5)) {
    case OCW2_ROTATE_AEOI_CLEAR: rotate_on_auto_eoi = false; break;
    case OCW2_ROTATE_AEOI_SET: rotate_on_auto_eoi = true; break;
    case OCW2_EOI: end_of_interrupt(isr, false); break;
    case OCW2_ROTATE_EOI: end_of_interrupt(isr, true); break;
    case OCW2_SPECIFIC_EOI: end_of_interrupt(bit(input), false); break;
    case OCW2_ROTATE_SPECIFIC_EOI: end_of_interrupt(bit(input), true); break;
    case OCW2_SET_PRIORITY: top_priority = static_cast<uint8_t>((input + 1) & 7); break;
    case OCW2_NOP: break;
    }
}

void Pic::Chip::write_command(uint8_t value) noexcept {
    if (value & ICW1_SELECT) {
        write_icw1(value);
    } else if (value & OCW3_SELECT) {
        poll = value & OCW3_P;
        if (value & OCW3_RR) read_isr = value & OCW3_RIS;
        if (value & OCW3_ESMM) special_mask = value & OCW3_SMM;
    } else {
        write_ocw2(value);
    }
}

void Pic::Chip::write_data(uint8_t value) noexcept {
    InitStep after_icw3 = expect_icw4 ? InitStep::Icw4 : InitStep::Done;
    switch (init_step) {
    case InitStep::Done: imr = value; break;
    case InitStep::Icw2:
        vector_base = value & k_vector_base_mask;
        init_step = single ? after_icw3 : InitStep::Icw3;
        break;
    case InitStep::Icw3: init_step = after_icw3; break;
    case InitStep::Icw4:
        special_fully_nested = value & ICW4_SFNM;
        auto_eoi = value & ICW4_AEOI;
        init_step = InitStep::Done;
        break;
    }
}

// The slave's INT is the master's input 2; then the master's is ours.
void Pic::update(InterruptGuard const& guard) {
    bool cascade = m_slave.pending(false) >= 0;
    uint8_t mask = bit(k_cascade_input);
    m_master.irr = static_cast<uint8_t>(cascade ? m_master.irr | mask : m_master.irr & ~mask);
    m_output = m_master.pending(true) >= 0;
    m_report_output(guard, m_output);
}

void Pic::set_line(InterruptGuard const& guard, unsigned irq, bool asserted) {
    COFFER_ASSERT(irq < k_inputs);
    if (irq == k_cascade_input) return;
    (irq < 8 ? m_master : m_slave).set_line(irq & 7, asserted);
    update(guard);
}

uint8_t Pic::acknowledge(InterruptGuard const& guard) {
    constexpr unsigned k_spurious = 7;
    unsigned vector;
    if (int input = m_master.pending(true); input < 0) {
        vector = m_master.vector_base + k_spurious;
    } else if (static_cast<unsigned>(input) == k_cascade_input) {
        int behind = m_slave.pending(false);
        m_master.acknowledge(k_cascade_input);
        if (behind >= 0) m_slave.acknowledge(static_cast<unsigned>(behind));
        vector = m_slave.vector_base + (behind >= 0 ? static_cast<unsigned>(behind) : k_spurious);
    } else {
        m_master.acknowledge(static_cast<unsigned>(input));
        vector = m_master.vector_base + static_cast<unsigned>(input);
    }
    update(guard);
    return static_cast<uint8_t>(vector);
}

IoStatus Pic::read(Chip& chip, uint16_t offset, MutBytes to) {
    if (to.size() != 1) return IoStatus::BadSize;
    InterruptGuard guard(m_lock);
    uint8_t value;
    if (chip.poll) {
        chip.poll = false;
        int input = chip.pending(&chip == &m_master);
        if (input >= 0) chip.acknowledge(static_cast<unsigned>(input));
        value = input >= 0 ? static_cast<uint8_t>(k_poll_interrupt | input) : uint8_t{0};
        update(guard);
    } else if (offset == ICW1_OCW2_OCW3) {
        value = chip.read_isr ? chip.isr : chip.irr;
    } else {
        value = chip.imr;
    }
    to[0] = static_cast<std::byte>(value);
    return IoStatus::Ok;
}

IoStatus Pic::write(Chip& chip, uint16_t offset, Bytes from) {
    if (from.size() != 1) return IoStatus::BadSize;
    InterruptGuard guard(m_lock);
    auto value = static_cast<uint8_t>(from[0]);
    if (offset == ICW1_OCW2_OCW3) {
        chip.write_command(value);
    } else {
        chip.write_data(value);
    }
    update(guard);
    return IoStatus::Ok;
}

IoStatus Pic::master_read(uint16_t offset, MutBytes to) {
    return read(m_master, offset, to);
}
IoStatus Pic::master_write(uint16_t offset, Bytes from) {
    return write(m_master, offset, from);
}
IoStatus Pic::slave_read(uint16_t offset, MutBytes to) {
    return read(m_slave, offset, to);
}
IoStatus Pic::slave_write(uint16_t offset, Bytes from) {
    return write(m_slave, offset, from);
}

IoStatus Pic::elcr_read(uint16_t offset, MutBytes to) {
    if (to.empty() || to.size() > 2) return IoStatus::BadSize;
    InterruptGuard guard(m_lock);
    for (size_t i = 0; i < to.size(); ++i)
        to[i] = static_cast<std::byte>(offset + i == 0 ? m_master.elcr : m_slave.elcr);
    return IoStatus::Ok;
}

IoStatus Pic::elcr_write(uint16_t offset, Bytes from) {
    if (from.empty() || from.size() > 2) return IoStatus::BadSize;
    InterruptGuard guard(m_lock);
    for (size_t i = 0; i < from.size(); ++i) {
        bool is_master = offset + i == 0;
        Chip& chip = is_master ? m_master : m_slave;
        chip.elcr = static_cast<uint8_t>(from[i]) & (is_master ? k_elcr_mask_master : k_elcr_mask_slave);
        // An input that is level now asks exactly while its line is asserted.
        chip.irr = static_cast<uint8_t>((chip.irr & ~chip.elcr) | (chip.lines & chip.elcr));
    }
    update(guard);
    return IoStatus::Ok;
}

void Pic::reset(ResetKind) noexcept {
    InterruptGuard guard(m_lock);
    m_master = Chip{};
    m_slave = Chip{};
    update(guard);
}

PicChipState Pic::Chip::saved() const {
    PicChipState state;
    state.irr = irr;
    state.isr = isr;
    state.imr = imr;
    state.lines = lines;
    state.elcr = elcr;
    state.vector_base = vector_base;
    state.top_priority = top_priority;
    state.init_step = static_cast<uint8_t>(init_step);
    state.expect_icw4 = expect_icw4;
    state.single = single;
    state.read_isr = read_isr;
    state.poll = poll;
    state.special_mask = special_mask;
    state.auto_eoi = auto_eoi;
    state.rotate_on_auto_eoi = rotate_on_auto_eoi;
    state.special_fully_nested = special_fully_nested;
    return state;
}

Result<Pic::Chip> Pic::loaded(PicChipState const& state, uint8_t elcr_mask) {
    if ((state.vector_base & ~k_vector_base_mask) || state.top_priority > 7 || (state.elcr & ~elcr_mask) ||
        state.init_step > static_cast<uint8_t>(InitStep::Icw4))
        return make_error(ErrorCode::Corrupt, "saved state of the interrupt controller 8259A is out of range");
    Chip chip;
    chip.irr = state.irr;
    chip.isr = state.isr;
    chip.imr = state.imr;
    chip.lines = state.lines;
    chip.elcr = state.elcr;
    chip.vector_base = state.vector_base;
    chip.top_priority = state.top_priority;
    chip.init_step = static_cast<InitStep>(state.init_step);
    chip.expect_icw4 = state.expect_icw4;
    chip.single = state.single;
    chip.read_isr = state.read_isr;
    chip.poll = state.poll;
    chip.special_mask = state.special_mask;
    chip.auto_eoi = state.auto_eoi;
    chip.rotate_on_auto_eoi = state.rotate_on_auto_eoi;
    chip.special_fully_nested = state.special_fully_nested;
    return chip;
}

Result<ByteVector> Pic::save() const {
    InterruptGuard guard(m_lock);
    return encode_fields(PicState{{m_master.saved(), m_slave.saved()}});
}

Result<void> Pic::restore(Bytes bytes) {
    PicState state;
    TRY(decode_fields(bytes, state));
    Chip master = TRY(loaded(state.chips[0], k_elcr_mask_master));
    Chip slave = TRY(loaded(state.chips[1], k_elcr_mask_slave));
    InterruptGuard guard(m_lock);
    m_master = master;
    m_slave = slave;
    update(guard);
    return {};
}

} // namespace coffer::devices
