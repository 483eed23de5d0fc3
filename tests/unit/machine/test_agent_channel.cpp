#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.hpp"
#include "vmm/machine/agent_channel.hpp"

namespace coffer::tests {
namespace {

using namespace vmm;
using agent::FrameType;

std::string text_of(Bytes bytes) {
    std::string text;
    for (std::byte b : bytes) text += static_cast<char>(b);
    return text;
}

ByteVector frame(FrameType type, Bytes payload) {
    ByteVector result(6);
    store_le<uint32_t>(result, 0, static_cast<uint32_t>(payload.size()));
    store_le<uint16_t>(result, 4, static_cast<uint16_t>(type));
    append(result, payload);
    return result;
}

ByteVector words(std::initializer_list<uint32_t> values, std::string_view text = {}) {
    ByteVector result;
    for (uint32_t value : values) append(result, object_bytes(value));
    append(result, as_bytes(text));
    return result;
}

struct Recorder {
    std::string output;
    std::string errors;
    std::vector<int> exits;
    std::vector<std::string> failures;
    unsigned hellos = 0;
    AgentChannel::Callbacks callbacks() {
        return {
            .on_hello = [this](uint16_t) { ++hellos; },
            .on_output = [this](AgentStream stream,
                                Bytes bytes) { (stream == AgentStream::Output ? output : errors) += text_of(bytes); },
            .on_exit = [this](int code) { exits.push_back(code); },
            .on_failure = [this](std::string_view what) { failures.emplace_back(what); }};
    }
};

struct AgentDecoder : ::testing::Test {
    Recorder seen;
    ByteVector sent;
    size_t room = SIZE_MAX;
    AgentChannel channel{seen.callbacks(), [this](Bytes bytes) {
                             size_t size = std::min(room, bytes.size());
                             append(sent, bytes.first(size));
                             room -= size;
                             return size;
                         }};
    void hello() {
        channel.port_opened(true);
        uint16_t version = agent::k_version;
        channel.write(frame(FrameType::Hello, object_bytes(version)));
        ASSERT_TRUE(channel.idle());
    }
};

TEST_F(AgentDecoder, RunsACommandInAnyPieces) {
    EXPECT_EQ(channel.exec("x").error().code(), ErrorCode::Busy);
    hello();
    ASSERT_TRUE(channel.exec("echo hi").has_value());
    EXPECT_EQ(sent, frame(FrameType::Exec, words({1}, "echo hi")));
    EXPECT_FALSE(channel.exec("second").has_value());
    ByteVector stream = frame(FrameType::Stdout, words({1}, "hi\n"));
    append(stream, frame(FrameType::Stderr, words({1}, "oh")));
    append(stream, frame(static_cast<FrameType>(999), words({5})));
    append(stream, frame(FrameType::Stdout, words({7}, "of another command")));
    append(stream, frame(FrameType::Exit, words({1, 0, 3})));
    for (std::byte b : stream) channel.write(Bytes(&b, 1));
    EXPECT_EQ(seen.output, "hi\n");
    EXPECT_EQ(seen.errors, "oh");
    EXPECT_EQ(seen.exits, std::vector<int>{3});
    ASSERT_TRUE(channel.exec("again").has_value());
    channel.write(frame(FrameType::Exit, words({2, 1, 9})));
    EXPECT_EQ(seen.exits.back(), 137);
    channel.write(frame(FrameType::Exit, words({2, 0, 0})));
    EXPECT_EQ(seen.exits.size(), 2U) << "an Exit without a command";
}

TEST_F(AgentDecoder, KeepsWhatThePortHasNoRoomFor) {
    hello();
    room = 5;
    ASSERT_TRUE(channel.exec("abc").has_value());
    EXPECT_EQ(sent.size(), 5U);
    room = SIZE_MAX;
    channel.pump();
    EXPECT_EQ(sent, frame(FrameType::Exec, words({1}, "abc")));
}

TEST_F(AgentDecoder, CommandsAreBounded) {
    hello();
    EXPECT_EQ(channel.exec("").error().code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(channel.exec(std::string(agent::k_max_command + 1, 'x')).error().code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(channel.exec(std::string_view("a\0b", 3)).error().code(), ErrorCode::InvalidArgument);
    EXPECT_TRUE(channel.exec(std::string(agent::k_max_command, 'x')).has_value());
}

TEST_F(AgentDecoder, HostileStreamsFailTheCommandOnce) {
    for (auto const& bad : {ByteVector(8, std::byte{0xFF}), frame(FrameType::Exit, words({1})),
                            frame(FrameType::Stdout, {}), frame(FrameType::Error, {}), frame(FrameType::Hello, {})}) {
        seen.failures.clear();
        hello();
        ASSERT_TRUE(channel.exec("x").has_value());
        channel.write(bad);
        EXPECT_EQ(seen.failures.size(), 1U);
        EXPECT_FALSE(channel.idle());
        uint16_t version = agent::k_version;
        channel.write(frame(FrameType::Hello, object_bytes(version)));
        EXPECT_FALSE(channel.idle()) << "a broken stream stays broken until the port is opened again";
        channel.port_opened(false);
        EXPECT_EQ(seen.failures.size(), 1U);
    }
    hello();
    ASSERT_TRUE(channel.exec("x").has_value());
    channel.port_opened(false);
    EXPECT_EQ(seen.failures.size(), 2U);
    hello();
    ASSERT_TRUE(channel.exec("x").has_value());
    channel.write(frame(FrameType::Error, words({7}, "\x1b[2Jno shell")));
    EXPECT_EQ(seen.failures.back(), "the guest's agent says: ?[2Jno shell");
    EXPECT_TRUE(channel.idle());
}

TEST_F(AgentDecoder, AnotherVersionIsRefused) {
    channel.port_opened(true);
    uint16_t version = 2;
    channel.write(frame(FrameType::Hello, object_bytes(version)));
    EXPECT_FALSE(channel.idle());
    EXPECT_EQ(seen.hellos, 0U);
    EXPECT_EQ(seen.failures.size(), 1U);
}

// The program itself, over a socket pair. COFFER_AGENT names it.
struct RealAgent : ::testing::Test {
    UniqueFd ours;
    pid_t pid = -1;
    Recorder seen;
    AgentChannel channel{seen.callbacks(), [this](Bytes bytes) -> size_t {
                             ssize_t sent = ::send(ours.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
                             return sent < 0 ? 0 : static_cast<size_t>(sent);
                         }};

    void SetUp() override {
        char const* program = std::getenv("COFFER_AGENT");
        ASSERT_NE(program, nullptr) << "run by meson test";
        int pair[2];
        ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        ours = UniqueFd(pair[0]);
        UniqueFd theirs(pair[1]);
        pid = ::fork();
        ASSERT_GE(pid, 0);
        if (pid == 0) {
            ::fcntl(theirs.get(), F_SETFD, 0);
            std::string number = std::to_string(theirs.get());
            ::execl(program, program, "--fd", number.c_str(), nullptr);
            ::_exit(127);
        }
        channel.port_opened(true);
        ASSERT_TRUE(until([this] { return channel.idle(); }));
    }
    void TearDown() override {
        ours.reset();
        if (pid > 0) ::waitpid(pid, nullptr, 0);
    }
    // Passes bytes on until `done`, ten seconds at most.
    template <class F>
    bool until(F&& done) {
        auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
        while (!done() && std::chrono::steady_clock::now() < end) {
            pollfd fd{ours.get(), POLLIN, 0};
            ::poll(&fd, 1, 20);
            channel.pump();
            if (fd.revents == 0) continue;
            std::array<std::byte, 5000> buffer;
            ssize_t got = ::recv(ours.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
            if (got == 0) return done();
            if (got > 0) channel.write(Bytes(buffer).first(static_cast<size_t>(got)));
        }
        return done();
    }
    int run(std::string_view command) {
        seen.exits.clear();
        seen.output.clear();
        seen.errors.clear();
        auto started = channel.exec(command);
        EXPECT_TRUE(started.has_value()) << started.error().message();
        EXPECT_TRUE(until([this] { return !seen.exits.empty() || !seen.failures.empty(); }));
        return seen.exits.empty() ? -1 : seen.exits[0];
    }
    int exit_status() {
        int status = 0;
        EXPECT_EQ(::waitpid(pid, &status, 0), pid);
        pid = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
};

TEST_F(RealAgent, GivesOutputAndExitCodes) {
    EXPECT_EQ(run("echo out; echo err >&2; exit 7"), 7);
    EXPECT_EQ(seen.output, "out\n");
    EXPECT_EQ(seen.errors, "err\n");
    EXPECT_EQ(run("true"), 0);
    EXPECT_EQ(run("kill -TERM $$"), 143);
    EXPECT_EQ(run("cat"), 0) << "standard input is empty";
    EXPECT_EQ(run("no-such-program-anywhere"), 127);
    EXPECT_EQ(run(": " + std::string(agent::k_max_command - 2, 'x')), 0);
}

TEST_F(RealAgent, KeepsAllOfMuchOutput) {
    EXPECT_EQ(run("head -c 3000000 /dev/zero | tr '\\0' 'z'; echo end >&2"), 0);
    EXPECT_EQ(seen.output.size(), 3'000'000U);
    EXPECT_EQ(seen.output.find_first_not_of('z'), std::string::npos);
    EXPECT_EQ(seen.errors, "end\n");
}

TEST_F(RealAgent, DoesNotWaitForWhatACommandLeavesBehind) {
    auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(run("echo now; sleep 8 & exit 0"), 0);
    EXPECT_EQ(seen.output, "now\n");
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST_F(RealAgent, HelloEndsARunningCommand) {
    ASSERT_TRUE(channel.exec("echo started; sleep 100").has_value());
    ASSERT_TRUE(until([this] { return seen.output == "started\n"; }));
    uint16_t version = agent::k_version;
    ByteVector hello = frame(FrameType::Hello, object_bytes(version));
    ASSERT_EQ(::send(ours.get(), hello.data(), hello.size(), MSG_NOSIGNAL), static_cast<ssize_t>(hello.size()));
    ASSERT_TRUE(until([this] { return seen.hellos == 2; }));
    EXPECT_EQ(seen.failures.size(), 1U);
    seen.failures.clear();
    EXPECT_EQ(run("echo fine"), 0);
    EXPECT_EQ(seen.output, "fine\n");
}

TEST_F(RealAgent, ShutdownEndsIt) {
    ASSERT_TRUE(channel.shutdown().has_value());
    EXPECT_EQ(exit_status(), 0);
}

TEST_F(RealAgent, ALostHostEndsItAndItsCommand) {
    ASSERT_TRUE(channel.exec("echo $$; exec sleep 100").has_value());
    ASSERT_TRUE(until([this] { return seen.output.ends_with("\n"); }));
    int command = std::stoi(seen.output);
    ours.reset();
    EXPECT_EQ(exit_status(), 0);
    EXPECT_EQ(::kill(command, 0), -1);
}

TEST_F(RealAgent, BrokenFramesEndTheStream) {
    ByteVector bad(6, std::byte{0xFF});
    ASSERT_EQ(::send(ours.get(), bad.data(), bad.size(), MSG_NOSIGNAL), 6);
    EXPECT_EQ(exit_status(), 1);
}

} // namespace
} // namespace coffer::tests
