#include "devices/chipset/reset_control.hpp"

#include "base/tagged.hpp"

namespace coffer::devices {

namespace {

// RST_CNT.
constexpr uint8_t RST_CPU = 0x04;
constexpr uint8_t k_reset_control_writable = 0x0E; // FULL_RST, RST_CPU, SYS_RST
// Port 0x92.
constexpr uint8_t INIT_NOW = 0x01;
constexpr uint8_t k_system_control_writable = 0x03;
constexpr uint8_t k_keyboard_pulse = 0xF0;

struct OneByteState {
    uint8_t value = 0;
    template <class V>
    void fields(V& v) {
        v.required(1, value);
    }
};

Result<uint8_t> load_byte(Bytes bytes, uint8_t allowed, std::string_view name) {
    OneByteState state;
    TRY(decode_fields(bytes, state));
    if (state.value & ~allowed) return make_error(ErrorCode::Corrupt, "saved state of {} is out of range", name);
    return state.value;
}

} // namespace

IoStatus ResetControl::pio_read(uint16_t, MutBytes to) {
    if (to.size() != 1) return IoStatus::BadSize;
    to[0] = static_cast<std::byte>(m_value);
    return IoStatus::Ok;
}

IoStatus ResetControl::pio_write(uint16_t, Bytes from) {
    if (from.size() != 1) return IoStatus::BadSize;
    auto value = static_cast<uint8_t>(from[0]) & k_reset_control_writable;
    bool rises = value & ~m_value & RST_CPU;
    m_value = static_cast<uint8_t>(value);
    if (rises) m_control.request_reset();
    return IoStatus::Ok;
}

void ResetControl::reset(ResetKind) noexcept {
    m_value = 0;
}
Result<ByteVector> ResetControl::save() const {
    return encode_fields(OneByteState{m_value});
}
Result<void> ResetControl::restore(Bytes state) {
    m_value = TRY(load_byte(state, k_reset_control_writable, unit_name()));
    return {};
}

IoStatus SystemControlA::pio_read(uint16_t, MutBytes to) {
    if (to.size() != 1) return IoStatus::BadSize;
    to[0] = static_cast<std::byte>(m_value);
    return IoStatus::Ok;
}

IoStatus SystemControlA::pio_write(uint16_t, Bytes from) {
    if (from.size() != 1) return IoStatus::BadSize;
    auto value = static_cast<uint8_t>(from[0]) & k_system_control_writable;
    bool rises = value & ~m_value & INIT_NOW;
    m_value = static_cast<uint8_t>(value);
    if (rises) m_control.request_reset();
    return IoStatus::Ok;
}

void SystemControlA::reset(ResetKind) noexcept {
    m_value = k_reset_value;
}
Result<ByteVector> SystemControlA::save() const {
    return encode_fields(OneByteState{m_value});
}
Result<void> SystemControlA::restore(Bytes state) {
    m_value = TRY(load_byte(state, k_system_control_writable, unit_name()));
    return {};
}

IoStatus KeyboardReset::pio_read(uint16_t, MutBytes to) {
    fill_all_ones(to);
    return IoStatus::Ok;
}

IoStatus KeyboardReset::pio_write(uint16_t, Bytes from) {
    if (from.size() != 1) return IoStatus::BadSize;
    auto value = static_cast<uint8_t>(from[0]);
    if ((value & k_keyboard_pulse) == k_keyboard_pulse && !(value & 1)) m_control.request_reset();
    return IoStatus::Ok;
}

IoStatus IgnoredPorts::pio_read(uint16_t, MutBytes to) {
    fill_all_ones(to);
    return IoStatus::Ok;
}

IoStatus IgnoredPorts::pio_write(uint16_t, Bytes) {
    return IoStatus::Ok;
}

} // namespace coffer::devices
