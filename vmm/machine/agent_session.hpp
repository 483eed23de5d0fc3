// `--exec`: one command in the guest by its agent, from the first Hello to the guest's power-off.
//
// Thread rule: under the device lock, but for construction and destruction.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "vmm/machine/agent_channel.hpp"
#include "vmm/machine/console.hpp"
#include "vmm/machine/io_loop.hpp"
#include "vmm/machine/platform.hpp"

namespace coffer::vmm {

// A command under way when the machine was saved. Tags are never reused.
struct AgentSessionState {
    std::string command;
    bool started = false;
    AgentChannelState channel;

    template <class V>
    void fields(V& v) {
        v.required(1, command);
        v.required(2, started);
        v.required(3, channel);
    }
};

class AgentSession {
public:
    // How long a guest may take to power off once its command has ended.
    static constexpr Nanoseconds k_shutdown_limit = 60 * k_ns_per_s;

    struct Callbacks {
        // The command ended, and the guest was asked to power off.
        std::function<void(int code)> on_exit;
        // The command cannot end any more, or the guest did not power off; the machine is to be stopped.
        std::function<void(std::optional<Error> error)> on_stop;
    };

    // The command's output goes to `output` and `errors` alone.
    AgentSession(std::string command, std::unique_ptr<devices::ByteSink> output,
                 std::unique_ptr<devices::ByteSink> errors);

    devices::ByteSink& from_guest() noexcept { return m_channel; }
    void port_opened(bool open) { m_channel.port_opened(open); }
    void port_writable() { m_channel.pump(); }
    // Before the machine starts.
    void attach(IoLoop& loop, Platform& platform, Callbacks callbacks);

    // Of a command that has not ended.
    AgentSessionState save() const { return {m_command, m_started, m_channel.save()}; }
    // After attach(), and after the machine was restored. The session was made with the saved command.
    Result<void> restore(AgentSessionState const& state);

private:
    void on_hello();
    void on_exit(int code);
    void on_failure(std::string_view what);

    std::string m_command;
    std::unique_ptr<devices::ByteSink> m_output;
    std::unique_ptr<devices::ByteSink> m_errors;
    AgentChannel m_channel;
    Callbacks m_callbacks;
    IoLoop* m_loop = nullptr;
    Platform* m_platform = nullptr;
    std::unique_ptr<devices::Timer> m_shutdown_timer;
    bool m_started = false;
    bool m_ended = false;
};

} // namespace coffer::vmm
