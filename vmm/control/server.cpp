#include "vmm/control/server.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.hpp"
#include "vmm/control/peer.hpp"

namespace coffer::vmm::control {

namespace {

constexpr int k_backlog = 16;
constexpr size_t k_max_progress_text = 200;

Result<void> check_descriptor(int fd, CarriedDescriptor wanted) {
    if (wanted == CarriedDescriptor::None) return {};
    struct stat info {};
    bool const known = ::fstat(fd, &info) == 0;
    if (wanted == CarriedDescriptor::File && !(known && S_ISREG(info.st_mode)))
        return make_error(ErrorCode::InvalidArgument, "the VM's process was given no regular file to write to");
    if (wanted == CarriedDescriptor::Socket && !(known && S_ISSOCK(info.st_mode)))
        return make_error(ErrorCode::InvalidArgument, "the VM's process was given no socket");
    return {};
}

} // namespace

crypto::BundleKey Conversation::take_key() {
    COFFER_ASSERT(m_key);
    auto key = std::move(*m_key);
    m_key.reset();
    return key;
}

// One client.
class Server::Session {
public:
    Session(Server& server, UniqueFd socket) : m_server(server), m_socket(std::move(socket)) {
        m_thread = std::thread([this] {
            run();
            m_ended = true;
            uint64_t one = 1;
            [[maybe_unused]] auto written = ::write(m_server.m_ended.get(), &one, sizeof one);
        });
    }
    ~Session() { m_thread.join(); }
    Session(Session const&) = delete;
    Session& operator=(Session const&) = delete;

    bool ended() const noexcept { return m_ended; }

private:
    class Running final : public Conversation {
    public:
        Running(Session& session, Message& request)
            : Conversation(std::move(request.key), std::move(request.descriptor)), m_session(session),
              m_type(request.type), m_number(request.number) {}
        void progress(uint64_t done, uint64_t total, std::string_view what) override {
            Message message;
            message.kind = MessageKind::Progress;
            message.type = m_type;
            message.number = m_number;
            message.fields = encode_fields(Progress{done, total, std::string(what.substr(0, k_max_progress_text))});
            // A client that does not keep up sees fewer of them.
            [[maybe_unused]] auto sent = control::send(m_session.m_socket.get(), message, 0);
        }
        bool cancelled() override {
            if (!m_cancelled) m_cancelled = m_session.m_server.m_stopping || m_session.was_given_up();
            return m_cancelled;
        }

    private:
        Session& m_session;
        RequestType m_type;
        uint32_t m_number;
        bool m_cancelled = false;
    };

    void run() noexcept;
    bool wait_for_request() noexcept;
    bool was_given_up() noexcept;
    bool serve(Message request);
    Result<ByteVector> carry_out(Message& request);
    bool send_failure(Error const& error, RequestType type, uint32_t number);

    Server& m_server;
    UniqueFd m_socket;
    bool m_broken = false; // what a client sent in the middle of a request was no Cancel
    std::atomic<bool> m_ended{false};
    std::thread m_thread;
};

// Whether a packet, or the client's end, is there before the deadline and before the server stops.
bool Server::Session::wait_for_request() noexcept {
    auto const end = monotonic_now() + m_server.m_limits.idle;
    for (;;) {
        auto const left = end - monotonic_now();
        if (left <= 0) return false;
        std::array<pollfd, 2> watched{{{m_socket.get(), POLLIN, 0}, {m_server.m_stop.get(), POLLIN, 0}}};
        int const ready = ::poll(watched.data(), watched.size(), static_cast<int>(left / k_ns_per_ms) + 1);
        if (ready < 0 && errno != EINTR) return false;
        if (watched[1].revents != 0) return false;
        if (ready > 0 && watched[0].revents != 0) return true;
    }
}

bool Server::Session::was_given_up() noexcept {
    pollfd watched{m_socket.get(), POLLIN, 0};
    if (::poll(&watched, 1, 0) <= 0) return false;
    auto message = receive(m_socket.get());
    if (!message && message.error().code() == ErrorCode::Timeout) return false;
    m_broken = !message || !*message || (*message)->kind != MessageKind::Cancel;
    return true;
}

bool Server::Session::send_failure(Error const& error, RequestType type, uint32_t number) {
    Message failure;
    failure.kind = MessageKind::Failure;
    failure.type = type;
    failure.number = number;
    failure.fields = encode_failure(error);
    return control::send(m_socket.get(), failure, m_server.m_limits.send).has_value();
}

Result<ByteVector> Server::Session::carry_out(Message& request) {
    auto const entry = m_server.m_entries.find(request.type);
    if (entry == m_server.m_entries.end())
        return make_error(ErrorCode::Unsupported, "the VM's process does not know requests of type {}",
                          static_cast<unsigned>(request.type));
    auto const& traits = entry->second.traits;
    if (traits.key != request.key.has_value() ||
        (traits.descriptor != CarriedDescriptor::None) != request.descriptor.valid())
        return make_error(ErrorCode::Corrupt, "the request does not carry what requests of its type do");
    TRY(check_descriptor(request.descriptor.get(), traits.descriptor));
    std::unique_lock exclusive(m_server.m_exclusive, std::defer_lock);
    if (traits.exclusive && !exclusive.try_lock())
        return make_error(ErrorCode::Busy, "the VM's process is busy with another request; try again later");
    Running running(*this, request);
    return entry->second.handler(request.fields, running);
}

// Whether the client may go on.
bool Server::Session::serve(Message request) {
    // One that comes after its request has ended is late, and no fault.
    if (request.kind == MessageKind::Cancel) return true;
    if (request.kind != MessageKind::Request) {
        send_failure(make_error(ErrorCode::Corrupt, "the VM's process takes requests alone"), request.type,
                     request.number);
        return false;
    }
    auto fields = carry_out(request);
    if (m_broken) return false;
    if (!fields) return send_failure(fields.error(), request.type, request.number);
    Message answer;
    answer.kind = MessageKind::Answer;
    answer.type = request.type;
    answer.number = request.number;
    answer.fields = std::move(*fields);
    return control::send(m_socket.get(), answer, m_server.m_limits.send).has_value();
}

void Server::Session::run() noexcept {
    for (unsigned served = 0; served < k_max_requests && wait_for_request(); ++served) {
        auto request = receive(m_socket.get());
        if (!request) {
            if (request.error().code() == ErrorCode::Timeout) continue;
            send_failure(request.error(), RequestType{}, 0);
            break;
        }
        if (!*request || !serve(std::move(**request))) break;
    }
    // The client sees the end now, and not when the next one comes and this object goes.
    m_socket.reset();
}

Result<std::unique_ptr<Server>> Server::create(HomeLocation const& location, Limits limits) {
    auto place = TRY_CONTEXT(make_place(location), "cannot make the VM's control socket");
    UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!listener.valid()) return errno_error(errno, "cannot make a socket");
    // Before bind(2), which makes the name with this mode: there is no moment at which it is wider.
    if (::fchmod(listener.get(), 0600) != 0) return errno_error(errno, "cannot close a socket to others");
    // Made under another name and renamed, so that who finds the socket can connect, and a stale one is gone at once.
    auto const making = "." + place.name + ".new";
    ::unlinkat(place.folder.get(), making.c_str(), 0);
    auto failed = [&](std::string_view what) {
        return errno_error(errno, fmt::format("cannot {} the control socket {}", what, place.path.native()));
    };
    auto address = TRY(unix_address(place.address(making)));
    // SAFETY: the sockets API takes any address type by a pointer to its common head.
    if (::bind(listener.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address) != 0) return failed("make");
    if (::listen(listener.get(), k_backlog) != 0) return failed("listen on");
    if (::renameat(place.folder.get(), making.c_str(), place.folder.get(), place.name.c_str()) != 0)
        return failed("name");
    UniqueFd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    UniqueFd ended(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!stop.valid() || !ended.valid()) return errno_error(errno, "cannot make an eventfd");
    return std::unique_ptr<Server>(
        new Server(std::move(place), std::move(listener), std::move(stop), std::move(ended), limits));
}

Server::Server(Place place, UniqueFd listener, UniqueFd stop, UniqueFd ended, Limits limits)
    : m_place(std::move(place)), m_limits(limits), m_listener(std::move(listener)), m_stop(std::move(stop)),
      m_ended(std::move(ended)) {}

Server::~Server() {
    stop();
}

void Server::start() {
    m_thread = std::thread([this] { run(); });
}

// A socket's name leads to it whatever folder it is in, so that it need not be made anew, which a sandbox forbids.
Result<void> Server::move_to(HomeLocation const& location) {
    auto place = TRY_CONTEXT(make_place(location), "cannot find a place for the VM's control socket");
    if (::renameat(m_place.folder.get(), m_place.name.c_str(), place.folder.get(), place.name.c_str()) != 0)
        return errno_error(errno, fmt::format("cannot move the control socket to {}", place.path.native()));
    m_place = std::move(place);
    return {};
}

void Server::stop() noexcept {
    if (!m_listener.valid()) return;
    ::unlinkat(m_place.folder.get(), m_place.name.c_str(), 0);
    m_stopping = true;
    uint64_t one = 1;
    [[maybe_unused]] auto written = ::write(m_stop.get(), &one, sizeof one);
    if (m_thread.joinable()) m_thread.join();
    m_sessions.clear();
    m_listener.reset();
}

// Removes clients that are gone. Where there are as many as there may be, the threads of some are often just about to
// end: they get a while for it.
void Server::wait_for_room() noexcept {
    auto const end = monotonic_now() + m_limits.full;
    for (;;) {
        uint64_t count = 0;
        [[maybe_unused]] auto drained = ::read(m_ended.get(), &count, sizeof count);
        std::erase_if(m_sessions, [](auto const& session) { return session->ended(); });
        auto const left = end - monotonic_now();
        if (m_sessions.size() < k_max_clients || left <= 0 || m_stopping) return;
        std::array<pollfd, 2> watched{{{m_ended.get(), POLLIN, 0}, {m_stop.get(), POLLIN, 0}}};
        ::poll(watched.data(), watched.size(), static_cast<int>(left / k_ns_per_ms) + 1);
    }
}

void Server::accept_one() {
    UniqueFd socket(::accept4(m_listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) return;
    auto peer = check_peer(socket.get());
    if (peer) wait_for_room();
    if (peer && m_sessions.size() >= k_max_clients)
        peer = make_error(ErrorCode::Busy, "the VM's process has {} clients already; try again later", k_max_clients);
    if (peer) {
        m_sessions.push_back(std::make_unique<Session>(*this, std::move(socket)));
        return;
    }
    static log::RateLimit limit;
    if (limit.allow()) log::warning("control socket: {}", peer.error().message());
    Message failure;
    failure.kind = MessageKind::Failure;
    failure.fields = encode_failure(peer.error());
    [[maybe_unused]] auto sent = control::send(socket.get(), failure, 0);
}

void Server::run() noexcept {
    for (;;) {
        std::array<pollfd, 2> watched{{{m_listener.get(), POLLIN, 0}, {m_stop.get(), POLLIN, 0}}};
        int const ready = ::poll(watched.data(), watched.size(), -1);
        if (ready < 0 && errno != EINTR) abort_with("poll failed in the control socket's thread");
        if (watched[1].revents != 0) return;
        if (ready > 0) accept_one();
    }
}

} // namespace coffer::vmm::control
