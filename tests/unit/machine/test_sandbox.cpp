#include "vmm/machine/sandbox.hpp"

#include <cerrno>
#include <fcntl.h>
#include <functional>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace coffer::vmm {
namespace {

// Runs `check` in a child that has entered the sandbox; its result is the child's exit code.
int in_sandbox(std::function<int()> const& check) {
    pid_t child = ::fork();
    if (child == 0) {
        if (!enter_sandbox()) ::_exit(99);
        ::_exit(check());
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 200;
}

TEST(Sandbox, StartsNoPrograms) {
    EXPECT_EQ(in_sandbox([] {
                  char* argv[] = {const_cast<char*>("/bin/true"), nullptr};
                  ::execv("/bin/true", argv);
                  return errno == EPERM ? 0 : 1;
              }),
              0);
    EXPECT_EQ(in_sandbox([] { return ::fork() < 0 && errno == EPERM ? 0 : 1; }), 0);
}

TEST(Sandbox, OpensNoSockets) {
    EXPECT_EQ(in_sandbox([] { return ::socket(AF_INET, SOCK_STREAM, 0) < 0 && errno == EPERM ? 0 : 1; }), 0);
}

// The control socket's: clients of a socket that was made before come in, and nothing goes out.
TEST(Sandbox, ServesASocketThatWasMadeBeforeAndConnectsNowhere) {
    auto address = [] {
        sockaddr_un own{};
        own.sun_family = AF_UNIX; // bound by its family alone: an abstract name of the kernel's choice (unix(7))
        return own;
    }();
    int const listener = ::socket(AF_UNIX, SOCK_SEQPACKET, 0);
    // SAFETY: the sockets API takes any address type by a pointer to its common head.
    ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)), 0);
    ASSERT_EQ(::listen(listener, 4), 0);
    socklen_t size = sizeof address;
    // SAFETY: as above.
    ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
    int const client = ::socket(AF_UNIX, SOCK_SEQPACKET, 0);
    int const other = ::socket(AF_UNIX, SOCK_SEQPACKET, 0);
    // SAFETY: as above.
    auto const* generic = reinterpret_cast<sockaddr const*>(&address);
    ASSERT_EQ(::connect(client, generic, size), 0);
    EXPECT_EQ(in_sandbox([&] {
                  if (::connect(other, generic, size) == 0 || errno != EPERM) return 1;
                  int const accepted = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
                  if (accepted < 0) return 2;
                  char byte = 'x';
                  iovec part{&byte, 1};
                  msghdr message{};
                  message.msg_iov = &part;
                  message.msg_iovlen = 1;
                  return ::sendmsg(accepted, &message, MSG_NOSIGNAL) == 1 ? 0 : 3;
              }),
              0);
    char byte = 0;
    EXPECT_EQ(::read(client, &byte, 1), 1);
    EXPECT_EQ(byte, 'x');
    for (int fd : {listener, client, other}) ::close(fd);
}

TEST(Sandbox, MakesNoExecutableMemory) {
    EXPECT_EQ(in_sandbox([] {
                  void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                  if (memory == MAP_FAILED) return 1;
                  if (::mprotect(memory, 4096, PROT_READ | PROT_EXEC) == 0) return 2;
                  return ::mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED
                             ? 0
                             : 3;
              }),
              0);
}

TEST(Sandbox, LetsThreadsAndFilesBe) {
    EXPECT_EQ(in_sandbox([] {
                  int seen = 0;
                  std::thread thread([&] { seen = ::open("/dev/null", O_RDWR) >= 0 ? 1 : 0; });
                  thread.join();
                  return seen == 1 ? 0 : 1;
              }),
              0);
}

} // namespace
} // namespace coffer::vmm
