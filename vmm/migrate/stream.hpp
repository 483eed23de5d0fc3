// One end of a migration's byte stream: sends and receives whole messages. One thread at a time.
#pragma once

#include <functional>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "vmm/migrate/message.hpp"

namespace coffer::vmm::migrate {

class Stream {
public:
    struct Options {
        // Asked several times a second while something is waited for: Cancelled where it says yes.
        std::function<bool()> cancelled = {};
        Nanoseconds silence = 60 * k_ns_per_s; // until the other end reads or says something: Timeout
        // Called with each message's type before it is sent and after it was received; for tests, which stop here.
        std::function<void(bool sending, MessageType)> on_message = {};
    };
    Stream(UniqueFd socket, Options options) : m_socket(std::move(socket)), m_options(std::move(options)) {}
    explicit Stream(UniqueFd socket) : Stream(std::move(socket), Options()) {}

    // Io where the other end is gone.
    Result<void> send(MessageType type, Bytes body);
    template <class M>
    Result<void> send(M const& message) {
        return send(M::k_type, encode_fields(message));
    }
    // Tries, and does not tell.
    void send_failure(Error const& error) noexcept;

    struct Frame {
        MessageType type{};
        ByteVector body;
    };
    // The next message. Where it is a Failure, that error. Io where the other end is gone.
    Result<Frame> receive();
    Result<Frame> receive(Nanoseconds silence);
    // The next one, which has to be of this type: else Corrupt.
    Result<ByteVector> expect(MessageType type);
    Result<ByteVector> expect(MessageType type, Nanoseconds silence);

    // Whether receive() gave what the other end said in a Failure, and not what happened to the connection.
    bool was_told() const noexcept { return m_told; }

    // To give to another process; the stream is of no use afterwards.
    UniqueFd take_socket() { return std::move(m_socket); }
    int socket() const noexcept { return m_socket.get(); }

private:
    Result<void> wait(short events, Nanoseconds since, Nanoseconds silence) const;
    Result<void> read(MutBytes to, Nanoseconds silence);

    UniqueFd m_socket;
    Options m_options;
    bool m_told = false;
};

} // namespace coffer::vmm::migrate
