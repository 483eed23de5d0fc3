// How long a TPM takes to answer: tpm-latency COUNT /dev/tpm0 | SOCKET. COUNT rounds of each command; a line of JSON
// with the median, the tenth and the ninetieth percentile in nanoseconds. Linked statically, so that it runs in any
// guest; a TPM's response is awaited with poll() and read(), as tpm2-tss does.
//
// tpm-latency --floor SOCKET serves, with one recv() and one send() a command, a TPM that says "success" to everything:
// no server takes less time.
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

namespace {

using Message = std::vector<uint8_t>;

constexpr uint32_t k_owner = 0x4000'0001;
constexpr uint32_t k_password = 0x4000'0009;
constexpr uint32_t k_null = 0x4000'0007;
constexpr uint16_t k_sha256 = 0x000B;

[[noreturn]] void fail(char const* what) {
    std::fprintf(stderr, "tpm-latency: %s (errno %s)\n", what, std::strerror(errno));
    std::exit(1);
}

// A command; its header's size is filled in by bytes().
class Command {
public:
    Command(bool sessions, uint32_t code) { u16(sessions ? 0x8002 : 0x8001).u32(0).u32(code); }
    Command& u8(unsigned value) {
        m_bytes.push_back(static_cast<uint8_t>(value));
        return *this;
    }
    Command& u16(unsigned value) { return u8(value >> 8 & 0xFF).u8(value & 0xFF); }
    Command& u32(uint32_t value) { return u16(value >> 16).u16(value & 0xFFFF); }
    Command& empty_password() { return u32(9).u32(k_password).u16(0).u8(1).u16(0); }
    Command& fill(unsigned size, unsigned value) {
        m_bytes.insert(m_bytes.end(), size, static_cast<uint8_t>(value));
        return *this;
    }
    Message bytes() const {
        auto all = m_bytes;
        auto size = static_cast<uint32_t>(all.size());
        for (unsigned i = 0; i < 4; ++i) all[2 + i] = static_cast<uint8_t>(size >> (24 - 8 * i));
        return all;
    }

private:
    Message m_bytes;
};

sockaddr_un address_of(char const* path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    return address;
}

class Tpm {
public:
    explicit Tpm(char const* path) {
        struct stat info {};
        if (::stat(path, &info) != 0) fail("no such TPM");
        if (S_ISSOCK(info.st_mode)) {
            m_fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
            auto const address = address_of(path);
            // SAFETY: the sockets API takes any address type by a pointer to its common head.
            if (::connect(m_fd, reinterpret_cast<sockaddr const*>(&address), sizeof address) != 0)
                fail("cannot connect");
        } else {
            m_fd = ::open(path, O_RDWR);
        }
        if (m_fd < 0) fail("cannot open the TPM");
    }
    // The response is in response() afterwards.
    uint32_t transact(Message const& command) {
        if (::write(m_fd, command.data(), command.size()) != static_cast<ssize_t>(command.size())) fail("cannot send");
        m_size = 0;
        while (m_size < 10 || m_size < number(2)) {
            pollfd wait{m_fd, POLLIN, 0};
            if (::poll(&wait, 1, -1) < 0) fail("cannot wait");
            auto got = ::read(m_fd, m_response + m_size, sizeof m_response - m_size);
            if (got <= 0) fail("no response");
            m_size += static_cast<size_t>(got);
        }
        return number(6);
    }
    uint32_t number(size_t at) const {
        uint32_t value = 0;
        for (size_t i = 0; i < 4; ++i) value = value << 8 | m_response[at + i];
        return value;
    }

private:
    int m_fd = -1;
    size_t m_size = 0;
    uint8_t m_response[4096]{};
};

[[noreturn]] void serve_floor(char const* path) {
    int const listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
    auto const address = address_of(path);
    // SAFETY: the sockets API takes any address type by a pointer to its common head.
    if (::bind(listener, reinterpret_cast<sockaddr const*>(&address), sizeof address) != 0 ||
        ::listen(listener, 1) != 0)
        fail("cannot serve");
    uint8_t command[4096];
    uint8_t const response[20]{0x80, 0x01, 0, 0, 0, sizeof response};
    for (;;) {
        int const client = ::accept(listener, nullptr, nullptr);
        while (::recv(client, command, sizeof command, 0) > 0 &&
               ::send(client, response, sizeof response, MSG_NOSIGNAL) == sizeof response) {
        }
        ::close(client);
    }
}

uint64_t now() {
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

// An unrestricted signing key; its handle.
uint32_t make_key(Tpm& tpm, bool rsa) {
    Command area(false, 0);
    area.u16(rsa ? 0x0001 : 0x0023).u16(k_sha256).u32(0x0004'0472).u16(0).u16(0x0010);
    if (rsa)
        area.u16(0x0014).u16(k_sha256).u16(2048).u32(0).u16(0); // RSASSA
    else
        area.u16(0x0018).u16(k_sha256).u16(0x0003).u16(0x0010).u16(0).u16(0); // ECDSA, P-256
    auto content = area.bytes();
    Command create(true, 0x131);
    create.u32(k_owner).empty_password().u16(4).u16(0).u16(0).u16(static_cast<unsigned>(content.size() - 10));
    for (size_t i = 10; i < content.size(); ++i) create.u8(content[i]);
    create.u16(0).u32(0);
    if (tpm.transact(create.bytes()) != 0) fail("the TPM makes no key");
    return tpm.number(10);
}

Message sign(uint32_t key) {
    return Command(true, 0x15D)
        .u32(key)
        .empty_password()
        .u16(32)
        .fill(32, 0x5A)
        .u16(0x0010) // the key's scheme
        .u16(0x8024) // TPM_ST_HASHCHECK, of the null hierarchy: any digest may be signed
        .u32(k_null)
        .u16(0)
        .bytes();
}

void measure(Tpm& tpm, char const* name, Message const& command, unsigned count, bool last = false) {
    std::vector<uint64_t> times;
    for (unsigned i = 0; i < count + count / 10 + 1; ++i) {
        auto before = now();
        if (auto code = tpm.transact(command); code != 0) {
            std::fprintf(stderr, "tpm-latency: %s: the TPM answers %#x\n", name, code);
            std::exit(1);
        }
        if (i > count / 10) times.push_back(now() - before); // not the first ones
    }
    std::sort(times.begin(), times.end());
    auto at = [&](unsigned percent) { return static_cast<unsigned long long>(times[times.size() * percent / 100]); };
    std::printf("\"%s\": [%llu, %llu, %llu]%s", name, at(50), at(10), at(90), last ? "}\n" : ", ");
}

} // namespace

int main(int argc, char** argv) {
    if (argc == 3 && std::strcmp(argv[1], "--floor") == 0) serve_floor(argv[2]);
    unsigned long const count = argc == 3 ? std::strtoul(argv[1], nullptr, 10) : 0;
    if (count < 1 || count > 1'000'000) {
        std::fprintf(stderr, "usage: tpm-latency COUNT /dev/tpm0|SOCKET, or tpm-latency --floor SOCKET\n");
        return 2;
    }
    auto const rounds = static_cast<unsigned>(count);
    Tpm tpm(argv[2]);
    auto started = tpm.transact(Command(false, 0x144).u16(0).bytes());
    if (started != 0 && started != 0x100) fail("the TPM does not start up");
    auto read = Command(false, 0x17E).u32(1).u16(k_sha256).u8(3).u8(0).u8(0).u8(1).bytes();
    auto extend = Command(true, 0x182).u32(16).empty_password().u32(1).u16(k_sha256).fill(32, 0xA5).bytes();
    std::printf("{");
    measure(tpm, "GetRandom", Command(false, 0x17B).u16(8).bytes(), rounds);
    measure(tpm, "PCR_Read", read, rounds);
    measure(tpm, "PCR_Extend", extend, rounds);
    measure(tpm, "ECC sign", sign(make_key(tpm, false)), rounds / 4 + 1);
    measure(tpm, "RSA sign", sign(make_key(tpm, true)), rounds / 10 + 1, true);
    return 0;
}
