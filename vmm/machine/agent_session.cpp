#include "vmm/machine/agent_session.hpp"

#include "base/log.hpp"

namespace coffer::vmm {

AgentSession::AgentSession(std::string command, std::unique_ptr<devices::ByteSink> output,
                           std::unique_ptr<devices::ByteSink> errors)
    : m_command(std::move(command)), m_output(std::move(output)), m_errors(std::move(errors)),
      m_channel(
          {.on_hello = [this](uint16_t) { on_hello(); },
           .on_output = [this](AgentStream stream,
                               Bytes bytes) { (stream == AgentStream::Output ? *m_output : *m_errors).write(bytes); },
           .on_exit = [this](int code) { on_exit(code); },
           .on_failure = [this](std::string_view what) { on_failure(what); }},
          [this](Bytes bytes) { return m_platform ? m_platform->agent_send(bytes) : 0; }) {}

void AgentSession::attach(IoLoop& loop, Platform& platform, Callbacks callbacks) {
    m_loop = &loop;
    m_platform = &platform;
    m_callbacks = std::move(callbacks);
    m_shutdown_timer = loop.make_timer([this] {
        log::warning("the guest did not power off within {} s of its command's end and is stopped",
                     k_shutdown_limit / k_ns_per_s);
        m_callbacks.on_stop(std::nullopt);
    });
}

Result<void> AgentSession::restore(AgentSessionState const& state) {
    TRY(m_channel.restore(state.channel));
    m_started = state.started;
    return {};
}

void AgentSession::on_hello() {
    // An agent that comes back after the command began is one of a guest that was reset under it: on_failure told.
    if (m_started) return;
    m_started = true;
    if (auto sent = m_channel.exec(m_command); !sent) {
        m_ended = true;
        m_callbacks.on_stop(std::move(sent).error());
    }
}

void AgentSession::on_exit(int code) {
    m_ended = true;
    m_callbacks.on_exit(code);
    m_shutdown_timer->arm(m_loop->now() + k_shutdown_limit);
    if (auto asked = m_channel.shutdown(); !asked) m_platform->press_power_button();
}

void AgentSession::on_failure(std::string_view what) {
    // Before the command began another agent may come; after its end the agent goes with the guest.
    if (!m_started || m_ended) return;
    m_ended = true;
    m_callbacks.on_stop(make_error(ErrorCode::Io, "the command in the guest did not end: {}", what));
}

} // namespace coffer::vmm
