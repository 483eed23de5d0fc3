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

// Within the block, or within the buffer in its own page.
bool is_inside(uint64_t offset, size_t size) noexcept {
    uint64_t const end = offset < crb::k_buffer_page ? crb::k_block_size : crb::k_buffer_page + crb::k_buffer_size;
    return offset <= end && size <= end - offset;
}

bool is_buffer(uint64_t offset) noexcept {
    return offset >= crb::k_buffer_offset;
}

size_t buffer_index(uint64_t offset) noexcept {
    return offset - (offset < crb::k_buffer_page ? crb::k_buffer_offset : crb::k_buffer_page);
}

// What a driver means to send: the header says how much of the buffer. A header that lies is the TPM's to refuse.
size_t command_size(Bytes buffer) {
    size_t claimed = load_be<uint32_t>(buffer, k_tpm_size_offset);
    return std::clamp(claimed, k_tpm_header_size, buffer.size());
}

} // namespace

Result<std::unique_ptr<TpmCrb>> TpmCrb::create(TpmBackend& backend, Scheduler& scheduler, GuestPhysAddr address,
                                               std::optional<CrbPages> pages) {
    TRY(backend.limit_buffer_size(crb::k_buffer_size));
    if (pages) COFFER_ASSERT(pages->registers.size() == crb::k_block_size && pages->buffer.size() == crb::k_block_size);
    return std::unique_ptr<TpmCrb>(new TpmCrb(backend, scheduler, address, pages));
}

TpmCrb::TpmCrb(TpmBackend& backend, Scheduler& scheduler, GuestPhysAddr address, std::optional<CrbPages> pages)
    : m_backend(backend), m_pages(pages), m_buffer_address(address.value() + crb::k_buffer_page),
      m_buffer(pages ? pages->buffer.first(crb::k_buffer_size) : MutBytes(m_own_buffer)),
      m_thread(backend, scheduler, crb::k_buffer_size, {}, [this](Bytes response) {
          if (m_pages) show_response(response);
      }) {}

// --- What the guest reads by itself

void TpmCrb::show_register(Register name, uint32_t value) noexcept {
    auto* at = m_pages->registers.data() + static_cast<size_t>(name);
    // SAFETY: registers are aligned, and the page is shared with vCPUs, which see each one whole.
    std::atomic_ref(*reinterpret_cast<uint32_t*>(at)).store(value, std::memory_order_release);
}

// While a command runs, the TPM's thread has the last word on CTRL_START and CTRL_CANCEL (show_response()).
void TpmCrb::show() noexcept {
    if (!m_pages) return;
    for (auto name :
         {Register::LOC_STATE, Register::LOC_STS, Register::INTF_ID, Register::INTF_ID_HIGH, Register::CTRL_STS,
          Register::CTRL_CANCEL, Register::CTRL_START, Register::CTRL_CMD_SIZE, Register::CTRL_CMD_LADDR,
          Register::CTRL_CMD_HADDR, Register::CTRL_RSP_SIZE, Register::CTRL_RSP_LADDR, Register::CTRL_RSP_HADDR}) {
        bool const of_the_command = name == Register::CTRL_START || name == Register::CTRL_CANCEL;
        if (!of_the_command || m_phase != Phase::Executing)
            show_register(name, read_register(static_cast<uint64_t>(name)));
    }
}

// On the TPM's thread, for a command that nobody has abandoned, and before it is done.
void TpmCrb::show_response(Bytes response) noexcept {
    fill_buffer(0, response);
    show_register(Register::CTRL_CANCEL, 0);
    show_register(Register::CTRL_START, 0);
}

void TpmCrb::fill_buffer(size_t at, Bytes content) noexcept {
    std::memcpy(m_buffer.data() + at, content.data(), content.size());
    if (m_pages) std::memcpy(m_pages->registers.data() + crb::k_buffer_offset + at, content.data(), content.size());
}

// --- The state machine

void TpmCrb::reset(ResetKind) noexcept {
    m_thread.power_cycle();
    m_granted = false;
    m_phase = Phase::Idle;
    m_cancel = false;
    if (m_idle_asked) (void)m_idle_asked();
    fill_buffer(0, ByteVector(crb::k_buffer_size));
    m_wait.store(false, std::memory_order_relaxed);
    show();
}

void TpmCrb::collect() {
    if (m_phase != Phase::Executing || !m_thread.done()) return;
    // With pages it is there already, and what is there now may be the next command.
    if (!m_pages) fill_buffer(0, m_thread.response());
    m_phase = Phase::Completed;
    m_cancel = false;
}

void TpmCrb::start() {
    if (m_phase != Phase::Ready && !(m_pages && m_phase == Phase::Completed)) return;
    m_phase = Phase::Executing;
    m_cancel = false;
    if (m_pages) show_register(Register::CTRL_START, crb::k_start_invoke);
    m_thread.submit(Locality::Zero, Bytes(m_buffer).first(command_size(m_buffer)));
    m_wait.store(true, std::memory_order_relaxed);
}

void TpmCrb::cancel() {
    if (m_pages) show_register(Register::CTRL_CANCEL, crb::k_cancel_invoke);
    m_thread.cancel();
    // The command may have ended before: then what its thread shows has been overwritten.
    if (m_pages && m_thread.done()) show_register(Register::CTRL_CANCEL, 0);
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
        // Taken while a command runs, and gone with it.
        m_cancel = (value & crb::k_cancel_invoke) && m_phase == Phase::Executing;
        if (m_cancel) cancel();
        break;
    case Register::CTRL_START:
        if (value & crb::k_start_invoke) start();
        break;
    default: break; // read-only or reserved
    }
}

void TpmCrb::look() {
    collect();
    if (!m_idle_asked || !m_idle_asked()) return;
    if (m_granted) go_idle();
    show();
}

IoStatus TpmCrb::mmio_read(uint64_t offset, MutBytes to) {
    if (!is_register_size(to.size()) || !is_inside(offset, to.size())) {
        fill_all_ones(to);
        return is_register_size(to.size()) ? IoStatus::NoSuchRegister : IoStatus::BadSize;
    }
    look();
    for (size_t index = 0; index < to.size(); ++index) {
        uint64_t at = offset + index;
        if (is_buffer(at)) {
            // A running command's buffer is nobody's: it shows neither the command nor half a response.
            to[index] = m_phase == Phase::Executing ? std::byte{0xFF} : m_buffer[buffer_index(at)];
        } else {
            to[index] = static_cast<std::byte>(read_register(at & ~uint64_t{3}) >> (8 * (at & 3)));
        }
    }
    return IoStatus::Ok;
}

IoStatus TpmCrb::mmio_write(uint64_t offset, Bytes from) {
    if (!is_register_size(from.size())) return IoStatus::BadSize;
    if (!is_inside(offset, from.size())) return IoStatus::NoSuchRegister;
    look();
    write_block(offset, from);
    show();
    return IoStatus::Ok;
}

void TpmCrb::write_block(uint64_t offset, Bytes from) {
    for (size_t index = 0; index < from.size();) {
        uint64_t at = offset + index;
        if (is_buffer(at)) {
            // The first byte of the next command ends Completed, and the response with it.
            if (m_granted && m_phase == Phase::Completed) m_phase = Phase::Ready;
            if (!m_granted || m_phase != Phase::Ready) return;
            fill_buffer(buffer_index(at), from.subspan(index));
            return;
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
    if (m_idle_asked) (void)m_idle_asked(); // of another run
    fill_buffer(0, state.buffer);
    show();
    return {};
}

} // namespace coffer::devices
