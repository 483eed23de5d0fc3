#include "vmm/home/keeper_resolver.hpp"

#include <array>
#include <cerrno>
#include <csignal>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.hpp"

namespace coffer::vmm::keeper {

namespace {

// One packet each: the name; then '+' and addresses with a line end each, or '-' and the reason.
constexpr size_t k_max_packet = 4096;
constexpr Nanoseconds k_limit = 4 * k_ns_per_s;
constexpr char k_found = '+';

std::string answer_for(std::string const& host) {
    auto addresses = kmip::resolve_here(host);
    if (!addresses) return "-" + addresses.error().message();
    std::string answer(1, k_found);
    for (auto const& address : *addresses) answer += address + '\n';
    return answer;
}

[[noreturn]] void serve_names(int socket) noexcept {
    // Nothing of the keeper's is open here: its socket would keep the other end from noticing the keeper's end.
    constexpr int k_first_unwanted = STDERR_FILENO + 1;
    if (::dup2(socket, k_first_unwanted) < 0 || ::close_range(k_first_unwanted + 1, ~0U, 0) != 0) ::_exit(1);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL); // where it is stuck in a lookup
    for (;;) {
        std::array<char, k_max_packet> name{};
        ssize_t const size = ::recv(k_first_unwanted, name.data(), name.size(), 0);
        if (size <= 0) ::_exit(0);
        auto answer = answer_for(std::string(name.data(), static_cast<size_t>(size))).substr(0, k_max_packet);
        if (::send(k_first_unwanted, answer.data(), answer.size(), MSG_NOSIGNAL) < 0) ::_exit(0);
    }
}

} // namespace

Result<ResolverProcess> ResolverProcess::start() {
    std::array<int, 2> pair{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) != 0)
        return errno_error(errno, "cannot make the resolver's socket");
    UniqueFd ours(pair[0]);
    UniqueFd theirs(pair[1]);
    pid_t const pid = ::fork();
    if (pid < 0) return errno_error(errno, "cannot start the resolver process");
    if (pid == 0) serve_names(theirs.get());
    return ResolverProcess(std::move(ours));
}

Result<std::vector<std::string>> ResolverProcess::resolve(std::string const& host) {
    auto failed = [&](std::string_view why) {
        return make_error(ErrorCode::KeyUnavailable, "cannot find the address of {}: {}", host, why);
    };
    if (!m_socket.valid()) return failed("an earlier lookup was given up");
    if (::send(m_socket.get(), host.data(), host.size(), MSG_NOSIGNAL) < 0) return failed("the resolver process ended");
    auto const deadline = monotonic_now() + k_limit;
    pollfd waiting{m_socket.get(), POLLIN, 0};
    int ready = 0;
    do {
        auto const left = std::max<Nanoseconds>((deadline - monotonic_now()) / k_ns_per_ms, 0);
        ready = ::poll(&waiting, 1, static_cast<int>(left));
    } while (ready < 0 && errno == EINTR);
    if (ready <= 0) {
        // An answer that comes late must not be taken for the next name's.
        m_socket.reset();
        return failed("the host's resolver does not answer");
    }
    std::array<char, k_max_packet> packet{};
    ssize_t const size = ::recv(m_socket.get(), packet.data(), packet.size(), 0);
    if (size <= 0) return failed("the resolver process ended");
    std::string_view answer(packet.data(), static_cast<size_t>(size));
    bool const found = answer.front() == k_found;
    answer.remove_prefix(1);
    if (!found) return make_error(ErrorCode::KeyUnavailable, "{}", answer);
    std::vector<std::string> addresses;
    for (size_t end = answer.find('\n'); end != std::string_view::npos; end = answer.find('\n')) {
        addresses.emplace_back(answer.substr(0, end));
        answer.remove_prefix(end + 1);
    }
    return addresses;
}

} // namespace coffer::vmm::keeper
