// The host's side of the agent's protocol (docs/formats/agent.md): decodes what the guest sends, which is hostile
// input, and runs one command.
//
// Thread rule: under the device lock, callbacks included. It is the ByteSink of the agent's console port, and is told
// of the port's opening and room by that device's callbacks. Callbacks may call exec() and shutdown().
#pragma once

#include <functional>
#include <string_view>

#include "base/agent_protocol.hpp"
#include "base/bytes.hpp"
#include "base/result.hpp"
#include "devices/core/backends.hpp"

namespace coffer::vmm {

enum class AgentStream : uint8_t { Output, Error };

// Saved in the middle of a conversation. Tags are never reused.
struct AgentChannelState {
    ByteVector in;
    ByteVector out;
    bool open = false;
    bool broken = false;
    bool ready = false;
    bool shutdown_sent = false;
    uint32_t command = 0;
    uint32_t next_command = 1;

    template <class V>
    void fields(V& v) {
        v.required(1, in);
        v.required(2, out);
        v.required(3, open);
        v.required(4, broken);
        v.required(5, ready);
        v.required(6, shutdown_sent);
        v.required(7, command);
        v.required(8, next_command);
    }
};

class AgentChannel final : public devices::ByteSink {
public:
    struct Callbacks {
        // The agent is there and idle. Comes again when it starts anew, in a guest that was reset for one.
        std::function<void(uint16_t version)> on_hello;
        // What the command wrote, at most agent::k_max_payload bytes at a time.
        std::function<void(AgentStream, Bytes)> on_output;
        // The command ended: its exit code, or 128 + the number of the signal that ended it.
        std::function<void(int code)> on_exit;
        // No on_exit will come: the agent could not run the command, it went away, or it broke the protocol (that may
        // be before any command).
        std::function<void(std::string_view what)> on_failure;
    };
    // `send` takes bytes to the guest and returns how many it took (VirtioConsole::send).
    AgentChannel(Callbacks callbacks, std::function<size_t(Bytes)> send);

    // The port in the guest was opened or closed (VirtioConsole's on_guest_open).
    void port_opened(bool open);
    // The port may have room (VirtioConsole's on_writable).
    void pump();
    void write(Bytes from_guest) noexcept override;

    // Whether an agent has said Hello and runs nothing.
    bool idle() const noexcept { return m_ready && m_command == 0; }
    // Errors: Busy where not idle(), InvalidArgument where the command is empty, longer than agent::k_max_command or
    // holds a zero byte.
    Result<void> exec(std::string_view command);
    // Asks the agent to power the guest off; nothing comes back. Busy where no agent has said Hello.
    Result<void> shutdown();

    AgentChannelState save() const;
    // When the port has been restored. Corrupt where no conversation is ever so.
    Result<void> restore(AgentChannelState state);

private:
    void handle(agent::FrameType type, Bytes payload);
    void fail(std::string_view what);
    void break_stream(std::string_view what);
    void put(agent::FrameType type, Bytes head, Bytes tail = {});

    Callbacks m_callbacks;
    std::function<size_t(Bytes)> m_send;
    ByteVector m_in;  // an incomplete frame; bounded by the largest frame
    ByteVector m_out; // bounded by one Exec, one Hello and one Shutdown
    bool m_open = false;
    bool m_broken = false;
    bool m_ready = false;
    bool m_shutdown_sent = false;
    uint32_t m_command = 0; // the id of the running one
    uint32_t m_next_command = 1;
};

} // namespace coffer::vmm
