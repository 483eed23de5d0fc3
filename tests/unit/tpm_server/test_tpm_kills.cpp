// A TPM whose process is killed again and again, in the middle of what it does: nothing that a guest or a client was
// told is lost. Both ways to the TPM are there: the registers with their thread, and the server's engine.
#include <atomic>
#include <csignal>
#include <random>

#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "devices/tpm/tpm_manufacture.hpp"
#include "tests/unit/home/home_fixture.hpp"
#include "tests/unit/tpm/tpm_rig.hpp"
#include "vmm/tpm/tpm_engine.hpp"

namespace coffer::vmm::tests {
namespace {

namespace commands = coffer::tests::commands;
using devices::LibtpmsBackend;
using devices::TpmCommand;
using devices::TpmCommandCode;
using devices::TpmManufacture;
using devices::TpmTag;

constexpr unsigned k_kills = 500;
constexpr uint32_t k_guarded_index = 0x0180'0002; // has a password; a wrong one counts towards the lockout
constexpr uint32_t k_property_lockout_counter = 0x20E;
constexpr uint32_t k_auth_fail = 0x98E; // TPM_RC_AUTH_FAIL of the first session
constexpr auto k_life_limit = std::chrono::seconds(120);

// What the TPM's process tells its killer; in memory that both map, so it outlives the process at any instruction.
struct Ledger {
    std::atomic<uint32_t> written{0};      // the latest value sent to be written
    std::atomic<uint32_t> acknowledged{0}; // the latest whose success was seen
    std::atomic<uint32_t> failures{0};     // wrong passwords whose refusal was seen
    std::atomic<uint32_t> steps{0};        // acknowledgements in all
    std::atomic<uint32_t> found_value{0};  // what the latest process to look found
    std::atomic<uint32_t> found_failures{0};
    std::atomic<bool> lost{false};
};

enum class Way : uint8_t { Registers, Engine };

class Kills : public testing::Test {
protected:
    void SetUp() override {
        // SAFETY: a fresh shared page, large enough for the ledger, which has no pointers.
        void* page = ::mmap(nullptr, sizeof(Ledger), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        ASSERT_NE(page, MAP_FAILED);
        m_ledger = new (page) Ledger;
        auto config = make_config("vm");
        ASSERT_TRUE(m_host.create(config, ByteVector(4096, std::byte{0})));
        auto state = devices::manufacture_tpm(devices::k_all_pcr_banks);
        ASSERT_TRUE(state) << state.error().message();
        auto home = m_host.open("vm");
        ASSERT_TRUE(home) << home.error().message();
        ASSERT_TRUE((*home)->commit(HomeFile::Tpm, *state));
    }
    void TearDown() override { ::munmap(m_ledger, sizeof(Ledger)); }

    // A process's life with the TPM, until `steps` more acknowledgements or its end; the exit code of a process.
    int live(Way way, uint32_t steps) {
        auto home = m_host.open("vm");
        if (!home) return fail(home.error().message());
        auto stored = (*home)->load(HomeFile::Tpm);
        if (!stored) return fail(stored.error().message());
        auto tpm = LibtpmsBackend::create(*std::move(stored), TpmManufacture::No, (*home)->store(HomeFile::Tpm));
        if (!tpm) return fail(tpm.error().message());
        if (way == Way::Engine) {
            TpmEngine engine(**home, **tpm);
            return work(steps, [&](ByteVector const& command) {
                ByteVector response(TpmEngine::k_max_command);
                auto size = engine.execute(command, response);
                response.resize(size ? *size : 0);
                return response;
            });
        }
        coffer::tests::ManualScheduler scheduler;
        auto crb = devices::TpmCrb::create(**tpm, scheduler, coffer::tests::k_tpm_address);
        if (!crb) return fail(crb.error().message());
        (*crb)->reset(devices::ResetKind::Cold);
        coffer::tests::GuestBus bus;
        bus.attach(**crb, devices::crb::k_window_size);
        coffer::tests::CrbDriver driver(bus);
        return work(steps, [&](ByteVector const& command) { return driver.transact(command); });
    }

    // Kills a process with this life when it has got `steps` acknowledgements further, `delay` later.
    void live_and_die(Way way, uint32_t steps, timespec delay) {
        uint32_t const aim = m_ledger->steps + steps;
        auto const child = ::fork();
        ASSERT_GE(child, 0);
        if (child == 0) ::_exit(live(way, UINT32_MAX));
        auto const limit = std::chrono::steady_clock::now() + k_life_limit;
        timespec const look{0, 50'000};
        int status = 0;
        while (m_ledger->steps < aim && ::waitpid(child, &status, WNOHANG) == 0) {
            if (std::chrono::steady_clock::now() > limit) break;
            ::nanosleep(&look, nullptr);
        }
        bool const in_time = m_ledger->steps >= aim;
        ::nanosleep(&delay, nullptr);
        ::kill(child, SIGKILL);
        ::waitpid(child, &status, 0);
        ASSERT_TRUE(in_time) << "the TPM's process ended or hung by itself; status " << status;
    }

    Ledger* m_ledger = nullptr;

private:
    static int fail(std::string const& why) {
        ADD_FAILURE() << why;
        return 1;
    }

    template <class Transact>
    int work(uint32_t steps, Transact const& transact) {
        auto code_of = [&](ByteVector const& command) {
            // A TPM may ask for a command once more.
            for (;;) {
                auto header = devices::parse_tpm_header(transact(command));
                if (!header) return UINT32_MAX;
                if (header->code != static_cast<uint32_t>(devices::TpmResponseCode::Retry)) return header->code;
            }
        };
        if (auto code = code_of(commands::startup()); code != 0 && code != 0x100) return fail("no startup");
        if (!m_ledger->acknowledged) {
            if (m_ledger->written == 0 && !set_up(code_of)) return fail("no set-up");
        } else if (!look_back(transact)) {
            return fail("what was acknowledged is lost");
        }
        for (uint32_t done = 0; done < steps; ++done, ++m_ledger->steps) {
            if (done % 4 == 3) {
                if (auto code = code_of(guess()); code != k_auth_fail) return fail(fmt::format("guess: {:#x}", code));
                ++m_ledger->failures;
                continue;
            }
            uint32_t const value = ++m_ledger->written;
            std::array<std::byte, 4> bytes{};
            store_be<uint32_t>(bytes, 0, value);
            if (auto code = code_of(commands::nv_write(bytes)); code != 0) return fail(fmt::format("{:#x}", code));
            m_ledger->acknowledged = value;
        }
        return 0;
    }

    // The indices, and a lockout that is out of reach and does not heal.
    template <class CodeOf>
    static bool set_up(CodeOf const& code_of) {
        auto define = TpmCommand(TpmTag::Sessions, TpmCommandCode::NvDefineSpace)
                          .u32(devices::k_tpm_rh_owner)
                          .empty_password()
                          .sized(as_bytes("password"))
                          .u16(14)
                          .u32(k_guarded_index)
                          .u16(commands::k_sha256)
                          .u32(0x0004'0004) // AUTHREAD, AUTHWRITE
                          .u16(0)
                          .u16(8)
                          .take();
        auto parameters = TpmCommand(TpmTag::Sessions, static_cast<TpmCommandCode>(0x13A)) // DictionaryAttackParameters
                              .u32(0x4000'000A)                                            // TPM_RH_LOCKOUT
                              .empty_password()
                              .u32(1U << 20)
                              .u32(1U << 30)
                              .u32(1U << 30)
                              .take();
        return code_of(commands::nv_define(4)) == 0 && code_of(define) == 0 && code_of(parameters) == 0;
    }

    static ByteVector guess() {
        return TpmCommand(TpmTag::Sessions, TpmCommandCode::NvRead)
            .u32(k_guarded_index)
            .u32(k_guarded_index)
            .u32(9 + 5)
            .u32(devices::k_tpm_rs_pw)
            .u16(0)
            .u8(1)
            .sized(as_bytes("wrong"))
            .u16(8)
            .u16(0)
            .take();
    }

    template <class Transact>
    bool look_back(Transact const& transact) {
        auto read = transact(commands::nv_read(4));
        auto counter = transact(TpmCommand(TpmTag::NoSessions, TpmCommandCode::GetCapability)
                                    .u32(6) // TPM_CAP_TPM_PROPERTIES
                                    .u32(k_property_lockout_counter)
                                    .u32(1)
                                    .take());
        constexpr size_t k_read_size = 10 + 4 + 2 + 4 + 5;
        constexpr size_t k_counter_size = 10 + 1 + 4 + 4 + 8;
        if (read.size() != k_read_size || counter.size() != k_counter_size) return false;
        m_ledger->found_value = load_be<uint32_t>(read, 16);
        m_ledger->found_failures = load_be<uint32_t>(counter, k_counter_size - 4);
        bool kept = m_ledger->found_value >= m_ledger->acknowledged && m_ledger->found_value <= m_ledger->written &&
                    m_ledger->found_failures >= m_ledger->failures;
        if (!kept) m_ledger->lost = true;
        return kept;
    }

    coffer::tests::TempFolder m_folder;
    Host m_host{m_folder.path()};
};

TEST_F(Kills, NothingAcknowledgedIsLost) {
    std::mt19937 random(2060);
    std::uniform_int_distribution<uint32_t> steps(0, 5);
    std::uniform_int_distribution<long> delay(0, 2'000'000);
    // The first life sets up.
    live_and_die(Way::Engine, 1, {0, 0});
    for (unsigned kill = 1; kill < k_kills && !HasFailure(); ++kill) {
        live_and_die(kill % 2 == 0 ? Way::Engine : Way::Registers, steps(random), {0, delay(random)});
        ASSERT_FALSE(m_ledger->lost) << "kill " << kill << ": value " << m_ledger->found_value << " of "
                                     << m_ledger->acknowledged << ", failures " << m_ledger->found_failures << " of "
                                     << m_ledger->failures;
    }
    // The last one is not killed, and looks at everything once more.
    auto const child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) ::_exit(live(Way::Registers, 8));
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_FALSE(m_ledger->lost);
    EXPECT_GT(m_ledger->acknowledged, k_kills / 2);
    EXPECT_GT(m_ledger->failures, k_kills / 16);
    RecordProperty("acknowledged_writes", static_cast<int>(m_ledger->acknowledged));
    RecordProperty("counted_failures", static_cast<int>(m_ledger->failures));
}

} // namespace
} // namespace coffer::vmm::tests
