#include "vmm/machine/agent_channel.hpp"

#include <algorithm>

#include "base/log.hpp"

namespace coffer::vmm {

using agent::FrameType;

AgentChannel::AgentChannel(Callbacks callbacks, std::function<size_t(Bytes)> send)
    : m_callbacks(std::move(callbacks)), m_send(std::move(send)) {}

void AgentChannel::port_opened(bool open) {
    m_open = open;
    m_broken = m_ready = m_shutdown_sent = false;
    m_in.clear();
    m_out.clear();
    if (!open) fail("the guest's agent went away");
}

void AgentChannel::fail(std::string_view what) {
    if (std::exchange(m_command, 0) != 0 && m_callbacks.on_failure) m_callbacks.on_failure(what);
}

void AgentChannel::break_stream(std::string_view what) {
    static log::RateLimit limit;
    if (limit.allow()) log::warning("agent: the guest broke the protocol: {}", what);
    m_broken = true;
    m_ready = false;
    m_in.clear();
    m_out.clear();
    m_command = 0;
    if (m_callbacks.on_failure) m_callbacks.on_failure(what);
}

void AgentChannel::put(FrameType type, Bytes head, Bytes tail) {
    auto length = static_cast<uint32_t>(head.size() + tail.size());
    append(m_out, object_bytes(length));
    append(m_out, object_bytes(type));
    append(m_out, head);
    append(m_out, tail);
    pump();
}

void AgentChannel::pump() {
    if (!m_open || m_out.empty()) return;
    size_t sent = m_send(m_out);
    COFFER_ASSERT(sent <= m_out.size());
    m_out.erase(m_out.begin(), m_out.begin() + static_cast<std::ptrdiff_t>(sent));
}

Result<void> AgentChannel::exec(std::string_view command) {
    if (!idle()) return make_error(ErrorCode::Busy, "the guest's agent is not ready for a command");
    if (command.empty() || command.size() > agent::k_max_command || command.find('\0') != std::string_view::npos)
        return make_error(ErrorCode::InvalidArgument,
                          "a command for the guest has 1 to {} bytes, none of them zero; this one has {}",
                          agent::k_max_command, command.size());
    m_command = m_next_command;
    m_next_command = m_next_command == UINT32_MAX ? 1 : m_next_command + 1;
    put(FrameType::Exec, object_bytes(m_command), as_bytes(command));
    return {};
}

Result<void> AgentChannel::shutdown() {
    if (!m_ready) return make_error(ErrorCode::Busy, "the guest has no agent that could power it off");
    if (!std::exchange(m_shutdown_sent, true)) put(FrameType::Shutdown, {});
    return {};
}

AgentChannelState AgentChannel::save() const {
    return {m_in, m_out, m_open, m_broken, m_ready, m_shutdown_sent, m_command, m_next_command};
}

Result<void> AgentChannel::restore(AgentChannelState state) {
    constexpr size_t k_most = agent::k_header_size + agent::k_max_payload;
    if (state.in.size() > k_most || state.out.size() > 2 * k_most || (state.command != 0 && !state.ready) ||
        state.next_command == 0 ||
        (state.in.size() >= agent::k_header_size && load_le<uint32_t>(state.in) > agent::k_max_payload))
        return make_error(ErrorCode::Corrupt, "the saved conversation with the guest's agent is malformed");
    m_in = std::move(state.in);
    m_out = std::move(state.out);
    m_open = state.open;
    m_broken = state.broken;
    m_ready = state.ready;
    m_shutdown_sent = state.shutdown_sent;
    m_command = state.command;
    m_next_command = state.next_command;
    return {};
}

// Bytes come in any pieces. Frames that are whole are handled in place; what is left of one is kept.
void AgentChannel::write(Bytes from_guest) noexcept {
    while (!from_guest.empty() && m_open && !m_broken) {
        size_t wanted = agent::k_header_size;
        if (m_in.size() >= agent::k_header_size) wanted += load_le<uint32_t>(m_in);
        size_t piece = std::min(wanted - m_in.size(), from_guest.size());
        append(m_in, from_guest.first(piece));
        from_guest = from_guest.subspan(piece);
        if (m_in.size() < agent::k_header_size) return;
        uint32_t length = load_le<uint32_t>(m_in);
        if (length > agent::k_max_payload) return break_stream("a frame is too long");
        if (m_in.size() < agent::k_header_size + length) continue;
        ByteVector frame = std::exchange(m_in, {});
        handle(static_cast<FrameType>(load_le<uint16_t>(frame, 4)), Bytes(frame).subspan(agent::k_header_size));
    }
}

void AgentChannel::handle(FrameType type, Bytes payload) {
    auto for_this_command = [&] { return m_command != 0 && load_le<uint32_t>(payload) == m_command; };
    switch (type) {
    case FrameType::Hello:
        if (payload.size() != 2) return break_stream("a Hello of the wrong size");
        if (load_le<uint16_t>(payload) != agent::k_version)
            return break_stream("it speaks a version that this program does not know; build the guest image again");
        fail("the guest's agent started anew");
        m_ready = true;
        if (m_callbacks.on_hello) m_callbacks.on_hello(load_le<uint16_t>(payload));
        return;
    case FrameType::Stdout:
    case FrameType::Stderr:
        if (payload.size() < 4) return break_stream("output of the wrong size");
        if (for_this_command() && m_callbacks.on_output)
            m_callbacks.on_output(type == FrameType::Stdout ? AgentStream::Output : AgentStream::Error,
                                  payload.subspan(4));
        return;
    case FrameType::Exit: {
        if (payload.size() != 12) return break_stream("an Exit of the wrong size");
        if (!for_this_command()) return;
        m_command = 0;
        bool signalled = load_le<uint32_t>(payload, 4) != static_cast<uint32_t>(agent::ExitKind::Code);
        auto value = static_cast<int>(load_le<uint32_t>(payload, 8) & (signalled ? 0x7F : 0xFF));
        if (m_callbacks.on_exit) m_callbacks.on_exit(signalled ? 128 + value : value);
        return;
    }
    case FrameType::Error: {
        if (payload.size() < 4) return break_stream("an Error of the wrong size");
        if (!for_this_command()) return;
        // The guest's text goes to a terminal: printable ASCII only, and not much of it.
        std::string text = "the guest's agent says: ";
        for (std::byte b : payload.subspan(4, std::min<size_t>(payload.size() - 4, 200))) {
            auto c = static_cast<unsigned char>(b);
            text += c >= 0x20 && c < 0x7F ? static_cast<char>(c) : '?';
        }
        fail(text);
        return;
    }
    default: return; // of a later version
    }
}

} // namespace coffer::vmm
