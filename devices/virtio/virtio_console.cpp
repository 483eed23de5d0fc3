#include "devices/virtio/virtio_console.hpp"

#include <algorithm>
#include <array>

#include "base/log.hpp"
#include "base/tagged.hpp"

namespace coffer::devices {

using namespace virtio;

namespace {

constexpr uint32_t k_pci_class = 0x07'8000; // other communication controller
constexpr uint32_t k_ports = 2;
constexpr uint32_t k_named_port = 1;
// Queues (5.3.2): port 0, control, port 1; each to the guest, then from it.
enum Queue : unsigned { PORT0_IN, PORT0_OUT, CONTROL_IN, CONTROL_OUT, PORT1_IN, PORT1_OUT, QUEUES };
constexpr uint16_t k_data_entries = 128;
constexpr uint16_t k_control_entries = 32;
// The longest request that is taken; Linux's are of 32 KiB at most. Bounds the time under the device lock.
constexpr uint64_t k_max_request = 1 << 20;
constexpr size_t k_piece = 4096;
// More unanswered control messages than a driver ever has outstanding.
constexpr size_t k_max_control = 64;
constexpr size_t k_max_control_bytes = 128;

} // namespace

VirtioConsole::VirtioConsole(Config config, GuestMemory& memory, Scheduler& scheduler)
    : VirtioPci({.type = DeviceType::Console,
                 .pci_class = k_pci_class,
                 .features = F_CONSOLE_MULTIPORT,
                 .config_bytes = k_console_config_bytes},
                {k_data_entries, k_data_entries, k_control_entries, k_control_entries, k_data_entries, k_data_entries},
                memory, scheduler),
      m_settings(std::move(config)) {
    COFFER_ASSERT(m_settings.port_name.size() <= 64);
}

void VirtioConsole::read_device_config(uint64_t offset, MutBytes to) const {
    std::array<std::byte, k_console_config_bytes> config{};
    store_le<uint32_t>(config, k_console_max_ports_offset, k_ports);
    std::copy_n(config.begin() + static_cast<std::ptrdiff_t>(offset), to.size(), to.begin());
}

void VirtioConsole::driver_reset() noexcept {
    m_device_ready = m_port_ready = false;
    m_control.clear();
    set_guest_open(false);
}

void VirtioConsole::set_guest_open(bool open) noexcept {
    if (open == m_guest_open) return;
    m_guest_open = open;
    if (m_settings.on_guest_open) m_settings.on_guest_open(open);
}

void VirtioConsole::queue_notified(unsigned index) {
    switch (index) {
    case CONTROL_IN: flush_control(); break;
    case CONTROL_OUT: receive_control(); break;
    case PORT0_OUT: receive_data(PORT0_OUT, false); break;
    case PORT1_OUT: receive_data(PORT1_OUT, true); break;
    case PORT1_IN:
        if (m_guest_open && m_settings.on_writable) m_settings.on_writable();
        break;
    default: break; // PORT0_IN: buffers for a port that is not announced stay unused
    }
}

void VirtioConsole::receive_data(unsigned index, bool keep) {
    VirtQueue::Chain chain;
    std::array<std::byte, k_piece> buffer;
    unsigned taken = 0;
    while (taken < k_data_entries && take(index, chain)) {
        ++taken;
        if (!chain.writable.empty() || chain.readable_bytes() > k_max_request) {
            needs_reset("an impossible output buffer");
            return;
        }
        for (auto const& piece : chain.readable) {
            for (uint32_t done = 0; done < piece.length && keep;) {
                auto size = static_cast<uint32_t>(std::min<size_t>(piece.length - done, buffer.size()));
                VirtQueue::Chain part;
                auto address = piece.address.checked_add(done);
                if (address) part.readable.push_back({*address, size});
                if (!address || !queue(index).read(part, MutBytes(buffer).first(size))) {
                    needs_reset("an output buffer that is not in RAM");
                    return;
                }
                m_settings.sink.write(Bytes(buffer).first(size));
                done += size;
            }
        }
        finish(index, chain, 0);
    }
    if (taken == k_data_entries) notify_later(index);
}

size_t VirtioConsole::send(Bytes bytes) {
    size_t done = 0;
    VirtQueue::Chain chain;
    while (done < bytes.size() && m_guest_open && take(PORT1_IN, chain)) {
        if (!chain.readable.empty() || chain.writable_bytes() == 0) {
            needs_reset("an impossible input buffer");
            break;
        }
        auto written = queue(PORT1_IN).write(chain, bytes.subspan(done, std::min(bytes.size() - done, k_piece)));
        if (!written) {
            needs_reset("an input buffer that is not in RAM");
            break;
        }
        done += *written;
        finish(PORT1_IN, chain, static_cast<uint32_t>(*written));
    }
    return done;
}

void VirtioConsole::receive_control() {
    VirtQueue::Chain chain;
    unsigned taken = 0;
    while (taken < k_control_entries && take(CONTROL_OUT, chain)) {
        ++taken;
        ConsoleControl message{};
        auto size = queue(CONTROL_OUT).read(chain, std::as_writable_bytes(std::span(&message, 1)));
        finish(CONTROL_OUT, chain, 0);
        if (size && *size == sizeof message) handle_control(message);
    }
    if (taken == k_control_entries) notify_later(CONTROL_OUT);
    flush_control();
}

// 5.3.6.2. The order of a Linux driver: DEVICE_READY; our DEVICE_ADD; PORT_READY; our PORT_NAME and PORT_OPEN; then
// PORT_OPEN whenever a program opens or closes the port.
void VirtioConsole::handle_control(ConsoleControl const& message) {
    if (message.event == CONSOLE_DEVICE_READY) {
        if (message.value != 1 || m_device_ready) return;
        m_device_ready = true;
        queue_control(CONSOLE_DEVICE_ADD, 1);
        return;
    }
    if (message.id != k_named_port || !m_device_ready) return;
    if (message.event == CONSOLE_PORT_READY && message.value == 1 && !m_port_ready) {
        m_port_ready = true;
        queue_control(CONSOLE_PORT_NAME, 1, m_settings.port_name);
        queue_control(CONSOLE_PORT_OPEN, 1);
    } else if (message.event == CONSOLE_PORT_OPEN && m_port_ready) {
        set_guest_open(message.value != 0);
    }
}

void VirtioConsole::queue_control(uint16_t event, uint16_t value, std::string_view text) {
    static log::RateLimit limit;
    if (m_control.size() >= k_max_control) {
        if (limit.allow()) log::warning("{}: the guest takes no control messages", m_settings.unit);
        return;
    }
    ByteVector message;
    append(message, object_bytes(ConsoleControl{k_named_port, event, value}));
    append(message, as_bytes(text));
    m_control.push_back(std::move(message));
}

void VirtioConsole::flush_control() {
    VirtQueue::Chain chain;
    while (!m_control.empty() && take(CONTROL_IN, chain)) {
        auto written = queue(CONTROL_IN).write(chain, m_control.front());
        if (!written || *written < m_control.front().size()) {
            needs_reset("a control buffer that is too small or not in RAM");
            return;
        }
        m_control.pop_front();
        finish(CONTROL_IN, chain, static_cast<uint32_t>(*written));
    }
}

Result<ByteVector> VirtioConsole::save() const {
    VirtioConsoleState state;
    state.virtio = save_virtio();
    state.device_ready = m_device_ready;
    state.port_ready = m_port_ready;
    state.guest_open = m_guest_open;
    state.control.assign(m_control.begin(), m_control.end());
    return encode_fields(state);
}

Result<void> VirtioConsole::restore(Bytes bytes) {
    VirtioConsoleState state;
    TRY(decode_fields(bytes, state));
    TRY(check_virtio(state.virtio));
    bool control_fits = state.control.size() <= k_max_control;
    for (auto const& message : state.control)
        control_fits =
            control_fits && message.size() >= sizeof(ConsoleControl) && message.size() <= k_max_control_bytes;
    if (!control_fits || (state.guest_open && !state.port_ready) || (state.port_ready && !state.device_ready))
        return make_error(ErrorCode::Corrupt, "{}: saved state has an impossible port", m_settings.unit);
    m_device_ready = state.device_ready;
    m_port_ready = state.port_ready;
    m_control.assign(state.control.begin(), state.control.end());
    restore_virtio(state.virtio);
    set_guest_open(state.guest_open);
    return {};
}

} // namespace coffer::devices
