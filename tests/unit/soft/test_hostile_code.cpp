// Code that means harm, or nothing: random bytes and damaged real instructions, in every mode, at both privileges. The
// software CPU must come back from all of it. Arguments: ROUNDS [SEED] [FILE].
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>

#include "tests/unit/soft/encodings.hpp"
#include "tests/unit/soft/micro_guest.hpp"

namespace coffer::tests {
namespace {

size_t g_rounds = 1500;
uint64_t g_seed = 1;
std::string g_file = "/usr/bin/busybox";

// Ends runs that would not end: each kick gives the guest about two milliseconds.
class Kicker {
public:
    explicit Kicker(Vcpu& vcpu)
        : m_thread([this, &vcpu] {
              while (!m_stop.load()) {
                  std::this_thread::sleep_for(std::chrono::milliseconds(2));
                  vcpu.kick();
              }
          }) {}
    ~Kicker() {
        m_stop.store(true);
        m_thread.join();
    }

private:
    std::atomic<bool> m_stop{false};
    std::thread m_thread;
};

std::vector<uint8_t> make_code(std::mt19937_64& random, std::vector<vmm::soft::Decoded> const& pool) {
    std::vector<uint8_t> code;
    size_t kind = random() % 4;
    while (code.size() < 96) {
        if (kind == 0) {
            code.push_back(static_cast<uint8_t>(random()));
            continue;
        }
        vmm::soft::Decoded const& d = pool[random() % pool.size()];
        size_t at = code.size();
        code.insert(code.end(), d.bytes.begin(), d.bytes.begin() + d.length());
        if (kind == 2 && random() % 3 == 0)
            code[at + random() % d.length()] ^= static_cast<uint8_t>(1U << random() % 8);
        if (kind == 3 && random() % 3 == 0)
            for (size_t n = 1 + random() % 3; n > 0; --n) {
                // Prefixes and opcode maps lead to the rarer instructions.
                constexpr uint8_t k_lead[] = {0x0F, 0x66, 0xF2, 0xF3, 0xF0, 0x67, 0x64, 0x2E, 0x48, 0x4F, 0xC4, 0x62};
                code.insert(code.begin() + static_cast<ptrdiff_t>(at), k_lead[random() % std::size(k_lead)]);
            }
    }
    return code;
}

TEST(HostileCode, ComesBack) {
    std::mt19937_64 random(g_seed);
    auto pool = plain_encodings(g_file, 50'000);
    ASSERT_FALSE(pool.empty());
    for (unsigned mode = 0; mode < 4; ++mode) {
        MicroGuest guest;
        switch (mode) {
        case 0: guest.long_mode(); break;
        case 1:
            guest.long_mode();
            guest.user_mode();
            break;
        case 2: guest.protected_mode(); break;
        default:
            guest.state.segment(SegmentName::Cs).selector = k_guest_code >> 4 & 0xFFFF;
            guest.state.segment(SegmentName::Cs).base = k_guest_code;
            guest.state.rip = 0;
            break;
        }
        for (unsigned vector = 0; vector < 32; ++vector) guest.gate(vector, 0x7000, 0x8E, 1);
        guest.put(0x7000, std::as_bytes(std::span<uint8_t const>(std::array<uint8_t, 3>{0xE6, k_done_port, 0xF4})));
        CpuState const start = guest.state;
        ByteVector const tables(guest.ram, guest.ram + 0x20000);
        Kicker kicker(*guest.vcpu);
        for (size_t round = 0; round < g_rounds; ++round) {
            auto code = make_code(random, pool);
            std::memcpy(guest.ram, tables.data(), tables.size());
            guest.put(k_guest_code, std::as_bytes(std::span(code)));
            guest.partition->memory_written(GuestPhysAddr(0), tables.size());
            guest.partition->memory_written(GuestPhysAddr(k_guest_code), code.size());
            guest.state = start;
            for (uint64_t& reg : guest.state.gpr) reg = random() % 2 ? random() : random() % guest.size;
            guest.state.gpr[4] = k_guest_stack;
            guest.out.clear();
            guest.mmio.clear();
            guest.done = false;
            ASSERT_TRUE(guest.vcpu->set_state(guest.state));
            for (unsigned tries = 0; tries < 3 && !guest.done; ++tries) {
                auto exit = guest.vcpu->run();
                ASSERT_TRUE(exit) << exit.error().message();
                if (*exit == VcpuExit::TripleFault) break;
            }
            auto end = guest.vcpu->get_state();
            ASSERT_TRUE(end);
            // Whatever it is, it can be saved and comes back.
            ASSERT_TRUE(guest.vcpu->set_state(*end));
        }
    }
}

} // namespace

void set_arguments(int argc, char** argv) {
    if (argc > 1) g_rounds = std::strtoull(argv[1], nullptr, 0);
    if (argc > 2) g_seed = std::strtoull(argv[2], nullptr, 0);
    if (argc > 3) g_file = argv[3];
}

} // namespace coffer::tests

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    coffer::tests::set_arguments(argc, argv);
    return RUN_ALL_TESTS();
}
