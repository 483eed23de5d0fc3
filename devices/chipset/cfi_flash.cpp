#include "devices/chipset/cfi_flash.hpp"

#include <algorithm>
#include <utility>

#include "base/tagged.hpp"
#include "devices/chipset/cfi_flash_state.hpp"

namespace coffer::devices {

using namespace cfi;

CfiFlash::CfiFlash(std::string_view name, MutBytes content, size_t block_size, FlashAccess access, Callbacks callbacks)
    : m_name(name), m_content(content), m_block_size(block_size), m_access(access), m_callbacks(std::move(callbacks)) {
    COFFER_ASSERT(is_power_of_two(block_size) && !content.empty() && content.size() % block_size == 0);
}

void CfiFlash::set_mode(Mode mode) {
    bool was_array = array_mode();
    m_mode = mode;
    if (array_mode() != was_array && m_callbacks.on_mode) m_callbacks.on_mode(array_mode());
}

IoStatus CfiFlash::mmio_read(uint64_t offset, MutBytes to) {
    if (to.empty() || to.size() > 8) return IoStatus::BadSize;
    if (offset > m_content.size() || to.size() > m_content.size() - offset) return IoStatus::NoSuchRegister;
    switch (m_mode) {
    case Mode::Array: std::ranges::copy(m_content.subspan(offset, to.size()), to.begin()); break;
    case Mode::Status: std::ranges::fill(to, static_cast<std::byte>(m_status)); break;
    case Mode::Id:
        store_le_sized(to, offset % m_block_size == 0 ? k_manufacturer : offset % m_block_size == 1 ? k_device : 0);
        break;
    }
    return IoStatus::Ok;
}

void CfiFlash::command(uint8_t value) {
    switch (value) {
    case PROGRAM:
    case PROGRAM_ALT:
        m_pending = Pending::Program;
        set_mode(Mode::Status);
        break;
    case ERASE:
        m_pending = Pending::Erase;
        set_mode(Mode::Status);
        break;
    case CLEAR_STATUS:
        // Without the ready bit: OVMF's driver tells flash from RAM and ROM by reading 0 after this and READ_STATUS.
        m_status = 0;
        break;
    case READ_STATUS: set_mode(Mode::Status); break;
    case READ_ID: set_mode(Mode::Id); break;
    case READ_ARRAY: set_mode(Mode::Array); break;
    default: set_mode(Mode::Array); break; // unknown commands leave the part readable
    }
}

void CfiFlash::program(uint64_t offset, Bytes from) {
    m_pending = Pending::None;
    m_status |= k_status_ready;
    if (m_access == FlashAccess::ReadOnly) {
        m_status |= k_status_program_error | k_status_locked;
        return;
    }
    std::ranges::copy(from, m_content.begin() + static_cast<std::ptrdiff_t>(offset));
    if (m_callbacks.on_change) m_callbacks.on_change(offset, from.size());
}

void CfiFlash::erase(uint64_t offset, uint8_t confirm) {
    m_pending = Pending::None;
    m_status |= k_status_ready;
    if (confirm != CONFIRM) {
        m_status |= k_status_erase_error | k_status_program_error; // command sequence error
        return;
    }
    if (m_access == FlashAccess::ReadOnly) {
        m_status |= k_status_erase_error | k_status_locked;
        return;
    }
    uint64_t block = align_down(offset, m_block_size);
    std::ranges::fill(m_content.subspan(block, m_block_size), static_cast<std::byte>(k_erased));
    if (m_callbacks.on_change) m_callbacks.on_change(block, m_block_size);
}

IoStatus CfiFlash::mmio_write(uint64_t offset, Bytes from) {
    if (from.size() != 1 && from.size() != 2 && from.size() != 4 && from.size() != 8) return IoStatus::BadSize;
    if (offset > m_content.size() || from.size() > m_content.size() - offset) return IoStatus::NoSuchRegister;
    auto low = static_cast<uint8_t>(from[0]);
    switch (m_pending) {
    case Pending::None: command(low); break;
    case Pending::Program: program(offset, from); break;
    case Pending::Erase: erase(offset, low); break;
    }
    return IoStatus::Ok;
}

void CfiFlash::reset(ResetKind) noexcept {
    m_pending = Pending::None;
    m_status = k_status_ready;
    set_mode(Mode::Array);
}

Result<ByteVector> CfiFlash::save() const {
    CfiFlashState state;
    state.mode = static_cast<uint8_t>(m_mode);
    state.pending = static_cast<uint8_t>(m_pending);
    state.status = m_status;
    return encode_fields(state);
}

Result<void> CfiFlash::restore(Bytes bytes) {
    CfiFlashState state;
    TRY(decode_fields(bytes, state));
    if (state.mode > static_cast<uint8_t>(Mode::Id) || state.pending > static_cast<uint8_t>(Pending::Erase) ||
        (state.pending != 0 && state.mode != static_cast<uint8_t>(Mode::Status)))
        return make_error(ErrorCode::Corrupt, "saved state of {} is out of range", m_name);
    m_pending = static_cast<Pending>(state.pending);
    m_status = state.status;
    set_mode(static_cast<Mode>(state.mode));
    return {};
}

} // namespace coffer::devices
