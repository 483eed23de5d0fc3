// coffer-agent: runs commands in the guest for `coffer run --exec` (docs/formats/agent.md).
//
// One thread around poll(2), no allocation after start, and no C++ runtime library, so that the static program stays
// small. At most one command runs; output is read from it only when the port has taken what came before.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/agent_protocol.hpp"

namespace {

using namespace coffer::agent;

constexpr size_t k_output_piece = 16 * 1024;
constexpr int k_retry_ms = 100;
constexpr int k_port_wait_ms = 10'000; // drivers are loaded by the time init starts the agent, ports follow soon

int g_child_events[2] = {-1, -1};

void on_child(int) {
    int saved = errno;
    // A full pipe already says what this would.
    [[maybe_unused]] ssize_t ignored = write(g_child_events[1], "", 1);
    errno = saved;
}

void say(char const* what) {
    fprintf(stderr, "coffer-agent: %s\n", what);
}

void pause_ms(int milliseconds) {
    timespec time{milliseconds / 1000, (milliseconds % 1000) * 1'000'000L};
    nanosleep(&time, nullptr);
}

void store16(unsigned char* to, uint16_t value) {
    memcpy(to, &value, sizeof value);
}
void store32(unsigned char* to, uint32_t value) {
    memcpy(to, &value, sizeof value);
}
uint32_t load32(unsigned char const* from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

bool set_nonblocking(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

// The port's device file, by the name in sysfs. False: there is none (yet).
bool find_port(char* path, size_t size) {
    DIR* folder = opendir("/sys/class/virtio-ports");
    if (!folder) return false;
    bool found = false;
    while (dirent* entry = found ? nullptr : readdir(folder)) {
        if (entry->d_name[0] == '.' || strlen(entry->d_name) > 64) continue;
        char file[128];
        snprintf(file, sizeof file, "/sys/class/virtio-ports/%.64s/name", entry->d_name);
        int fd = open(file, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        char name[64] = {};
        ssize_t length = read(fd, name, sizeof name - 1);
        close(fd);
        if (length <= 0) continue;
        name[strcspn(name, "\n")] = 0;
        found = strcmp(name, k_port_name) == 0;
        if (found) snprintf(path, size, "/dev/%.64s", entry->d_name);
    }
    closedir(folder);
    return found;
}

class Agent {
public:
    enum class End { PortLost, BadStream, Shutdown };
    // Serves the port until it is lost, breaks, or the host asks for the end.
    End serve(int port);

private:
    struct Output {
        int fd = -1;
        FrameType type = FrameType::Stdout;
    };

    bool receive();
    bool handle(FrameType type, unsigned char const* payload, uint32_t length);
    void exec(uint32_t id, unsigned char const* command, uint32_t length);
    void run_child(char const* command, int out, int err);
    void kill_child();
    void reap();
    bool drain(Output& output);
    bool fill();
    bool flush();
    void put_frame(FrameType type, uint32_t const* words, unsigned count, void const* bytes, uint32_t length);
    void report_error(uint32_t id, char const* text);
    void close_outputs();

    int m_port = -1;
    bool m_shutdown = false;

    pid_t m_child = -1;
    uint32_t m_id = 0;     // of the command, while it runs or its Exit is unsent
    bool m_exited = false; // m_status is what it ended with
    int m_status = 0;
    Output m_outputs[2];

    // What is to be sent when the buffer is empty.
    bool m_hello_due = false;
    bool m_error_due = false;
    uint32_t m_error_id = 0;
    char const* m_error_text = "";

    unsigned char m_in[k_header_size + k_max_payload];
    size_t m_in_size = 0;
    unsigned char m_out[k_header_size + 8 + k_output_piece];
    size_t m_out_size = 0;
    size_t m_out_sent = 0;
    char m_command[k_max_command + 1];
};

void Agent::put_frame(FrameType type, uint32_t const* words, unsigned count, void const* bytes, uint32_t length) {
    uint32_t payload = count * 4 + length;
    store32(m_out, payload);
    store16(m_out + 4, static_cast<uint16_t>(type));
    for (unsigned i = 0; i < count; ++i) store32(m_out + k_header_size + 4 * i, words[i]);
    if (length != 0) memcpy(m_out + k_header_size + 4 * count, bytes, length);
    m_out_size = k_header_size + payload;
    m_out_sent = 0;
}

void Agent::report_error(uint32_t id, char const* text) {
    m_error_due = true;
    m_error_id = id;
    m_error_text = text;
}

void Agent::close_outputs() {
    for (Output& output : m_outputs) {
        if (output.fd >= 0) close(output.fd);
        output.fd = -1;
    }
}

// Ends the command without a report.
void Agent::kill_child() {
    if (m_child > 0) {
        kill(-m_child, SIGKILL);
        kill(m_child, SIGKILL); // it may not have a session of its own yet
        while (waitpid(m_child, nullptr, 0) < 0 && errno == EINTR) {
        }
    }
    m_child = -1;
    m_id = 0;
    m_exited = false;
    close_outputs();
}

// All children: processes that commands left behind become ours where the agent is init's stand-in.
void Agent::reap() {
    char events[64];
    while (read(g_child_events[0], events, sizeof events) > 0) {
    }
    int status = 0;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid != m_child) continue;
        m_child = -1;
        m_exited = true;
        m_status = status;
    }
}

[[noreturn]] void fail_child(char const* what) {
    dprintf(2, "coffer-agent: %s: %s\n", what, strerror(errno));
    _exit(127);
}

void Agent::run_child(char const* command, int out, int err) {
    setsid();
    signal(SIGPIPE, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    int null = open("/dev/null", O_RDONLY);
    if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) fail_child("cannot redirect");
    if (null > 2) close(null);
    execl("/bin/sh", "sh", "-c", command, static_cast<char*>(nullptr));
    fail_child("cannot run /bin/sh");
}

void Agent::exec(uint32_t id, unsigned char const* command, uint32_t length) {
    if (m_id != 0) return report_error(id, "a command is running already");
    if (id == 0 || memchr(command, 0, length)) return report_error(id, "the command is malformed");
    memcpy(m_command, command, length);
    m_command[length] = 0;
    int out[2];
    int err[2];
    if (pipe2(out, O_CLOEXEC) != 0) return report_error(id, "cannot make a pipe");
    if (pipe2(err, O_CLOEXEC) != 0) {
        close(out[0]);
        close(out[1]);
        return report_error(id, "cannot make a pipe");
    }
    pid_t child = fork();
    if (child == 0) run_child(m_command, out[1], err[1]);
    close(out[1]);
    close(err[1]);
    m_outputs[0] = {out[0], FrameType::Stdout};
    m_outputs[1] = {err[0], FrameType::Stderr};
    if (child < 0 || !set_nonblocking(out[0]) || !set_nonblocking(err[0])) {
        m_child = child;
        kill_child();
        return report_error(id, "cannot start a process");
    }
    m_child = child;
    m_id = id;
    m_exited = false;
}

bool Agent::handle(FrameType type, unsigned char const* payload, uint32_t length) {
    switch (type) {
    case FrameType::Hello:
        if (length != 2) return false;
        kill_child();
        m_error_due = false;
        m_hello_due = true;
        return true;
    case FrameType::Exec:
        if (length < 4) return false;
        exec(load32(payload), payload + 4, length - 4);
        return true;
    case FrameType::Shutdown: m_shutdown = true; return true;
    default: return true;
    }
}

// False: the port is lost or the stream is broken (m_in_size tells which: 0 is lost).
bool Agent::receive() {
    ssize_t got = read(m_port, m_in + m_in_size, sizeof m_in - m_in_size);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (got <= 0) {
        m_in_size = 0;
        return false;
    }
    m_in_size += static_cast<size_t>(got);
    size_t used = 0;
    while (m_in_size - used >= k_header_size && !m_shutdown) {
        uint32_t length = load32(m_in + used);
        uint16_t type;
        memcpy(&type, m_in + used + 4, sizeof type);
        if (length > k_max_payload) return false;
        if (m_in_size - used - k_header_size < length) break;
        if (!handle(static_cast<FrameType>(type), m_in + used + k_header_size, length)) return false;
        used += k_header_size + length;
    }
    memmove(m_in, m_in + used, m_in_size - used);
    m_in_size -= used;
    return true;
}

// Whether a frame of output was put in the buffer.
bool Agent::drain(Output& output) {
    static unsigned char piece[k_output_piece];
    if (output.fd < 0) return false;
    ssize_t got;
    while ((got = read(output.fd, piece, sizeof piece)) < 0 && errno == EINTR) {
    }
    if (got > 0) {
        put_frame(output.type, &m_id, 1, piece, static_cast<uint32_t>(got));
        return true;
    }
    if (got < 0 && errno == EAGAIN) return false;
    close(output.fd);
    output.fd = -1;
    return false;
}

// Puts the next frame in the empty buffer, if there is one.
bool Agent::fill() {
    if (m_hello_due) {
        unsigned char version[2];
        store16(version, k_version);
        put_frame(FrameType::Hello, nullptr, 0, version, sizeof version);
        m_hello_due = false;
        return true;
    }
    if (m_error_due) {
        put_frame(FrameType::Error, &m_error_id, 1, m_error_text, static_cast<uint32_t>(strlen(m_error_text)));
        m_error_due = false;
        return true;
    }
    if (drain(m_outputs[0]) || drain(m_outputs[1])) return true;
    // Everything that the command itself wrote is in the pipes by the time it has been reaped.
    if (!m_exited) return false;
    bool signalled = WIFSIGNALED(m_status);
    uint32_t words[3] = {m_id, static_cast<uint32_t>(signalled ? ExitKind::Signal : ExitKind::Code),
                         static_cast<uint32_t>(signalled ? WTERMSIG(m_status) : WEXITSTATUS(m_status))};
    put_frame(FrameType::Exit, words, 3, nullptr, 0);
    close_outputs();
    m_id = 0;
    m_exited = false;
    return true;
}

// False: the port is lost.
bool Agent::flush() {
    for (;;) {
        if (m_out_sent == m_out_size && !fill()) return true;
        ssize_t sent = write(m_port, m_out + m_out_sent, m_out_size - m_out_sent);
        if (sent < 0) return errno == EAGAIN || errno == EINTR;
        m_out_sent += static_cast<size_t>(sent);
    }
}

Agent::End Agent::serve(int port) {
    m_port = port;
    m_in_size = m_out_size = m_out_sent = 0;
    m_error_due = false;
    m_hello_due = true;
    End end = End::PortLost;
    for (;;) {
        if (!flush()) break;
        if (m_shutdown) {
            end = End::Shutdown;
            break;
        }
        bool blocked = m_out_sent != m_out_size;
        pollfd fds[4] = {
            {port, static_cast<short>(blocked ? POLLIN | POLLOUT : POLLIN), 0},
            {g_child_events[0], POLLIN, 0},
            {blocked ? -1 : m_outputs[0].fd, POLLIN, 0},
            {blocked ? -1 : m_outputs[1].fd, POLLIN, 0},
        };
        if (poll(fds, 4, -1) < 0 && errno != EINTR) break;
        if ((fds[0].revents & POLLIN) != 0) {
            if (!receive()) {
                end = m_in_size == 0 ? End::PortLost : End::BadStream;
                break;
            }
        } else if ((fds[0].revents & (POLLHUP | POLLERR | POLLNVAL)) != 0) {
            break;
        }
        if ((fds[1].revents & POLLIN) != 0) reap();
    }
    kill_child();
    return end;
}

[[noreturn]] void power_off() {
    if (access("/run/systemd/system", F_OK) == 0) {
        execlp("systemctl", "systemctl", "poweroff", static_cast<char*>(nullptr));
        say("cannot run systemctl; powering off directly");
    }
    sync();
    reboot(RB_POWER_OFF);
    say("cannot power off");
    _exit(1);
}

Agent g_agent;

int serve_port_by_name() {
    char path[128];
    bool found = false;
    for (int waited = 0; !(found = find_port(path, sizeof path)) && waited < k_port_wait_ms; waited += k_retry_ms)
        pause_ms(k_retry_ms);
    if (!found) {
        say("this machine has no agent port");
        return 0;
    }
    for (;;) {
        int port = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (port < 0 && errno == EBUSY) {
            say("another agent has the port");
            return 1;
        }
        if (port >= 0) {
            Agent::End end = g_agent.serve(port);
            close(port);
            if (end == Agent::End::Shutdown) power_off();
            if (end == Agent::End::BadStream) say("the host broke the protocol; starting over");
        }
        pause_ms(k_retry_ms);
    }
}

int serve_port(int port) {
    if (port < 0 || !set_nonblocking(port)) {
        say("cannot use the port that was given");
        return 1;
    }
    return g_agent.serve(port) == Agent::End::BadStream ? 1 : 0;
}

} // namespace

int main(int argc, char** argv) {
    signal(SIGPIPE, SIG_IGN);
    if (pipe2(g_child_events, O_CLOEXEC | O_NONBLOCK) != 0) {
        say("cannot make a pipe");
        return 1;
    }
    struct sigaction action {};
    action.sa_handler = on_child;
    action.sa_flags = SA_RESTART | SA_NOCLDSTOP;
    sigaction(SIGCHLD, &action, nullptr);
    if (argc == 1) return serve_port_by_name();
    if (argc == 3 && strcmp(argv[1], "--port") == 0) return serve_port(open(argv[2], O_RDWR | O_CLOEXEC));
    if (argc == 3 && strcmp(argv[1], "--fd") == 0) {
        int port = atoi(argv[2]);
        fcntl(port, F_SETFD, FD_CLOEXEC);
        return serve_port(port);
    }
    fprintf(stderr,
            "usage: coffer-agent [--port PATH | --fd N]\n"
            "Runs commands for the host over the virtio port %s. With a port given, Shutdown ends the program only.\n",
            k_port_name);
    return 2;
}
