#include "vmm/tpm/tpm_server.hpp"

#include <array>
#include <cerrno>
#include <csignal>
#include <optional>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/log.hpp"
#include "devices/tpm/tpm_command.hpp"

namespace coffer::vmm {

namespace {

using namespace tpm_control;

constexpr int k_stall_ms = 10'000; // for the rest of a request, and for taking a response
constexpr size_t k_read_size = 4096;

class Event {
public:
    static Result<Event> create() {
        Event event;
        event.m_fd = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (!event.m_fd.valid()) return errno_error(errno, "cannot make an event");
        return event;
    }
    int fd() const noexcept { return m_fd.get(); }
    void set() noexcept {
        uint64_t const one = 1;
        [[maybe_unused]] auto written = ::write(m_fd.get(), &one, sizeof one);
    }
    void clear() noexcept {
        uint64_t count = 0;
        [[maybe_unused]] auto got = ::read(m_fd.get(), &count, sizeof count);
    }

private:
    UniqueFd m_fd;
};

enum class Wake : uint8_t { Ready, Interrupt, Stalled };

// Until `fd` is readable or `interrupt` is; limit in ms, -1: none.
Wake wait_for(int fd, int interrupt, int limit) {
    std::array<pollfd, 2> fds{pollfd{interrupt, POLLIN, 0}, pollfd{fd, POLLIN, 0}};
    int ready = 0;
    while ((ready = ::poll(fds.data(), fds.size(), limit)) < 0 && errno == EINTR) {
    }
    if (ready <= 0) return Wake::Stalled;
    return fds[0].revents != 0 ? Wake::Interrupt : Wake::Ready;
}

void limit_sending(int fd) {
    timeval const limit{k_stall_ms / 1000, 0};
    ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

bool send_all(int fd, Bytes bytes) {
    while (!bytes.empty()) {
        auto sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return false;
        bytes = bytes.subspan(static_cast<size_t>(sent));
    }
    return true;
}

UniqueFd accept_client(int listener) {
    UniqueFd client(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (client.valid()) limit_sending(client.get());
    return client;
}

// The thread of the data channel. It waits for commands in recv() itself, so that one costs two system calls; whoever
// wants it to look up ends the client's sending side.
class DataChannel {
public:
    DataChannel(TpmEngine& engine, int listener, Event wake)
        : m_engine(engine), m_listener(listener), m_wake(std::move(wake)), m_thread([this] { run(); }) {}
    ~DataChannel() {
        {
            std::lock_guard lock(m_mutex);
            m_stop = true;
            look_up();
        }
        m_engine.stop();
        m_thread.join();
    }
    DataChannel(DataChannel const&) = delete;
    DataChannel& operator=(DataChannel const&) = delete;

    void hand_over(UniqueFd socket) {
        limit_sending(socket.get());
        std::lock_guard lock(m_mutex);
        m_handed = std::move(socket);
        look_up();
    }

private:
    // Under m_mutex. The response to a running command can still be sent.
    void look_up() {
        if (m_client.valid()) ::shutdown(m_client.get(), SHUT_RD);
        m_wake.set();
    }

    void run() {
        pthread_setname_np(pthread_self(), "tpm-data");
        while (!m_stop) {
            if (m_client.valid()) {
                if (!serve_one()) replace_client({});
                continue;
            }
            switch (wait_for(m_listener, m_wake.fd(), -1)) {
            case Wake::Interrupt:
                m_wake.clear();
                replace_client({});
                break;
            case Wake::Stalled: return; // poll does not work: there is nothing to go on with
            case Wake::Ready: replace_client(accept_client(m_listener)); break;
            }
        }
    }

    // By one that was handed over, if there is one.
    void replace_client(UniqueFd accepted) {
        std::lock_guard lock(m_mutex);
        m_client = m_handed.valid() ? std::move(m_handed) : std::move(accepted);
    }

    // One command and its response; false where the client is gone or out of step, or this is to look up.
    bool serve_one() {
        size_t got = 0;
        for (size_t wanted = devices::k_tpm_header_size; got < wanted;) {
            if (got != 0 && wait_for(m_client.get(), m_wake.fd(), k_stall_ms) != Wake::Ready) return false;
            auto room = MutBytes(m_command).subspan(got);
            auto count = ::recv(m_client.get(), room.data(), room.size(), 0);
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0) return false;
            got += static_cast<size_t>(count);
            auto header = devices::parse_tpm_header(Bytes(m_command).first(got));
            if (!header) continue;
            wanted = header->size;
            // A size that cannot be, or bytes behind the command: nobody can tell where the next one begins.
            if (wanted < devices::k_tpm_header_size || wanted > m_command.size() || got > wanted) {
                std::array<std::byte, devices::k_tpm_header_size> refusal{};
                devices::write_tpm_response(refusal, devices::TpmResponseCode::CommandSize);
                (void)send_all(m_client.get(), refusal);
                return false;
            }
        }
        auto size = m_engine.execute(Bytes(m_command).first(got), m_response, [this] {
            pollfd client{m_client.get(), 0, 0}; // POLLHUP and POLLERR are always told
            return ::poll(&client, 1, 0) > 0;
        });
        explicit_bzero(m_command.data(), got);
        if (!size) return false;
        auto response = MutBytes(m_response).first(*size);
        bool sent = send_all(m_client.get(), response);
        explicit_bzero(response.data(), response.size());
        return sent;
    }

    TpmEngine& m_engine;
    int m_listener;
    Event m_wake;
    std::atomic<bool> m_stop{false};
    std::mutex m_mutex;
    UniqueFd m_handed; // guarded by m_mutex
    UniqueFd m_client; // changed by the thread alone, under m_mutex
    ByteVector m_command = ByteVector(TpmEngine::k_max_command);
    ByteVector m_response = ByteVector(TpmEngine::k_max_command);
    std::thread m_thread; // last: it uses all of the above
};

// The control channel, on the calling thread.
class ControlChannel {
public:
    ControlChannel(TpmEngine& engine, DataChannel& data, int listener, int signals)
        : m_engine(engine), m_data(data), m_listener(listener), m_signals(signals) {}

    void run() {
        while (!m_ended) {
            int const limit = m_input.empty() ? -1 : k_stall_ms;
            switch (wait_for(m_client.valid() ? m_client.get() : m_listener, m_signals, limit)) {
            case Wake::Interrupt: return;
            case Wake::Stalled:
                if (m_input.empty()) return;
                drop_client();
                continue;
            case Wake::Ready: break;
            }
            if (!m_client.valid())
                m_client = accept_client(m_listener);
            else if (!receive() || !serve_all())
                drop_client();
        }
    }

private:
    void drop_client() {
        m_client.reset();
        m_passed.reset();
        m_input.clear();
    }

    // What has come, with a descriptor that may come along.
    bool receive() {
        size_t const before = m_input.size();
        m_input.resize(before + k_read_size);
        iovec part{m_input.data() + before, k_read_size};
        // Room for one descriptor; the kernel closes others.
        alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = CMSG_LEN(sizeof(int)); // CMSG_SPACE would have room for two
        auto count = ::recvmsg(m_client.get(), &message, MSG_CMSG_CLOEXEC);
        m_input.resize(before + (count > 0 ? static_cast<size_t>(count) : 0));
        for (auto* c = CMSG_FIRSTHDR(&message); count >= 0 && c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len < CMSG_LEN(sizeof(int)))
                continue;
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
            m_passed = UniqueFd(fd);
        }
        return count > 0 || (count < 0 && errno == EINTR);
    }

    // False where the client is out of step or does not take its response.
    bool serve_all() {
        for (;;) {
            auto request = parse_request(m_input);
            switch (request.framing) {
            case Framing::Incomplete: return true;
            case Framing::Unknown:
                // Clients wait for each response: all that is here belongs to what nobody knows.
                m_input.clear();
                return send_all(m_client.get(), Response(ControlResult::BadOrdinal).view());
            case Framing::TooLarge:
                (void)send_all(m_client.get(), Response(ControlResult::BadParameter).view());
                return false;
            case Framing::Complete: break;
            }
            auto response = answer(request);
            m_input.erase(m_input.begin(), m_input.begin() + static_cast<ptrdiff_t>(request.size));
            if (!send_all(m_client.get(), response.view())) return false;
            if (m_ended) return true;
        }
    }

    Response answer(Request const& request) {
        if (request.command == Command::SetDataFd) return set_data_fd();
        if (request.command != Command::Shutdown) return m_engine.control(request);
        m_ended = true;
        return m_engine.control({Framing::Complete, Command::Stop, {}, 0});
    }

    Response set_data_fd() {
        int type = 0;
        socklen_t size = sizeof type;
        auto socket = std::exchange(m_passed, {});
        if (!socket.valid() || ::getsockopt(socket.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 ||
            type != SOCK_STREAM)
            return Response(ControlResult::BadParameter);
        // recv() must not wait where poll() has told of something that is gone again, nor send() for ever.
        if (int flags = ::fcntl(socket.get(), F_GETFL);
            flags < 0 || ::fcntl(socket.get(), F_SETFL, flags & ~O_NONBLOCK))
            return Response(ControlResult::IoError);
        m_data.hand_over(std::move(socket));
        return Response(ControlResult::Success);
    }

    TpmEngine& m_engine;
    DataChannel& m_data;
    int m_listener;
    int m_signals;
    UniqueFd m_client;
    UniqueFd m_passed; // the descriptor that came last
    ByteVector m_input;
    bool m_ended = false;
};

} // namespace

Result<void> serve_tpm(TpmEngine& engine, TpmSockets& sockets) {
    sigset_t stopping;
    sigemptyset(&stopping);
    for (int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&stopping, number);
    if (int failed = ::pthread_sigmask(SIG_BLOCK, &stopping, nullptr); failed != 0)
        return errno_error(failed, "cannot block signals");
    UniqueFd signals(::signalfd(-1, &stopping, SFD_CLOEXEC));
    if (!signals.valid()) return errno_error(errno, "cannot wait for signals");
    auto wake = TRY(Event::create());
    TRY(tpm_server::enter_sandbox());
    DataChannel data(engine, sockets.data.get(), std::move(wake));
    ControlChannel(engine, data, sockets.control.get(), signals.get()).run();
    return {};
}

} // namespace coffer::vmm
