// A virtio console with one named port (VIRTIO 1.2, 5.3, F_MULTIPORT): /dev/virtio-ports/<name> in a Linux guest. Port
// 0, the console proper, is not announced: the guest's console is the serial line.
//
// Thread rule: under the device lock, callbacks included. Callbacks may call send(), but for on_guest_open during
// restore(), when the guest's RAM may not be back.
//
// Not emulated: console size, emergency write, further ports.
#pragma once

#include <deque>
#include <functional>
#include <string>

#include "devices/core/backends.hpp"
#include "devices/virtio/virtio_pci.hpp"

namespace coffer::devices {

class VirtioConsole final : public VirtioPci {
public:
    struct Config {
        std::string unit = "virtio-console.0";
        std::string port_name; // "org.coffer.agent.0"; at most 64 bytes
        // Where the guest's bytes go. They are taken from the guest at once: the sink bounds what it keeps.
        ByteSink& sink;
        // A guest's program opened or closed the port (also: closed, when the driver or the machine was reset).
        std::function<void(bool open)> on_guest_open;
        // There may be room for send() again.
        std::function<void()> on_writable;
    };
    VirtioConsole(Config config, GuestMemory& memory, Scheduler& scheduler);

    std::string_view unit_name() const noexcept override { return m_settings.unit; }
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

    // Bytes to the guest; returns how many were taken, 0 while no program of the guest has the port open or its driver
    // offers no buffers. on_writable tells when to come again.
    size_t send(Bytes bytes);
    bool guest_open() const noexcept { return m_guest_open; }

private:
    void driver_reset() noexcept override;
    void queue_notified(unsigned index) override;
    void read_device_config(uint64_t offset, MutBytes to) const override;

    void receive_control();
    void handle_control(virtio::ConsoleControl const& message);
    void queue_control(uint16_t event, uint16_t value, std::string_view text = {});
    void flush_control();
    void receive_data(unsigned index, bool keep);
    void set_guest_open(bool open) noexcept;

    Config m_settings;
    bool m_device_ready = false;
    bool m_port_ready = false;
    bool m_guest_open = false;
    std::deque<ByteVector> m_control;
};

} // namespace coffer::devices
