// What the user types, on its way to the guest's serial port.
#pragma once

#include "vmm/machine/console.hpp"
#include "vmm/machine/io_loop.hpp"
#include "vmm/machine/platform.hpp"

namespace coffer::vmm {

// Reads `fd` (a terminal, pipe or socket; anything else gives no input) while the port has room. All under the device
// lock, but for construction.
class SerialInput {
public:
    // `quit` is called when the user asks for it by Ctrl-A x; keys are taken apart on a terminal alone.
    SerialInput(IoLoop& loop, Platform& platform, int fd, bool is_terminal, std::function<void()> quit);
    ~SerialInput();
    SerialInput(SerialInput const&) = delete;
    SerialInput& operator=(SerialInput const&) = delete;

    void start();
    // The port has room again.
    void on_room();

private:
    void on_readable();
    void deliver();

    IoLoop& m_loop;
    Platform& m_platform;
    int m_fd;
    bool m_is_terminal;
    ConsoleKeys m_keys;
    ByteVector m_waiting; // read, and not yet taken by the port
    bool m_watching = false;
    bool m_ended = false;
};

} // namespace coffer::vmm
