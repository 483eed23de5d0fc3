#include "devices/tpm/tis.hpp"

#include <algorithm>
#include <bit>

#include "base/tagged.hpp"
#include "devices/tpm/tis_state.hpp"
#include "devices/tpm/tpm_command.hpp"

namespace coffer::devices {

using tis::Phase;
using tis::Register;

namespace {

constexpr Nanoseconds k_go_wait = 500 * k_ns_per_us;
constexpr Nanoseconds k_save_wait = 30 * k_ns_per_s;
constexpr unsigned k_hardware_locality = 4;

bool is_register_size(size_t size) noexcept {
    return size == 1 || size == 2 || size == 4 || size == 8;
}

bool is_fifo(uint64_t offset) noexcept {
    constexpr auto data = static_cast<uint64_t>(Register::DATA_FIFO);
    constexpr auto xdata = static_cast<uint64_t>(Register::XDATA_FIFO);
    return (offset >= data && offset < data + tis::k_data_fifo_size) ||
           (offset >= xdata && offset < xdata + tis::k_xdata_fifo_size);
}

} // namespace

Result<std::unique_ptr<TpmTis>> TpmTis::create(TpmBackend& backend, Scheduler& scheduler, IrqLine irq,
                                               tis::Generation generation) {
    TRY(backend.limit_buffer_size(tis::k_buffer_size));
    return std::unique_ptr<TpmTis>(new TpmTis(backend, scheduler, irq, generation));
}

TpmTis::TpmTis(TpmBackend& backend, Scheduler& scheduler, IrqLine irq, tis::Generation generation)
    : m_backend(backend), m_irq(irq),
      m_interface_id(generation == tis::Generation::Ptp ? tis::k_interface_id : tis::k_no_interface_id),
      m_thread(backend, scheduler, tis::k_buffer_size, [this] { collect(); }) {
    m_fifo.reserve(tis::k_buffer_size);
}

void TpmTis::reset(ResetKind) noexcept {
    m_thread.power_cycle();
    m_active.reset();
    m_localities.fill({});
    m_phase = Phase::Idle;
    m_fifo.clear();
    m_read_offset = 0;
    m_wait.store(false, std::memory_order_relaxed);
    update_line();
}

// --- Commands

void TpmTis::abort_command() noexcept {
    if (m_phase == Phase::Executing) m_thread.abandon();
    m_phase = Phase::Idle;
    m_fifo.clear();
    m_read_offset = 0;
}

void TpmTis::make_ready() {
    if (m_phase == Phase::Ready) return;
    abort_command();
    m_phase = Phase::Ready;
    raise(tis::k_int_command_ready);
}

bool TpmTis::expects_more() const noexcept {
    if (m_fifo.size() >= tis::k_buffer_size) return false;
    constexpr size_t k_size_known = k_tpm_size_offset + sizeof(uint32_t);
    return m_fifo.size() < k_size_known || m_fifo.size() < load_be<uint32_t>(m_fifo, k_tpm_size_offset);
}

void TpmTis::push(std::byte value) {
    if (m_phase == Phase::Ready) {
        m_phase = Phase::Reception;
        m_fifo.clear();
    }
    if (m_phase == Phase::Reception && expects_more()) m_fifo.push_back(value);
}

std::byte TpmTis::pop() noexcept {
    if (m_phase != Phase::Completed || m_read_offset >= m_fifo.size()) return std::byte{0xFF};
    return m_fifo[m_read_offset++];
}

void TpmTis::start() {
    if (m_phase != Phase::Reception || expects_more()) return;
    m_phase = Phase::Executing;
    m_thread.submit(static_cast<Locality>(*m_active), m_fifo);
    m_wait.store(true, std::memory_order_relaxed);
}

void TpmTis::collect() {
    if (m_phase != Phase::Executing || !m_thread.done()) return;
    auto response = m_thread.response();
    m_fifo.assign(response.begin(), response.end());
    m_read_offset = 0;
    m_phase = Phase::Completed;
    raise(tis::k_int_data_avail | tis::k_int_sts_valid);
}

void TpmTis::wait_after_write() noexcept {
    if (m_wait.load(std::memory_order_relaxed) && m_wait.exchange(false, std::memory_order_relaxed))
        m_thread.wait_done(k_go_wait);
}

// --- Localities

void TpmTis::activate(unsigned locality) {
    abort_command();
    m_active = locality;
    m_localities[locality].requested = false;
}

void TpmTis::relinquish() {
    abort_command();
    m_active.reset();
    // The highest one that asks is next, and is told.
    for (unsigned next = k_locality_count; next-- > 0;) {
        if (!m_localities[next].requested) continue;
        activate(next);
        raise(tis::k_int_locality_change);
        break;
    }
    update_line();
}

void TpmTis::write_access(unsigned locality, uint8_t value) {
    if (!std::has_single_bit(value)) return; // undefined by the specification
    auto& block = m_localities[locality];
    switch (value) {
    case tis::k_access_request_use:
        if (!m_active)
            activate(locality);
        else if (!is_active(locality))
            block.requested = true;
        break;
    case tis::k_access_active:
        if (is_active(locality))
            relinquish();
        else
            block.requested = false;
        break;
    case tis::k_access_been_seized: block.seized = false; break;
    case tis::k_access_seize:
        if (m_active && *m_active >= locality) break;
        if (m_active) m_localities[*m_active].seized = true;
        activate(locality);
        raise(tis::k_int_locality_change);
        break;
    default: break;
    }
}

uint8_t TpmTis::read_access(unsigned locality) const noexcept {
    auto const& block = m_localities[locality];
    unsigned value = tis::k_access_valid;
    if (!m_backend.established()) value |= tis::k_access_not_established;
    if (is_active(locality)) value |= tis::k_access_active;
    if (block.requested) value |= tis::k_access_request_use;
    if (block.seized) value |= tis::k_access_been_seized;
    for (unsigned other = 0; other < k_locality_count; ++other)
        if (other != locality && m_localities[other].requested) value |= tis::k_access_pending;
    return static_cast<uint8_t>(value);
}

// --- Interrupts

void TpmTis::raise(uint32_t interrupts) {
    if (m_active) {
        auto& block = m_localities[*m_active];
        block.int_status |= interrupts & block.int_enable;
    }
    update_line();
}

void TpmTis::update_line() {
    bool line = false;
    for (auto const& block : m_localities)
        line |= (block.int_enable & tis::k_int_global) && (block.int_enable & block.int_status & tis::k_int_all);
    if (line != m_line) m_irq.set(line);
    m_line = line;
}

// --- Registers

void TpmTis::write_status(unsigned locality, uint32_t value) {
    if (value & tis::k_sts_command_cancel) {
        if (m_phase == Phase::Executing) m_thread.cancel();
        return;
    }
    if (value & tis::k_sts_reset_established) {
        if (locality >= 3) m_thread.reset_established(static_cast<Locality>(locality));
        return;
    }
    switch (value & (tis::k_sts_command_ready | tis::k_sts_go | tis::k_sts_response_retry)) {
    case tis::k_sts_command_ready: make_ready(); break;
    case tis::k_sts_go: start(); break;
    case tis::k_sts_response_retry:
        if (m_phase == Phase::Completed) m_read_offset = 0;
        break;
    default: break; // more than one is undefined by the specification
    }
}

uint32_t TpmTis::read_status(unsigned locality) const noexcept {
    if (!is_active(locality)) return UINT32_MAX;
    uint32_t value = tis::k_sts_valid | tis::k_sts_self_test_done | tis::k_sts_family_2;
    size_t burst = 0;
    switch (m_phase) {
    case Phase::Idle:
    case Phase::Executing: break;
    case Phase::Ready:
        value |= tis::k_sts_command_ready;
        burst = tis::k_buffer_size;
        break;
    case Phase::Reception:
        if (expects_more()) value |= tis::k_sts_expect;
        burst = tis::k_buffer_size - m_fifo.size();
        break;
    case Phase::Completed:
        burst = m_fifo.size() - m_read_offset;
        if (burst > 0) value |= tis::k_sts_data_avail;
        break;
    }
    return value | static_cast<uint32_t>(burst) << tis::k_sts_burst_shift;
}

std::byte TpmTis::read_byte(unsigned locality, uint64_t offset) {
    if (is_fifo(offset)) return is_active(locality) ? pop() : std::byte{0xFF};
    auto const& block = m_localities[locality];
    uint32_t value = 0;
    switch (static_cast<Register>(offset & ~uint64_t{3})) {
    case Register::ACCESS: value = read_access(locality); break;
    case Register::INT_ENABLE: value = block.int_enable; break;
    case Register::INT_VECTOR: value = block.int_vector; break;
    case Register::INT_STATUS: value = block.int_status; break;
    case Register::INTF_CAPABILITY: value = tis::k_capability; break;
    case Register::STS: value = read_status(locality); break;
    case Register::INTERFACE_ID: value = m_interface_id; break;
    case Register::DID_VID: value = tis::k_device_vendor; break;
    case Register::RID: value = tis::k_revision; break;
    case Register::DATA_FIFO:
    case Register::XDATA_FIFO: break; // above
    }
    return static_cast<std::byte>(value >> (8 * (offset & 3)));
}

void TpmTis::write_register(unsigned locality, uint64_t offset, uint32_t value, uint32_t mask) {
    if (locality == k_hardware_locality) return;
    if (static_cast<Register>(offset) == Register::ACCESS) {
        write_access(locality, static_cast<uint8_t>(value));
        return;
    }
    if (!is_active(locality)) return;
    auto& block = m_localities[locality];
    switch (static_cast<Register>(offset)) {
    case Register::INT_ENABLE: {
        // The polarity is fixed to the one that INTF_CAPABILITY offers.
        uint32_t writable = mask & (tis::k_int_global | tis::k_int_all);
        block.int_enable = (block.int_enable & ~writable) | (value & writable);
        update_line();
        break;
    }
    case Register::INT_VECTOR:
        if (mask & 0xFF) block.int_vector = value & tis::k_int_vector_mask;
        break;
    case Register::INT_STATUS:
        block.int_status &= ~value;
        update_line();
        break;
    case Register::STS: write_status(locality, value); break;
    default: break; // read-only or reserved
    }
}

IoStatus TpmTis::mmio_read(uint64_t offset, MutBytes to) {
    if (!is_register_size(to.size()) || offset > tis::k_window_size || to.size() > tis::k_window_size - offset) {
        fill_all_ones(to);
        return is_register_size(to.size()) ? IoStatus::NoSuchRegister : IoStatus::BadSize;
    }
    collect();
    for (size_t index = 0; index < to.size(); ++index) {
        uint64_t at = offset + index;
        to[index] = read_byte(static_cast<unsigned>(at / tis::k_block_size), at % tis::k_block_size);
    }
    return IoStatus::Ok;
}

IoStatus TpmTis::mmio_write(uint64_t offset, Bytes from) {
    if (!is_register_size(from.size())) return IoStatus::BadSize;
    if (offset > tis::k_window_size || from.size() > tis::k_window_size - offset) return IoStatus::NoSuchRegister;
    collect();
    for (size_t index = 0; index < from.size();) {
        uint64_t at = (offset + index) % tis::k_block_size;
        auto locality = static_cast<unsigned>((offset + index) / tis::k_block_size);
        if (is_fifo(at)) {
            if (is_active(locality)) push(from[index]);
            ++index;
            continue;
        }
        // The bytes of one register together; those not written are no requests.
        uint32_t value = 0;
        uint32_t mask = 0;
        for (uint64_t lane = at & 3; lane < 4 && index < from.size(); ++lane, ++index) {
            value |= std::to_integer<uint32_t>(from[index]) << (8 * lane);
            mask |= uint32_t{0xFF} << (8 * lane);
        }
        write_register(locality, at & ~uint64_t{3}, value, mask);
    }
    return IoStatus::Ok;
}

// --- Saved state

Result<ByteVector> TpmTis::save() const {
    TRY(m_thread.drain(k_save_wait));
    TpmTisState state;
    if (m_active) state.active = static_cast<uint8_t>(*m_active);
    for (size_t i = 0; i < m_localities.size(); ++i) {
        auto const& from = m_localities[i];
        state.localities[i] = {from.requested, from.seized, from.int_enable, from.int_status, from.int_vector};
    }
    state.phase = m_phase;
    state.fifo = m_fifo;
    state.read_offset = static_cast<uint32_t>(m_read_offset);
    if (m_phase == Phase::Executing) {
        // As collect() will find it; a running command that drained is done.
        auto response = m_thread.response();
        state.fifo.assign(response.begin(), response.end());
        state.phase = Phase::Completed;
        auto& active = state.localities[*m_active];
        active.int_status |= active.int_enable & (tis::k_int_data_avail | tis::k_int_sts_valid);
    }
    return encode_fields(std::move(state));
}

Result<void> TpmTis::restore(Bytes bytes) {
    TpmTisState state;
    TRY(decode_fields(bytes, state));
    bool has_active = state.active != TpmTisState::k_no_locality;
    bool valid = !has_active || state.active < k_hardware_locality;
    switch (state.phase) {
    case Phase::Idle:
    case Phase::Ready: valid &= state.fifo.empty() && state.read_offset == 0; break;
    case Phase::Reception: valid &= state.read_offset == 0; break;
    case Phase::Completed: valid &= state.read_offset <= state.fifo.size(); break;
    default: valid = false;
    }
    valid &= !state.localities[k_hardware_locality].requested;
    valid &= state.fifo.size() <= tis::k_buffer_size && (has_active || state.phase == Phase::Idle);
    for (auto const& block : state.localities) {
        valid &= (block.int_enable & ~(tis::k_int_global | tis::k_int_all)) == tis::k_int_low_level;
        valid &= (block.int_status & ~tis::k_int_all) == 0 && (block.int_vector & ~tis::k_int_vector_mask) == 0;
    }
    if (!valid) return Error(ErrorCode::Corrupt, "saved state of the TPM's registers is malformed");

    if (m_phase == Phase::Executing) m_thread.abandon();
    m_active.reset();
    if (has_active) m_active = state.active;
    for (size_t i = 0; i < m_localities.size(); ++i) {
        auto const& from = state.localities[i];
        m_localities[i] = {from.requested, from.seized, from.int_enable, from.int_status, from.int_vector};
    }
    m_phase = state.phase;
    m_fifo = std::move(state.fifo);
    m_fifo.reserve(tis::k_buffer_size);
    m_read_offset = state.read_offset;
    update_line();
    return {};
}

} // namespace coffer::devices
