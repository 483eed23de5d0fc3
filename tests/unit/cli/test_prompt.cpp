// Passphrases typed at a terminal: never echoed, and the terminal is put back.
#include <array>
#include <chrono>
#include <string>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/file.hpp"
#include "tests/support/temp_folder.hpp"
#include "vmm/cli/exit_codes.hpp"

namespace coffer::cli {
namespace {

// The program with a pseudo-terminal as its controlling terminal.
class OnTerminal {
public:
    OnTerminal(std::filesystem::path const& folder, std::vector<std::string> arguments) {
        m_master = UniqueFd(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
        ::grantpt(m_master.get());
        ::unlockpt(m_master.get());
        char name[64] = {};
        ::ptsname_r(m_master.get(), name, sizeof name);
        // Kept open here, so that its settings can be looked at when the program is gone.
        m_terminal = UniqueFd(::open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
        arguments.insert(arguments.begin(), "coffer");
        m_child = ::fork();
        if (m_child != 0) return;
        ::setsid();
        int const terminal = ::open(name, O_RDWR);
        ::ioctl(terminal, TIOCSCTTY, 0);
        for (int fd : {0, 1, 2}) ::dup2(terminal, fd);
        ::setenv("COFFER_HOME", (folder / "root").c_str(), 1);
        ::setenv("XDG_STATE_HOME", (folder / "state").c_str(), 1);
        std::vector<char*> pointers;
        for (auto& argument : arguments) pointers.push_back(argument.data());
        pointers.push_back(nullptr);
        ::execv(COFFER_PROGRAM, pointers.data());
        ::_exit(126);
    }
    ~OnTerminal() {
        if (m_child > 0) {
            ::kill(m_child, SIGKILL);
            ::waitpid(m_child, nullptr, 0);
        }
    }

    // Types `keys` once the program has said `prompt` (again).
    void answer(std::string_view prompt, std::string_view keys) {
        read_until([&] { return m_said.find(prompt, m_answered) != std::string::npos; });
        ASSERT_NE(m_said.find(prompt, m_answered), std::string::npos) << m_said;
        m_answered = m_said.size();
        EXPECT_FALSE(echoes());
        ASSERT_TRUE(write_all(m_master.get(), as_bytes(keys), "terminal"));
    }
    int wait() {
        int status = 0;
        read_until([&] {
            if (::waitpid(m_child, &status, WNOHANG) != m_child) return false;
            m_child = -1;
            return true;
        });
        EXPECT_EQ(m_child, -1) << "did not end; said: " << m_said;
        read_until([] { return false; }, std::chrono::milliseconds(50));
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    bool echoes() const {
        termios settings{};
        EXPECT_EQ(::tcgetattr(m_terminal.get(), &settings), 0);
        return (settings.c_lflag & ECHO) != 0 && (settings.c_lflag & ICANON) != 0;
    }
    std::string const& said() const { return m_said; }

private:
    template <class Done>
    void read_until(Done done, std::chrono::milliseconds limit = std::chrono::seconds(30)) {
        auto const end = std::chrono::steady_clock::now() + limit;
        while (!done() && std::chrono::steady_clock::now() < end) {
            pollfd readable{m_master.get(), POLLIN, 0};
            if (::poll(&readable, 1, 10) <= 0 || (readable.revents & POLLIN) == 0) continue;
            std::array<char, 4096> buffer{};
            ssize_t const size = ::read(m_master.get(), buffer.data(), buffer.size());
            if (size > 0) m_said.append(buffer.data(), static_cast<size_t>(size));
        }
    }

    UniqueFd m_master;
    UniqueFd m_terminal;
    pid_t m_child = -1;
    std::string m_said;
    size_t m_answered = 0;
};

class Prompt : public testing::Test {
protected:
    int add(std::string_view first, std::string_view second, std::string* said = nullptr) {
        OnTerminal program(m_folder.path(), {"provider", "add", "native", "typed", "--ask-passphrase"});
        program.answer("New passphrase: ", first);
        if (!second.empty()) program.answer("again: ", second);
        int const code = program.wait();
        EXPECT_TRUE(program.echoes()) << "the terminal was left without echo";
        if (said) *said = program.said();
        return code;
    }

    tests::TempFolder m_folder;
};

TEST_F(Prompt, IsReadWithoutEchoAndOpensTheProvider) {
    std::string said;
    // Typed with a slip that is taken back, and a whole line that is.
    ASSERT_EQ(add("nonsense\x15"
                  "correct hirs\x7f\x7f\x7forse\r",
                  "correct horse\r", &said),
              0)
        << said;
    for (auto const* part : {"nonsense", "correct", "hirs"}) EXPECT_EQ(said.find(part), std::string::npos) << said;
    OnTerminal create(m_folder.path(), {"create", "vm"});
    create.answer("passphrase of key provider 'typed': ", "correct horse\r");
    EXPECT_EQ(create.wait(), 0) << create.said();
    EXPECT_TRUE(create.echoes());
    EXPECT_EQ(create.said().find("correct"), std::string::npos);
}

TEST_F(Prompt, MustBeTypedAlikeTwice) {
    std::string said;
    EXPECT_EQ(add("one\r", "two\r", &said), to_int(ExitCode::Usage));
    EXPECT_NE(said.find("differ"), std::string::npos) << said;
    EXPECT_EQ(add("\r", "", &said), to_int(ExitCode::Usage));
    EXPECT_NE(said.find("empty"), std::string::npos) << said;
}

TEST_F(Prompt, CtrlCEndsItAndPutsTheTerminalBack) {
    EXPECT_EQ(add("half of it\x03", ""), to_int(ExitCode::Cancelled));
    EXPECT_FALSE(std::filesystem::exists(m_folder.path() / "root" / "providers"));
}

} // namespace
} // namespace coffer::cli
