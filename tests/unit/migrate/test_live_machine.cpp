// Whole machines, on either CPU backend, move from one Machine to another over a socket while their guest writes
// memory.
#include <future>

#include <sys/socket.h>
#include <unistd.h>

#include "base/file.hpp"
#include "tests/unit/machine/tiny_machine.hpp"
#include "vmm/migrate/memory_receiver.hpp"
#include "vmm/migrate/memory_sender.hpp"
#include "vmm/migrate/precopy_policy.hpp"

// Counts in ECX; writes each count's low byte to the serial port, the count to 0x1000, and to one of 16,384 places 16
// bytes apart from 0x20000 on, all over their 64 pages.
extern "C" const uint8_t guest_writing_begin[], guest_writing_end[];
asm(R"(
    .pushsection .rodata
    guest_writing_begin:
    .code16
        xor %ax, %ax
        mov %ax, %ds
        xor %ecx, %ecx
        mov $0x3f8, %dx
    1:  inc %ecx
        mov %ecx, 0x1000
        imul $0x1f35, %cx, %ax
        and $0x3fff, %ax
        add $0x2000, %ax
        mov %ax, %es
        mov %ecx, %es:0
        mov %cl, %al
        out %al, %dx
        mov $0x200, %bx
    2:  dec %bx
        jnz 2b
        jmp 1b
    guest_writing_end:
    .code64
    .popsection
)");

namespace coffer::vmm::tests {
namespace {

constexpr uint64_t k_memory = uint64_t{16} << 20;

ByteVector writing_firmware() {
    constexpr std::array<uint8_t, 3> k_reset{0xE9, 0x0D, 0xFF}; // jmp FF00h
    ByteVector flash(size_t{64} << 10, std::byte{0xFF});
    std::memcpy(flash.data() + 0xFF00, guest_writing_begin,
                static_cast<size_t>(guest_writing_end - guest_writing_begin));
    std::memcpy(flash.data() + 0xFFF0, k_reset.data(), k_reset.size());
    return flash;
}

// Each place holds the last count that was written there.
void expect_all_counts(Machine& machine) {
    auto load = [&](uint64_t gpa) { return load_le<uint32_t>(machine.ram().span(GuestPhysAddr(gpa), 4)); };
    uint32_t const last = load(0x1000);
    std::vector<uint32_t> places(0x4000);
    for (uint32_t count = 1; count <= last; ++count) places[count * 0x1F35 & 0x3FFF] = count;
    // The one in hand may be there or not.
    uint32_t const in_hand = last * 0x1F35 & 0x3FFF;
    for (uint32_t place = 0; place < places.size(); ++place) {
        if (place == in_hand) continue;
        ASSERT_EQ(load(0x20000 + place * 16), places[place]) << "place " << place << ", " << last;
    }
}

enum class Kind : uint8_t { Batch = 1, Digest, State, Answer };

class Channel {
public:
    explicit Channel(int fd) : m_fd(fd) {}
    Result<void> send(Kind kind, Bytes content) {
        std::array<std::byte, 5> head{static_cast<std::byte>(kind)};
        store_le<uint32_t>(head, 1, static_cast<uint32_t>(content.size()));
        TRY(write_all(m_fd.get(), head, "the channel"));
        return write_all(m_fd.get(), content, "the channel");
    }
    // Nothing: the peer is gone.
    std::optional<std::pair<Kind, ByteVector>> receive() {
        std::array<std::byte, 5> head{};
        if (!read_all(head)) return std::nullopt;
        ByteVector content(load_le<uint32_t>(head, 1));
        if (!read_all(content)) return std::nullopt;
        return std::pair(static_cast<Kind>(head[0]), std::move(content));
    }
    void close() { m_fd = UniqueFd(); }

private:
    bool read_all(MutBytes to) {
        while (!to.empty()) {
            ssize_t got = ::read(m_fd.get(), to.data(), to.size());
            if (got <= 0) return false;
            to = to.subspan(static_cast<size_t>(got));
        }
        return true;
    }
    UniqueFd m_fd;
};

Result<std::unique_ptr<Partition>> on_soft() {
    return create_soft_partition({});
}
Result<std::unique_ptr<Partition>> on_kvm() {
    return create_kvm_partition({});
}

class LiveMigration : public testing::TestWithParam<decltype(&on_soft)> {
protected:
    void SetUp() override {
        if (auto partition = GetParam()(); !partition) GTEST_SKIP() << partition.error().message();
        std::array<int, 2> ends{};
        ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
        m_here = std::make_unique<Channel>(ends[0]);
        m_there = std::make_unique<Channel>(ends[1]);
        m_source = std::make_unique<TinyMachine>(k_memory, nullptr, nullptr, writing_firmware(), GetParam()());
        m_owner = std::thread([this] {
            m_source->machine->start();
            m_end = m_source->machine->wait();
        });
        ASSERT_TRUE(m_source->serial.wait_for(20));
    }
    void TearDown() override {
        if (m_source) m_source->machine->stop();
        if (m_owner.joinable()) m_owner.join();
    }

    Result<std::unique_ptr<MemorySender>> make_sender() {
        auto& machine = *m_source->machine;
        return MemorySender::create(machine.ram(), *machine.partition().dirty_log(),
                                    [this](Bytes batch) { return m_here->send(Kind::Batch, batch); },
                                    {.compress = true});
    }

    // Returns when the task has run.
    static void paused(Machine& machine, std::function<void()> const& task) {
        auto done = std::make_shared<std::promise<void>>();
        machine.while_paused([done, &task] {
            task();
            done->set_value();
        });
        done->get_future().wait();
    }
    // Pre-copies, then hands the machine over within one pause. The error is the switch-over's.
    Result<void> migrate(MemorySender& sender, size_t extra_rounds) {
        std::vector<PrecopyRound> rounds;
        for (;;) {
            auto decision = decide_precopy({}, rounds);
            if (decision.next != PrecopyNext::Round && rounds.size() >= extra_rounds) break;
            rounds.push_back({TRY(sender.send_round()), decision.throttle});
        }
        Result<void> outcome;
        paused(*m_source->machine, [&] { outcome = hand_over(sender); });
        return outcome;
    }
    Result<void> hand_over(MemorySender& sender) {
        auto state = TRY(m_source->machine->save_state());
        TRY(sender.send_rest());
        EXPECT_EQ(sender.dirty_pages(), 0U);
        TRY(m_here->send(Kind::Digest, sender.digest()));
        TRY(m_here->send(Kind::State, encode_machine_state(std::move(state))));
        auto answer = m_here->receive();
        if (!answer) return make_error(ErrorCode::Io, "the peer is gone");
        m_source->machine->stop();
        return {};
    }

    // Takes all, until the machine is there and answered for.
    void receive() {
        auto ram = std::make_unique<GuestRam>(std::move(*GuestRam::create(k_memory)));
        auto receiver = MemoryReceiver::create(ram->parts());
        ASSERT_TRUE(receiver);
        while (auto message = m_there->receive()) {
            auto const& [kind, content] = *message;
            if (kind == Kind::Batch) {
                auto taken = (*receiver)->take(content);
                ASSERT_TRUE(taken) << taken.error().message();
            } else if (kind == Kind::Digest) {
                crypto::Digest digest;
                std::memcpy(digest.data(), content.data(), digest.size());
                auto finished = (*receiver)->finish(digest);
                ASSERT_TRUE(finished) << finished.error().message();
            } else {
                auto state = decode_machine_state(content);
                ASSERT_TRUE(state) << state.error().message();
                m_target = std::make_unique<TinyMachine>(k_memory, &*state, std::move(ram), ByteVector(), GetParam()());
                auto restored = m_target->machine->restore_state(*state);
                ASSERT_TRUE(restored) << restored.error().message();
                ASSERT_TRUE(m_there->send(Kind::Answer, {}));
                return;
            }
        }
    }

    std::unique_ptr<TinyMachine> m_source;
    std::unique_ptr<TinyMachine> m_target;
    std::unique_ptr<Channel> m_here;
    std::unique_ptr<Channel> m_there;
    std::thread m_owner;
    MachineEnd m_end = MachineEnd::Failed;
};

TEST_P(LiveMigration, GuestGoesOnExactly) {
    std::thread receiving([this] { receive(); });
    auto sender = make_sender();
    ASSERT_TRUE(sender) << sender.error().message();
    auto migrated = migrate(**sender, 6);
    EXPECT_TRUE(migrated) << migrated.error().message();
    receiving.join();
    m_owner.join();
    EXPECT_EQ(m_end, MachineEnd::Stopped);
    ASSERT_TRUE(m_target);
    auto before = m_source->serial.take();
    expect_counting(before, 1);
    for (size_t part = 0; part < m_source->machine->ram().parts().size(); ++part) {
        auto ours = m_source->machine->ram().parts()[part];
        auto theirs = m_target->machine->ram().parts()[part];
        for (size_t at = 0; at < ours.size(); at += k_ram_page)
            ASSERT_EQ(std::memcmp(ours.data() + at, theirs.data() + at, k_ram_page), 0) << "page " << at / k_ram_page;
    }
    m_target->run(300);
    auto after = m_target->serial.take();
    ASSERT_GE(after.size(), 300U);
    expect_counting(after, static_cast<uint8_t>(before.back() + 1));
    expect_all_counts(*m_target->machine);
}

// The peer goes away at the very end: the source's guest goes on as if nothing had been, and can migrate after that.
TEST_P(LiveMigration, FailedSwitchOverLeavesTheSourceRunning) {
    {
        auto sender = make_sender();
        ASSERT_TRUE(sender);
        std::thread draining([this] {
            while (auto message = m_there->receive())
                if (message->first == Kind::State) break;
            m_there->close();
        });
        auto migrated = migrate(**sender, 2);
        EXPECT_FALSE(migrated);
        draining.join();
    }
    m_source->serial.take();
    ASSERT_TRUE(m_source->serial.wait_for(200));
    TearDown();
    EXPECT_EQ(m_end, MachineEnd::Stopped);
    auto bytes = m_source->serial.take();
    expect_counting(bytes, bytes[0]);
    expect_all_counts(*m_source->machine);
    EXPECT_FALSE(m_source->machine->partition().dirty_log()->harvest(GuestPhysAddr(0))) << "the log still runs";
}

// What devices write by way of the machine's RAM is in the log, and so is RAM that a reset wipes.
TEST_P(LiveMigration, LogHasWhatDevicesWroteAndWipes) {
    auto& machine = *m_source->machine;
    auto* log = machine.partition().dirty_log();
    ASSERT_NE(log, nullptr);
    RamPages const numbers(machine.ram());
    paused(machine, [&] {
        PageSet pages(numbers.count());
        ASSERT_TRUE(log->start());
        ASSERT_TRUE(harvest_dirty(*log, machine.ram(), numbers, pages));
        PageSet written(numbers.count());
        ASSERT_TRUE(machine.ram().write(GuestPhysAddr(0x200FFF), as_bytes("ab"))); // copied, as virtio does
        machine.ram().span(GuestPhysAddr(0x300000), 1)[0] = std::byte{1};          // in place, as NVMe does
        machine.ram().written(GuestPhysAddr(0x300000), 1);
        ASSERT_TRUE(harvest_dirty(*log, machine.ram(), numbers, written));
        EXPECT_EQ(written.count(), 3U);
        for (uint64_t page : {0x200U, 0x201U, 0x300U}) EXPECT_TRUE(written.contains(page)) << page;
        machine.ram().wipe();
        PageSet wiped(numbers.count());
        ASSERT_TRUE(harvest_dirty(*log, machine.ram(), numbers, wiped));
        EXPECT_EQ(wiped.count(), numbers.count() - layout::k_legacy_video_size / k_ram_page);
        EXPECT_TRUE(log->stop());
    });
}

// A guest that is held back does less, and stops as soon as others do.
TEST_P(LiveMigration, ThrottledGuestStillStops) {
    auto& machine = *m_source->machine;
    machine.throttle(99);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    for (int i = 0; i < 5; ++i) {
        paused(machine, [&] { EXPECT_TRUE(machine.save_state()); });
    }
    m_source->serial.take();
    ASSERT_TRUE(m_source->serial.wait_for(5)); // though slowly
    machine.throttle(50);
    ASSERT_TRUE(m_source->serial.wait_for(50));
    machine.throttle(0);
    ASSERT_TRUE(m_source->serial.wait_for(100));
    machine.throttle(99);
    TearDown();
    EXPECT_EQ(m_end, MachineEnd::Stopped);
    expect_all_counts(machine);
}

INSTANTIATE_TEST_SUITE_P(Backends, LiveMigration, testing::Values(on_soft, on_kvm),
                         [](auto const& instance) { return instance.param == on_soft ? "Soft" : "Kvm"; });

} // namespace
} // namespace coffer::vmm::tests
