// The control socket with clients and servers that mean no good.
#include <array>
#include <grp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "tests/unit/control/control_fixture.hpp"
#include "vmm/control/peer.hpp"

namespace coffer::vmm::control::tests {
namespace {

class HostileTest : public ControlTest {
protected:
    UniqueFd connect_raw() {
        UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        auto address = *unix_address(socket_path().native());
        // SAFETY: the sockets API takes any address type by a pointer to its common head.
        EXPECT_EQ(::connect(socket.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address), 0);
        return socket;
    }
    static ByteVector packet(uint16_t version, uint16_t kind, uint16_t type, uint16_t flags, Bytes body,
                             uint32_t magic = k_magic) {
        ByteVector bytes(k_header_size);
        store_le<uint32_t>(bytes, 0, magic);
        store_le<uint16_t>(bytes, 4, version);
        store_le<uint16_t>(bytes, 6, kind);
        store_le<uint32_t>(bytes, 8, 7);
        store_le<uint16_t>(bytes, 12, flags);
        store_le<uint16_t>(bytes, 14, type);
        store_le<uint32_t>(bytes, 16, static_cast<uint32_t>(body.size()));
        append(bytes, body);
        return bytes;
    }
    static ByteVector status_request() { return packet(k_version, 1, 1, 0, {}); }
    // What the server says to it; nothing where it closes without a word.
    static std::optional<Message> answer_to(UniqueFd const& socket, Bytes bytes) {
        if (!bytes.empty()) {
            EXPECT_EQ(::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
                      static_cast<ssize_t>(bytes.size()));
        }
        pollfd watched{socket.get(), POLLIN, 0};
        EXPECT_EQ(::poll(&watched, 1, 30'000), 1);
        auto message = receive(socket.get());
        EXPECT_TRUE(message) << message.error().message();
        return message ? std::move(*message) : std::nullopt;
    }
    void expect_failure(Bytes bytes, ErrorCode code) {
        auto socket = connect_raw();
        auto answer = answer_to(socket, bytes);
        ASSERT_TRUE(answer);
        ASSERT_EQ(answer->kind, MessageKind::Failure);
        EXPECT_EQ(decode_failure(answer->fields).code(), code);
    }
};

TEST_F(HostileTest, MalformedMessagesAreRefusedAndTheNextClientIsServed) {
    make_server();
    m_server->start();
    ByteVector const body(40, std::byte{1});
    expect_failure(packet(2, 1, 1, 0, {}), ErrorCode::Unsupported);
    expect_failure(packet(k_version, 1, 1, 0, {}, 0x12345678), ErrorCode::Corrupt);
    expect_failure(packet(k_version, 9, 1, 0, {}), ErrorCode::Corrupt);       // kind
    expect_failure(packet(k_version, 2, 1, 0, {}), ErrorCode::Corrupt);       // an answer
    expect_failure(packet(k_version, 1, 999, 0, {}), ErrorCode::Unsupported); // type
    expect_failure(packet(k_version, 1, 1, 0x80, {}), ErrorCode::Corrupt);    // flags
    expect_failure(packet(k_version, 1, 1, 1, body), ErrorCode::Corrupt);     // a key that is not wanted
    expect_failure(packet(k_version, 1, 1, 1, Bytes(body).first(20)), ErrorCode::Corrupt);
    expect_failure(packet(k_version, 1, 1, 2, {}), ErrorCode::Corrupt); // a descriptor that is not there
    expect_failure(packet(k_version, 1, 1, 0, body), ErrorCode::Corrupt);
    for (size_t size : {1U, 4U, 19U}) expect_failure(Bytes(status_request()).first(size), ErrorCode::Corrupt);
    auto longer = status_request();
    longer.push_back(std::byte{0});
    expect_failure(longer, ErrorCode::Corrupt); // the size is not that of the packet
    EXPECT_TRUE(ask_status());
}

TEST_F(HostileTest, OversizedMessagesAreRefused) {
    make_server();
    m_server->start();
    for (size_t size : {k_max_fields + 1, k_max_fields + 33, size_t{150'000}})
        expect_failure(packet(k_version, 1, 1, 0, ByteVector(size)), ErrorCode::Corrupt);
    EXPECT_TRUE(ask_status());
}

TEST_F(HostileTest, UnwantedDescriptorsAreClosed) {
    make_server();
    m_server->start();
    std::array<int, 2> pipe{};
    ASSERT_EQ(::pipe(pipe.data()), 0);
    UniqueFd read_end(pipe[0]);
    UniqueFd write_end(pipe[1]);
    auto socket = connect_raw();
    // Twice: announced, and more than one.
    for (uint16_t flags : {uint16_t{0}, uint16_t{2}}) {
        auto bytes = packet(k_version, 1, 1, flags, {});
        iovec part{bytes.data(), bytes.size()};
        std::array<int, 3> descriptors{write_end.get(), write_end.get(), write_end.get()};
        alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof descriptors)> control{};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        auto* head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof descriptors);
        std::memcpy(CMSG_DATA(head), descriptors.data(), sizeof descriptors);
        auto one = connect_raw();
        ASSERT_GT(::sendmsg(one.get(), &message, MSG_NOSIGNAL), 0);
        auto answer = answer_to(one, {});
        ASSERT_TRUE(answer);
        EXPECT_EQ(answer->kind, MessageKind::Failure);
    }
    // The pipe ends for its reader, so the server keeps no copy of the other end.
    write_end.reset();
    pollfd watched{read_end.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&watched, 1, 30'000), 1);
    EXPECT_TRUE(watched.revents & POLLHUP);
}

TEST_F(HostileTest, ASilentClientIsLetGoAndHoldsNobodyUp) {
    make_server({.idle = 200 * k_ns_per_ms, .send = 100 * k_ns_per_ms});
    m_server->start();
    auto silent = connect_raw();
    EXPECT_TRUE(ask_status());
    EXPECT_FALSE(answer_to(silent, {})); // closed
}

TEST_F(HostileTest, AClientThatDoesNotReadIsLetGo) {
    make_server({.idle = 30 * k_ns_per_s, .send = 50 * k_ns_per_ms});
    m_server->on<StopRequest>([](StopRequest const&, Conversation& conversation) -> Result<NoAnswer> {
        for (int i = 0; i < 1000; ++i) conversation.progress(1, 2, "lost where nobody reads");
        return NoAnswer{};
    });
    m_server->start();
    auto deaf = connect_raw();
    FieldWriter fields;
    bool force = true;
    fields.required(1, force);
    auto const request = packet(k_version, 1, 2, 0, std::move(fields).take());
    for (int i = 0; i < 20; ++i) ::send(deaf.get(), request.data(), request.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    EXPECT_TRUE(ask_status());
    pollfd closed{deaf.get(), POLLRDHUP, 0};
    ASSERT_EQ(::poll(&closed, 1, 30'000), 1);
    // What fitted is there to be read, then the end.
    size_t got = 0;
    for (auto message = answer_to(deaf, {}); message; message = answer_to(deaf, {})) ++got;
    EXPECT_GT(got, 0U);
    EXPECT_LT(got, 1000U);
}

TEST_F(HostileTest, AFloodOfClientsIsBounded) {
    make_server();
    m_server->start();
    std::vector<UniqueFd> flood;
    for (size_t i = 0; i < Server::k_max_clients; ++i) {
        flood.push_back(connect_raw());
        EXPECT_TRUE(answer_to(flood.back(), status_request()));
    }
    auto refused = ask_status();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::Busy) << refused.error().message();
    // Those that are there are served on, and a place that becomes free is given away.
    EXPECT_TRUE(answer_to(flood.front(), status_request()));
    flood.clear();
    bool served = false;
    for (int i = 0; i < 200 && !served; ++i) {
        served = ask_status().has_value();
        if (!served) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    EXPECT_TRUE(served);
}

TEST_F(HostileTest, AFloodOfRequestsEndsTheConnection) {
    make_server();
    m_server->start();
    auto socket = connect_raw();
    unsigned answers = 0;
    auto const request = status_request();
    for (unsigned i = 0; i < Server::k_max_requests + 5; ++i) {
        if (::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) break;
        pollfd watched{socket.get(), POLLIN, 0};
        ASSERT_EQ(::poll(&watched, 1, 30'000), 1);
        auto message = receive(socket.get());
        if (!message || !*message) break;
        ++answers;
    }
    EXPECT_EQ(answers, Server::k_max_requests);
    EXPECT_TRUE(ask_status());
}

TEST_F(HostileTest, AClientThatGoesInTheMiddleCancelsItsRequest) {
    make_server();
    Gate ended;
    Gate begun;
    m_server->on<StopRequest>([&](StopRequest const&, Conversation& conversation) -> Result<NoAnswer> {
        begun.open();
        while (!conversation.cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        ended.open();
        return make_error(ErrorCode::Cancelled, "cancelled");
    });
    m_server->start();
    auto socket = connect_raw();
    FieldWriter fields;
    bool force = false;
    fields.required(1, force);
    auto const request = packet(k_version, 1, 2, 0, std::move(fields).take());
    ASSERT_GT(::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL), 0);
    begun.wait();
    socket.reset();
    ended.wait();
    EXPECT_TRUE(ask_status());
}

// Another user cannot reach the socket for its folder's mode; were that not so, it would not be heard either.
TEST_F(HostileTest, AnotherUserIsNotHeard) {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
    make_server();
    m_server->start();
    auto path = socket_path();
    pid_t const child = ::fork();
    if (child == 0) {
        constexpr uid_t k_nobody = 65534;
        auto become_other = [] {
            return ::setgroups(0, nullptr) == 0 && ::setgid(k_nobody) == 0 && ::setuid(k_nobody) == 0;
        };
        if (!become_other()) ::_exit(1);
        UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
        auto address = *unix_address(path.native());
        // SAFETY: as above.
        auto const* generic = reinterpret_cast<sockaddr const*>(&address);
        if (::connect(socket.get(), generic, sizeof address) == 0 || errno != EACCES) ::_exit(2);
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);

    for (auto open = path.parent_path(); open != m_folder.path().parent_path(); open = open.parent_path())
        ::chmod(open.c_str(), 0755);
    ::chmod(path.c_str(), 0666);
    std::array<int, 2> report{};
    ASSERT_EQ(::pipe(report.data()), 0);
    pid_t const other = ::fork();
    if (other == 0) {
        constexpr uid_t k_nobody = 65534;
        if (::setgroups(0, nullptr) != 0 || ::setgid(k_nobody) != 0 || ::setuid(k_nobody) != 0) ::_exit(1);
        UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
        auto address = *unix_address(path.native());
        // SAFETY: as above.
        if (::connect(socket.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address) != 0) ::_exit(3);
        auto const bytes = status_request();
        [[maybe_unused]] auto sent = ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        pollfd watched{socket.get(), POLLIN, 0};
        ::poll(&watched, 1, 30'000);
        auto message = receive(socket.get());
        if (!message || !*message) ::_exit(4);
        ::_exit((*message)->kind == MessageKind::Failure &&
                        decode_failure((*message)->fields).code() == ErrorCode::Permission
                    ? 0
                    : 5);
    }
    ::waitpid(other, &status, 0);
    EXPECT_EQ(status, 0);
}

// A server of another user is not talked to: a key would go to it.
TEST_F(HostileTest, AServerOfAnotherUserIsNotTrusted) {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
    make_server();
    m_server.reset(); // leaves the folder
    auto const path = socket_path();
    std::array<int, 2> ready{};
    std::array<int, 2> done{};
    ASSERT_EQ(::pipe(ready.data()), 0);
    ASSERT_EQ(::pipe(done.data()), 0);
    // Bound by root, so that the folder stays as it must be; the one that listens counts.
    UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    auto address = *unix_address(path.native());
    // SAFETY: as above.
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address), 0);
    pid_t const child = ::fork();
    if (child == 0) {
        if (::setuid(65534) != 0 || ::listen(listener.get(), 4) != 0) ::_exit(1);
        char byte = 0;
        if (::write(ready[1], &byte, 1) != 1 || ::close(done[1]) != 0) ::_exit(2);
        [[maybe_unused]] auto waited = ::read(done[0], &byte, 1);
        ::_exit(0);
    }
    char byte = 0;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    auto client = Client::connect(m_location);
    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().code(), ErrorCode::Permission) << client.error().message();
    ::close(done[1]);
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
}

// Everything a server may say, cut at every length and with every byte changed, is an answer or an error to the client.
TEST_F(HostileTest, AServerThatTalksNonsenseIsAnErrorAtTheClient) {
    make_server();
    m_server.reset();
    Message answer;
    answer.kind = MessageKind::Answer;
    answer.type = RequestType::Status;
    answer.number = 1;
    answer.fields = encode_fields(StatusAnswer{"soft", 1, 2, RunState::Running});
    std::array<int, 2> pair{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair.data()), 0);
    UniqueFd left(pair[0]);
    UniqueFd right(pair[1]);
    ASSERT_TRUE(control::send(left.get(), answer, 0));
    ByteVector sound(4096);
    auto const size = ::recv(right.get(), sound.data(), sound.size(), 0);
    ASSERT_GT(size, 0);
    sound.resize(static_cast<size_t>(size));

    UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    auto address = *unix_address(socket_path().native());
    // SAFETY: as above.
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(listener.get(), 4), 0);
    unsigned answers = 0;
    unsigned errors = 0;
    auto try_with = [&](Bytes bytes) {
        std::thread server([&] {
            UniqueFd socket(::accept(listener.get(), nullptr, nullptr));
            ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        });
        auto status = ask_status();
        server.join();
        ++(status ? answers : errors);
    };
    try_with(sound);
    EXPECT_EQ(answers, 1U);
    for (size_t cut = 1; cut < sound.size(); ++cut) try_with(Bytes(sound).first(cut));
    EXPECT_EQ(answers, 1U);
    for (size_t at = 0; at < sound.size(); ++at) {
        auto changed = sound;
        changed[at] ^= std::byte{0x40};
        try_with(changed);
    }
    EXPECT_GT(errors, 2 * k_header_size);
}

} // namespace
} // namespace coffer::vmm::control::tests
