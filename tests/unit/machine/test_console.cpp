#include "vmm/machine/console.hpp"

#include <gtest/gtest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

namespace coffer::vmm {
namespace {

std::string text(ByteVector const& bytes) {
    std::string result;
    for (std::byte b : bytes) result.push_back(static_cast<char>(b));
    return result;
}

TEST(ConsoleKeys, EscapeLeadsCommands) {
    int quits = 0;
    int helps = 0;
    ConsoleKeys keys({.quit = [&] { ++quits; }, .help = [&] { ++helps; }});
    EXPECT_EQ(text(keys.filter(as_bytes("ls\r"))), "ls\r");
    EXPECT_EQ(text(keys.filter(as_bytes("a\x01"))), "a");
    EXPECT_EQ(text(keys.filter(as_bytes("\x01z"))), "\x01z");
    EXPECT_EQ(quits, 0);
    EXPECT_EQ(text(keys.filter(as_bytes("\x01h\x01x"))), "");
    EXPECT_EQ(helps, 1);
    EXPECT_EQ(quits, 1);
}

TEST(OutputThread, WritesEverythingBeforeItEnds) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    UniqueFd reader(ends[0]);
    std::string received;
    std::thread drain([&] {
        char buffer[4096];
        ssize_t count;
        while ((count = ::read(reader.get(), buffer, sizeof buffer)) > 0)
            received.append(buffer, static_cast<size_t>(count));
    });
    {
        OutputThread output(UniqueFd(ends[1]), "pipe");
        ByteVector block(70'000, std::byte{'x'});
        for (int i = 0; i < 40; ++i) output.write(block);
    }
    drain.join();
    EXPECT_EQ(received.size(), 40U * 70'000U);
}

TEST(RawTerminal, RestoresWhatItFound) {
    int master = -1;
    int slave = -1;
    ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
    UniqueFd hold_master(master), hold_slave(slave);
    termios before{}, during{}, after{};
    ::tcgetattr(slave, &before);
    {
        auto raw = RawTerminal::enter(slave);
        ASSERT_TRUE(raw);
        ASSERT_TRUE(*raw);
        ::tcgetattr(slave, &during);
        EXPECT_EQ(during.c_lflag & (ICANON | ECHO | ISIG), 0U);
    }
    ::tcgetattr(slave, &after);
    EXPECT_EQ(after.c_lflag, before.c_lflag);
    EXPECT_EQ(after.c_iflag, before.c_iflag);
}

TEST(RawTerminal, RestoresWhenTheProcessCrashes) {
    int master = -1;
    int slave = -1;
    ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
    UniqueFd hold_master(master), hold_slave(slave);
    termios before{}, after{};
    ::tcgetattr(slave, &before);
    pid_t child = ::fork();
    if (child == 0) {
        auto raw = RawTerminal::enter(slave);
        if (!raw || !*raw) ::_exit(3);
        ::abort();
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), SIGABRT);
    ::tcgetattr(slave, &after);
    EXPECT_EQ(after.c_lflag, before.c_lflag);
}

TEST(RawTerminal, AFileIsNoTerminal) {
    auto raw = RawTerminal::enter(-1);
    ASSERT_TRUE(raw);
    EXPECT_FALSE(*raw);
}

} // namespace
} // namespace coffer::vmm
