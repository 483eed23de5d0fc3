#include "vmm/migrate/stream.hpp"

#include <array>
#include <cerrno>
#include <poll.h>
#include <sys/socket.h>

namespace coffer::vmm::migrate {

namespace {

constexpr int k_step_ms = 100;

Error lost() {
    return make_error(ErrorCode::Io, "the connection to the other host is lost");
}

} // namespace

Result<void> Stream::wait(short events, Nanoseconds since, Nanoseconds silence) const {
    if (m_options.cancelled && m_options.cancelled()) return make_error(ErrorCode::Cancelled, "it was given up");
    if (monotonic_now() - since > silence) return make_error(ErrorCode::Timeout, "the other host is silent");
    pollfd watched{m_socket.get(), events, 0};
    if (::poll(&watched, 1, k_step_ms) < 0 && errno != EINTR)
        return errno_error(errno, "cannot wait for the other host");
    return {};
}

// By sendmsg and recvmsg, the calls that a VM's process is left with in its sandbox.
Result<void> Stream::send(MessageType type, Bytes body) {
    COFFER_ASSERT(body.size() <= max_body(type));
    if (m_options.on_message) m_options.on_message(true, type);
    auto header = encode_header({type, static_cast<uint32_t>(body.size())});
    size_t done = 0;
    size_t const all = header.size() + body.size();
    auto last = monotonic_now();
    while (done < all) {
        std::array<iovec, 2> parts{};
        size_t count = 0;
        if (done < header.size()) parts[count++] = {header.data() + done, header.size() - done};
        size_t const in_body = done < header.size() ? 0 : done - header.size();
        // SAFETY: sendmsg(2) takes what it only reads by a pointer to what is not const.
        if (in_body < body.size())
            parts[count++] = {const_cast<std::byte*>(body.data()) + in_body, body.size() - in_body};
        msghdr message{};
        message.msg_iov = parts.data();
        message.msg_iovlen = count;
        auto const sent = ::sendmsg(m_socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            done += static_cast<size_t>(sent);
            last = monotonic_now();
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            TRY(wait(POLLOUT, last, m_options.silence));
        } else if (errno != EINTR) {
            return lost();
        }
    }
    return {};
}

void Stream::send_failure(Error const& error) noexcept {
    FailureMessage failure{error.code(), error.message().substr(0, k_max_text)};
    auto const body = encode_fields(failure);
    auto header = encode_header({MessageType::Failure, static_cast<uint32_t>(body.size())});
    if (m_options.on_message) m_options.on_message(true, MessageType::Failure);
    ByteVector all(header.begin(), header.end());
    append(all, body);
    iovec part{all.data(), all.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    // What does not fit now is not worth waiting for.
    [[maybe_unused]] auto sent = ::sendmsg(m_socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

Result<void> Stream::read(MutBytes to, Nanoseconds silence) {
    size_t done = 0;
    auto last = monotonic_now();
    while (done < to.size()) {
        iovec part{to.data() + done, to.size() - done};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        auto const got = ::recvmsg(m_socket.get(), &message, MSG_DONTWAIT);
        if (got > 0) {
            done += static_cast<size_t>(got);
            last = monotonic_now();
        } else if (got == 0) {
            return lost();
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            TRY(wait(POLLIN, last, silence));
        } else if (errno != EINTR) {
            return lost();
        }
    }
    return {};
}

Result<Stream::Frame> Stream::receive(Nanoseconds silence) {
    std::array<std::byte, k_header_size> bytes{};
    TRY(read(bytes, silence));
    auto const header = TRY(decode_header(bytes));
    Frame frame{header.type, ByteVector(header.size)};
    TRY(read(frame.body, silence));
    if (m_options.on_message) m_options.on_message(false, frame.type);
    if (frame.type == MessageType::Failure) {
        m_told = true;
        return decode_failure(frame.body);
    }
    return frame;
}

Result<Stream::Frame> Stream::receive() {
    return receive(m_options.silence);
}

Result<ByteVector> Stream::expect(MessageType type, Nanoseconds silence) {
    auto frame = TRY(receive(silence));
    if (frame.type != type)
        return make_error(ErrorCode::Corrupt, "the other host said {} where {} was to come",
                          static_cast<unsigned>(frame.type), static_cast<unsigned>(type));
    return std::move(frame.body);
}

Result<ByteVector> Stream::expect(MessageType type) {
    return expect(type, m_options.silence);
}

} // namespace coffer::vmm::migrate
