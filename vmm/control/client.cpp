#include "vmm/control/client.hpp"

#include <cerrno>
#include <poll.h>
#include <sys/socket.h>

#include "vmm/control/peer.hpp"
#include "vmm/control/place.hpp"
#include "vmm/home/home_admin.hpp"

namespace coffer::vmm::control {

namespace {

constexpr Nanoseconds k_send_limit = 10 * k_ns_per_s;
constexpr int k_step_ms = 100;

// Nothing where nobody listens there.
Result<std::optional<UniqueFd>> connect_to(Place const& place) {
    UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.valid()) return errno_error(errno, "cannot make a socket");
    auto address = TRY(unix_address(place.address(place.name)));
    // SAFETY: the sockets API takes any address type by a pointer to its common head.
    if (::connect(socket.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address) == 0) {
        TRY(check_peer(socket.get()));
        return std::optional(std::move(socket));
    }
    if (errno == ENOENT || errno == ECONNREFUSED) return std::optional<UniqueFd>();
    if (errno == EAGAIN)
        return make_error(ErrorCode::Busy, "the VM's process has too many clients already; try again later");
    return errno_error(errno, fmt::format("cannot connect to the control socket {}", place.path.native()));
}

} // namespace

Result<Client> Client::connect(HomeLocation const& location) {
    for (auto const& place : find_places(location)) {
        auto socket = TRY(connect_to(place));
        if (socket) return Client(std::move(*socket));
    }
    auto user = TRY(home_user(location));
    if (user)
        return make_error(
            ErrorCode::Busy,
            "VM '{}' is in use by process {}, which takes no requests: another verb, 'tpm serve', or a VM "
            "that was started with another XDG_RUNTIME_DIR",
            location.name, *user);
    if (!std::filesystem::exists(location.folder())) return no_such_home(location);
    return make_error(ErrorCode::NotFound, "VM '{}' is not running", location.name);
}

Result<ByteVector> Client::exchange(RequestType type, ByteVector fields, CallOptions const& options) {
    Message request;
    request.kind = MessageKind::Request;
    request.type = type;
    request.number = m_next_number++;
    request.fields = std::move(fields);
    // Where the other end closed, what it said before that is still to be read.
    auto sent = send(m_socket.get(), request, k_send_limit, options.key, options.descriptor);
    if (!sent && sent.error().code() == ErrorCode::Timeout) return std::move(sent).error();
    bool gave_up = false;
    auto last = monotonic_now();
    for (;;) {
        if (!gave_up && options.cancelled && options.cancelled()) {
            Message cancel;
            cancel.kind = MessageKind::Cancel;
            cancel.type = type;
            cancel.number = request.number;
            TRY(send(m_socket.get(), cancel, k_send_limit));
            gave_up = true;
        }
        pollfd watched{m_socket.get(), POLLIN, 0};
        int const ready = ::poll(&watched, 1, k_step_ms);
        if (ready < 0 && errno != EINTR) return errno_error(errno, "cannot wait for the VM's process");
        if (ready <= 0) {
            if (options.silence_limit > 0 && monotonic_now() - last > options.silence_limit)
                return make_error(ErrorCode::Timeout, "the VM's process does not answer");
            continue;
        }
        auto message = receive(m_socket.get());
        if (!message && message.error().code() == ErrorCode::Timeout) continue;
        if (!message) return std::move(message).error();
        if (!*message) return make_error(ErrorCode::Io, "the VM ended before its process answered");
        auto& got = **message;
        last = monotonic_now();
        // A failure without a number is about the connection.
        if (got.kind == MessageKind::Failure && (got.number == request.number || got.number == 0))
            return decode_failure(got.fields);
        if (got.number != request.number || got.type != type)
            return make_error(ErrorCode::Corrupt, "the VM's process answered another question");
        if (got.kind == MessageKind::Answer) return std::move(got.fields);
        if (got.kind != MessageKind::Progress)
            return make_error(ErrorCode::Corrupt, "the VM's process gave no proper answer");
        Progress progress;
        TRY(decode_fields(got.fields, progress));
        if (options.on_progress) options.on_progress(progress);
    }
}

} // namespace coffer::vmm::control
