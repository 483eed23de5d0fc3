#include "devices/tpm/crb.hpp"

#include <algorithm>
#include <cstring>

#include "base/log.hpp"
#include "base/tagged.hpp"
#include "devices/tpm/crb_state.hpp"
#include "devices/tpm/tpm_command.hpp"

namespace coffer::devices {

using crb::Phase;
using crb::Register;

namespace {

constexpr Nanoseconds k_start_wait = 500 * k_ns_per_us;
constexpr Nanoseconds k_save_wait = 30 * k_ns_per_s;

bool is_register_size(size_t size) noexcept {
    return size == 1 || size == 2 || size == 4 || size == 8;
}

// What a driver means to send: the header says how much of the buffer. A header that lies is the TPM's to refuse.
size_t command_size(Bytes buffer) {
    size_t claimed = load_be<uint32_t>(buffer, k_tpm_size_offset);
    return std::clamp(claimed, k_tpm_header_size, buffer.size());
}

} // namespace

Result<std::unique_ptr<TpmCrb>> TpmCrb::create(TpmBackend& backend, Scheduler& scheduler, GuestPhysAddr address) {
    TRY(backend.limit_buffer_size(crb::k_buffer_size));
    return std::unique_ptr<TpmCrb>(new TpmCrb(backend, scheduler, address));
}

TpmCrb::TpmCrb(TpmBackend& backend, Scheduler& scheduler, GuestPhysAddr address)
    : m_backend(backend), m_buffer_address(address.value() + crb::k_buffer_offset),
      m_thread(backend, scheduler, crb::k_buffer_size) {}

void TpmCrb::reset(ResetKind) noexcept {
    m_thread.power_cycle();
    m_granted = false;
    m_phase = Phase::Idle;
    m_cancel = false;
    m_buffer.fill(std::byte{0});
    m_wait.store(false, std::memory_order_relaxed);
}

void TpmCrb::collect() {
    if (m_phase != Phase::Executing || !m_thread.done()) return;
    auto response = m_thread.response();
    std::copy(response.begin(), response.end(), m_buffer.begin());
    m_phase = Phase::Completed;
    m_cancel = false;
}

void TpmCrb::start() {
    if (m_phase != Phase::Ready) return;
    m_phase = Phase::Executing;
    m_cancel = false;
    m_thread.submit(Locality::Zero, Bytes(m_buffer).first(command_size(m_buffer)));
    m_wait.store(true, std::memory_order_relaxed);
}

void TpmCrb::go_idle() {
    if (m_phase == Phase::Executing) m_thread.abandon();
    m_phase = Phase::Idle;
    m_cancel = false;
}

void TpmCrb::wait_after_write() noexcept {
    if (m_wait.load(std::memory_order_relaxed) && m_wait.exchange(false, std::memory_order_relaxed))
        m_thread.wait_done(k_start_wait);
}

uint32_t TpmCrb::read_register(uint64_t offset) const noexcept {
    switch (static_cast<Register>(offset)) {
    case Register::LOC_STATE:
        return crb::k_state_valid | (m_granted ? crb::k_state_assigned : 0) |
               (m_backend.established() ? 0 : crb::k_state_not_established);
    case Register::LOC_STS: return m_granted ? crb::k_status_granted : 0;
    case Register::INTF_ID: return crb::k_interface_id;
    case Register::INTF_ID_HIGH: return crb::k_vendor_device;
    case Register::CTRL_STS: return m_phase == Phase::Idle ? crb::k_control_idle : 0;
    case Register::CTRL_CANCEL: return m_cancel ? crb::k_cancel_invoke : 0;
    case Register::CTRL_START: return m_phase == Phase::Executing ? crb::k_start_invoke : 0;
    case Register::CTRL_CMD_SIZE:
    case Register::CTRL_RSP_SIZE: return crb::k_buffer_size;
    case Register::CTRL_CMD_LADDR:
    case Register::CTRL_RSP_LADDR: return static_cast<uint32_t>(m_buffer_address.value());
    case Register::CTRL_CMD_HADDR:
    case Register::CTRL_RSP_HADDR: return static_cast<uint32_t>(m_buffer_address.value() >> 32);
    case Register::LOC_CTRL:
    case Register::CTRL_EXT:
    case Register::CTRL_REQ:
    case Register::INT_ENABLE:
    case Register::INT_STS: return 0;
    }
    return 0; // reserved
}

void TpmCrb::write_register(uint64_t offset, uint32_t value) {
    if (static_cast<Register>(offset) == Register::LOC_CTRL) {
        if ((value & crb::k_control_relinquish) && m_granted) {
            if (m_phase == Phase::Executing) go_idle();
            m_granted = false;
        }
        if (value & crb::k_control_request) m_granted = true;
        return;
    }
    if (!m_granted) return;
    switch (static_cast<Register>(offset)) {
    case Register::CTRL_REQ:
        if (value & crb::k_request_idle)
            go_idle();
        else if ((value & crb::k_request_ready) && m_phase != Phase::Executing)
            m_phase = Phase::Ready;
        break;
    case Register::CTRL_CANCEL:
        m_cancel = value & crb::k_cancel_invoke;
        if (m_cancel && m_phase == Phase::Executing) m_thread.cancel();
        break;
    case Register::CTRL_START:
        if (value & crb::k_start_invoke) start();
        break;
    default: break; // read-only or reserved
    }
}

IoStatus TpmCrb::mmio_read(uint64_t offset, MutBytes to) {
    if (!is_register_size(to.size()) || offset > crb::k_block_size || to.size() > crb::k_block_size - offset) {
        fill_all_ones(to);
        return is_register_size(to.size()) ? IoStatus::NoSuchRegister : IoStatus::BadSize;
    }
    collect();
    for (size_t index = 0; index < to.size(); ++index) {
        uint64_t at = offset + index;
        if (at >= crb::k_buffer_offset) {
            // A running command's buffer is nobody's: it shows neither the command nor half a response.
            to[index] = m_phase == Phase::Executing ? std::byte{0xFF} : m_buffer[at - crb::k_buffer_offset];
        } else {
            to[index] = static_cast<std::byte>(read_register(at & ~uint64_t{3}) >> (8 * (at & 3)));
        }
    }
    return IoStatus::Ok;
}

IoStatus TpmCrb::mmio_write(uint64_t offset, Bytes from) {
    if (!is_register_size(from.size())) return IoStatus::BadSize;
    if (offset > crb::k_block_size || from.size() > crb::k_block_size - offset) return IoStatus::NoSuchRegister;
    collect();
    for (size_t index = 0; index < from.size();) {
        uint64_t at = offset + index;
        if (at >= crb::k_buffer_offset) {
            // The first byte of the next command ends Completed, and the response with it.
            if (m_granted && m_phase == Phase::Completed) m_phase = Phase::Ready;
            if (m_granted && m_phase == Phase::Ready)
                std::memcpy(m_buffer.data() + (at - crb::k_buffer_offset), from.data() + index, from.size() - index);
            break;
        }
        // The bytes of one register together; those not written are no requests.
        uint64_t first = at & 3;
        size_t count = std::min<size_t>(4 - first, from.size() - index);
        std::array<std::byte, 4> lanes{};
        std::copy_n(from.begin() + static_cast<ptrdiff_t>(index), count, lanes.begin() + static_cast<ptrdiff_t>(first));
        // A write that misses byte 0 of CTRL_CANCEL says nothing about its one bit.
        if (first == 0 || static_cast<Register>(at - first) != Register::CTRL_CANCEL)
            write_register(at - first, load_le<uint32_t>(lanes));
        index += count;
    }
    return IoStatus::Ok;
}

Result<ByteVector> TpmCrb::save() const {
    TRY(m_thread.drain(k_save_wait));
    TpmCrbState state;
    state.granted = m_granted;
    state.phase = m_phase;
    state.cancel = m_cancel;
    state.buffer.assign(m_buffer.begin(), m_buffer.end());
    if (m_phase == Phase::Executing) {
        // As collect() will find it; a running command that drained is done.
        auto response = m_thread.response();
        std::copy(response.begin(), response.end(), state.buffer.begin());
        state.phase = Phase::Completed;
        state.cancel = false;
    }
    return encode_fields(std::move(state));
}

Result<void> TpmCrb::restore(Bytes bytes) {
    TpmCrbState state;
    TRY(decode_fields(bytes, state));
    bool known = state.phase == Phase::Idle || state.phase == Phase::Ready || state.phase == Phase::Completed;
    if (!known || state.buffer.size() != m_buffer.size())
        return Error(ErrorCode::Corrupt, "saved state of the TPM's registers is malformed");
    if (m_phase == Phase::Executing) m_thread.abandon();
    m_granted = state.granted;
    m_phase = state.phase;
    m_cancel = state.cancel;
    std::copy(state.buffer.begin(), state.buffer.end(), m_buffer.begin());
    return {};
}

} // namespace coffer::devices
