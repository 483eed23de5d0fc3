#include "devices/chipset/cpu_hotplug.hpp"

#include "base/tagged.hpp"

namespace coffer::devices {

namespace {

// Offset                access     width
enum Register : uint16_t {
    DATA_HIGH_SELECTOR = 0, // RO data, WO selector  32
    STATUS_CONTROL = 4,     // RO status, WO control  8
    COMMAND = 5,            // WO                     8
    COMMAND_DATA = 8,       // RW                    32
};
enum Command : uint8_t { GET_PENDING = 0, GET_CPU_ID = 3 };
constexpr uint8_t k_status_enabled = 0x01;

struct CpuHotplugState {
    uint32_t selected = 0;
    uint8_t command = 0;
    template <class V>
    void fields(V& v) {
        v.required(1, selected);
        v.required(2, command);
    }
};

} // namespace

IoStatus CpuHotplug::pio_read(uint16_t offset, MutBytes to) {
    if (to.size() != 1 && to.size() != 2 && to.size() != 4) return IoStatus::BadSize;
    bool valid = m_selected < m_cpus;
    uint32_t value = 0;
    switch (offset) {
    case DATA_HIGH_SELECTOR: break; // the upper half of an ID is 0, and so is all else that is read here
    case STATUS_CONTROL: value = valid ? k_status_enabled : 0; break;
    case COMMAND_DATA:
        // The selected CPU's number (with no event pending) or its APIC ID: the same here; 0 where there is none.
        if (valid && (m_command == GET_PENDING || m_command == GET_CPU_ID)) value = m_selected;
        break;
    default: break;
    }
    store_le_sized(to, value);
    return IoStatus::Ok;
}

IoStatus CpuHotplug::pio_write(uint16_t offset, Bytes from) {
    switch (offset) {
    case DATA_HIGH_SELECTOR:
        if (from.size() != 4) return IoStatus::BadSize;
        m_selected = load_le<uint32_t>(from);
        return IoStatus::Ok;
    case COMMAND:
        if (from.size() != 1) return IoStatus::BadSize;
        m_command = static_cast<uint8_t>(from[0]);
        return IoStatus::Ok;
    case STATUS_CONTROL:
    case COMMAND_DATA: return IoStatus::Ok;
    default: return IoStatus::NoSuchRegister;
    }
}

void CpuHotplug::reset(ResetKind) noexcept {
    m_selected = 0;
    m_command = 0;
}

Result<ByteVector> CpuHotplug::save() const {
    return encode_fields(CpuHotplugState{m_selected, m_command});
}

Result<void> CpuHotplug::restore(Bytes bytes) {
    CpuHotplugState state;
    TRY(decode_fields(bytes, state));
    m_selected = state.selected;
    m_command = state.command;
    return {};
}

} // namespace coffer::devices
