// Two hosts with homes, journals and records of their own, and a VM that migrates from one to the other without a
// machine: its "memory" is a few pages, its TPM a counter that the home keeps. Both sides run the real protocol over a
// socket, each in a process that can be stopped anywhere.
#pragma once

#include <atomic>
#include <csignal>
#include <thread>

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "devices/storage/raw_disk.hpp"
#include "tests/unit/home/home_fixture.hpp"
#include "vmm/migrate/destination.hpp"
#include "vmm/migrate/disk_sender.hpp"

namespace coffer::vmm::migrate::tests {

using vmm::tests::bytes_of;
using vmm::tests::Host;

constexpr size_t k_pages = 16;

inline ByteVector guest_memory() {
    ByteVector memory(k_pages * 4096);
    for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>(i * 7 + i / 4096);
    return memory;
}
inline ByteVector const& guest_firmware() {
    static ByteVector const firmware(k_max_chunk + 4096, std::byte{0xEA});
    return firmware;
}
inline ByteVector machine_state() {
    return bytes_of("where the CPUs stood");
}

// What outlives a process that is killed: what the guest was told.
struct Told {
    std::atomic<int> tpm{1};             // the last TPM state that a commit was answered for
    std::atomic<bool> runs_here{false};  // the guest goes on at the source
    std::atomic<bool> runs_there{false}; // the guest goes on at the destination
    std::atomic<int> outcome{0};         // what the source's process believes
    std::atomic<int> messages{0};        // of the side that is counted
};

// Where a side is to stop: before it sends, or after it received, its n-th message.
enum class MessageFault { None, Kill, Cut };
struct Plan {
    MessageFault fault = MessageFault::None;
    int at = 0;
};

class World {
public:
    explicit World(bool with_disk = false) {
        void* shared = ::mmap(nullptr, sizeof(Told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        m_told = new (shared) Told;
        m_config = vmm::tests::make_config("vm");
        m_config.disks.clear();
        if (with_disk) {
            m_disk = m_folder.path() / "disk.img";
            ByteVector content(size_t{3} << 20);
            for (size_t i = 0; i < content.size(); i += (i < size_t{1} << 20 ? 1 : 4099))
                content[i] = static_cast<std::byte>(i / 7);
            EXPECT_TRUE(replace_file(m_disk, content));
            m_config.disks = {{m_disk.native(), false}};
        }
        EXPECT_TRUE(m_source.create(m_config, ByteVector(10'000, std::byte{0x5A})));
        auto home = m_source.open("vm");
        EXPECT_TRUE(home) << home.error().message();
        EXPECT_TRUE((*home)->commit(HomeFile::Tpm, tpm_state(1)));
    }
    ~World() { ::munmap(m_told, sizeof(Told)); }
    World(World const&) = delete;
    World& operator=(World const&) = delete;

    Told& told() { return *m_told; }
    std::filesystem::path const& disk() const { return m_disk; }
    std::filesystem::path moved_disk() const { return m_folder.path() / "moved.img"; }
    Host const& source() const { return m_source; }
    HomeRoot const& destination_root() const { return m_destination.root(); }
    VmConfig const& config() const { return m_config; }

    static ByteVector tpm_state(int number) { return bytes_of("TPM state " + std::to_string(number)); }

    // Of the destination host, which has the key by its own provider.
    Result<std::unique_ptr<HomeSession>> open_there(HomeAccess access = HomeAccess::Writer) const {
        return open_home({m_destination.root(), "vm"}, access, key_opener());
    }
    BundleOpener key_opener() const {
        return [this](BundleHeader const&) -> Result<crypto::BundleKey> { return vmm::tests::copy_of(m_source.key()); };
    }

    static Stream::Options stream_options(int socket, Plan plan, Told& told) {
        Stream::Options options;
        options.silence = 20 * k_ns_per_s;
        options.on_message = [socket, plan, &told](bool, MessageType) {
            int const number = told.messages++;
            if (plan.fault == MessageFault::None || number != plan.at) return;
            if (plan.fault == MessageFault::Kill) ::kill(::getpid(), SIGKILL);
            if (plan.fault == MessageFault::Cut) ::shutdown(socket, SHUT_RDWR);
        };
        return options;
    }
    static Peer peer(char const* name) {
        Peer peer;
        peer.fingerprint = *crypto::sha256({as_bytes(std::string_view(name))});
        peer.name = name;
        peer.place = "there:1";
        return peer;
    }

    // The source's process: the VM runs, is migrated, and goes on where it belongs. Gives its exit code.
    int run_source(UniqueFd socket, Plan plan, Told& counted) {
        int const raw = socket.get();
        Stream stream(std::move(socket), stream_options(raw, plan, counted));
        auto home = m_source.open("vm");
        if (!home) return 1;
        auto commit = [&](int number) {
            if ((*home)->commit(HomeFile::Tpm, tpm_state(number))) told().tpm = number;
        };
        auto moved = [&]() -> Result<Outcome> {
            HelloMessage machine;
            machine.version = "test";
            machine.backend = "soft";
            machine.platform = {k_pages * 4096, 1, 1, false, {}};
            std::vector<DiskFile> disks;
            std::unique_ptr<TrackedFile> disk;
            if (!m_disk.empty() && !m_conceals_disk) {
                machine.platform.disk_sizes = {std::filesystem::file_size(m_disk)};
                machine.disks = {{m_disk.native(), machine.platform.disk_sizes[0], false, false, true}};
                auto image = TRY(devices::RawDisk::open(m_disk, {}));
                disk = std::make_unique<TrackedFile>(std::move(image), m_disk);
                disks.push_back({{.disk = 1, .size = disk->size()}, m_disk, &disk->dirty()});
            }
            auto source = TRY(Source::begin(**home, stream, peer("destination"), std::move(machine), guest_firmware()));
            auto done = [&]() -> Result<void> {
                TRY(source.greet());
                TRY(source.send_files({}));
                auto sender = TRY(DiskSender::create(stream, std::move(disks), {}));
                TRY(sender->send_round());
                if (disk) TRY(write_disk(*disk));
                TRY(sender->send_round());
                if (disk) TRY(disk->write(disk->size() - 512, ByteVector(512, std::byte{0xEE})));
                TRY(sender->send_round());
                if (sender->remaining() != 0) return make_error(ErrorCode::Internal, "a written block is left");
                commit(2); // the guest runs, and its TPM with it
                auto const memory = guest_memory();
                std::array<PageRun, 1> const run{{{0, k_pages}}};
                ByteVector batch;
                encode_batch_head(batch, batch_spec::k_content, 0, run);
                append(batch, memory);
                TRY(source.send_memory(batch));
                TRY(source.wait_until_taken());
                commit(3);
                auto const digest = TRY(crypto::sha256({crypto::Digest{}, batch}));
                return source.prepare(machine_state(), digest);
            }();
            if (!done) {
                source.give_up(done.error());
                return std::move(done).error();
            }
            auto outcome = source.hand_over();
            if (!outcome) source.give_up(outcome.error());
            return outcome;
        }();
        told().outcome = moved ? static_cast<int>(*moved) : static_cast<int>(Outcome::StillHere);
        if (moved && *moved != Outcome::StillHere) return 0; // it ends, or stands still
        told().runs_here = true;
        commit(10);
        return told().tpm == 10 ? 0 : 2;
    }

    // As a guest does while its disk is copied.
    static Result<void> write_disk(devices::BlockBackend& disk) {
        TRY(disk.write(512, ByteVector(1024, std::byte{0xAA})));
        TRY(disk.write_zeroes(64 << 10, 128 << 10));       // where there was something
        return disk.write(2 << 20, ByteVector(300 << 10)); // zeros, too
    }

    // The destination's process, for one connection.
    int run_destination(UniqueFd socket, Plan plan, Told& counted) {
        int const raw = socket.get();
        auto stream = std::make_unique<Stream>(std::move(socket), stream_options(raw, plan, counted));
        auto frame = stream->receive();
        if (!frame) return 1;
        if (frame->type == MessageType::Ask) {
            auto ask = decode_ask(frame->body);
            return ask && answer_ask(*stream, m_destination.root(), peer("source"), *ask) ? 0 : 1;
        }
        ByteVector memory(k_pages * 4096);
        Destination::Options options;
        options.check_machine = [&](HelloMessage const&) -> Result<std::vector<MutBytes>> {
            return std::vector<MutBytes>{memory};
        };
        options.open_key = key_opener();
        options.place_disk = [&](size_t, HelloDisk const&) -> Result<std::filesystem::path> { return moved_disk(); };
        Destination destination(m_destination.root(), std::move(stream), peer("source"), std::move(options));
        std::unique_ptr<HomeSession> home;
        auto arrived = [&]() -> Result<void> {
            if (frame->type != MessageType::Hello) return make_error(ErrorCode::Corrupt, "no hello");
            TRY(destination.greet(frame->body));
            TRY(destination.receive());
            home = TRY(destination.open_home());
            if (memory != guest_memory()) return make_error(ErrorCode::Internal, "memory differs");
            auto const firmware = destination.take_firmware();
            if (!std::ranges::equal(firmware.bytes(), guest_firmware()))
                return make_error(ErrorCode::Internal, "firmware differs");
            auto const state = destination.state();
            if (ByteVector(state.begin(), state.end()) != machine_state())
                return make_error(ErrorCode::Internal, "state differs");
            TRY(destination.ready());
            return destination.wait_for_go({});
        }();
        if (!arrived) {
            home.reset();
            return 1;
        }
        // As the VM's process does it: the owner is written, then the guest runs, then the source hears it.
        auto claimed = home->claim(HistoryKind::Received, "from another host");
        told().runs_there = true;
        if (claimed && home->commit(HomeFile::Tpm, tpm_state(20))) told().tpm = 20;
        destination.confirm();
        return 0;
    }

    // Two ends of a connection; the other process's end is closed in each.
    struct Wire {
        Wire() {
            std::array<int, 2> pair{};
            EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
            source = UniqueFd(pair[0]);
            destination = UniqueFd(pair[1]);
        }
        UniqueFd source;
        UniqueFd destination;
    };

    template <class Work>
    static pid_t spawn(Work work) {
        pid_t const child = ::fork();
        if (child == 0) ::_exit(work());
        return child;
    }
    static int wait(pid_t child) {
        int status = 0;
        ::waitpid(child, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 256;
    }

    // A source whose Hello does not name the disk that its configuration has.
    void conceal_disk() { m_conceals_disk = true; }

    // One migration with nothing in its way: what the two ends return.
    struct Ends {
        int source;
        int destination;
    };
    Ends move() {
        Wire wire;
        Told idle;
        auto const child = spawn([&] {
            wire.source.reset();
            return run_destination(std::move(wire.destination), {}, idle);
        });
        wire.destination.reset();
        int const source = run_source(std::move(wire.source), {}, idle);
        return {source, wait(child)};
    }

    // Settles a hand-over that no process of the source's is left of, as `coffer migrate --resolve` does. Nothing where
    // there is none.
    std::optional<Result<Outcome>> resolve() {
        HomeLocation const location = m_source.location("vm");
        auto const record = read_host_record(location.host_record());
        if (!record) return record.error();
        if (!*record || (*record)->standing != Standing::HandedOver) return std::nullopt;
        MigrationJournal const journal(location.root);
        auto const entry = journal.read_outgoing((*record)->migration);
        if (!entry) return entry.error();
        if (!*entry) return Result<Outcome>(make_error(ErrorCode::Internal, "the journal does not know the hand-over"));
        Wire wire;
        auto const child = spawn([&] {
            wire.source.reset();
            return run_destination(std::move(wire.destination), {}, told());
        });
        wire.destination.reset();
        Stream stream(std::move(wire.source));
        auto outcome = settle(stream, journal, **entry, {[&] { return reclaim(location, (*entry)->id); }});
        stream.take_socket();
        wait(child);
        return outcome;
    }

    int owners() const {
        int count = 0;
        for (bool here : {true, false}) {
            auto home = here ? m_source.open("vm") : open_there();
            if (home) ++count;
        }
        return count;
    }
    // Exactly one host runs it, with all that the guest was told is stored.
    void expect_one_owner_with_everything() {
        auto here = m_source.open("vm");
        auto there = open_there();
        EXPECT_NE(here.has_value(), there.has_value())
            << (here ? "both" : here.error().message() + " / " + there.error().message());
        if (here.has_value() == there.has_value()) return;
        auto& home = here ? *here : *there;
        if (m_disk.empty()) {
            EXPECT_EQ(home->config(), m_config);
        }
        auto tpm = home->load(HomeFile::Tpm);
        ASSERT_TRUE(tpm) << tpm.error().message();
        // A writing that was not answered may be there, too.
        EXPECT_TRUE(*tpm == tpm_state(told().tpm) || later_than_told(*tpm))
            << std::string(reinterpret_cast<char const*>(tpm->data()), tpm->size()) << ", told " << told().tpm;
        EXPECT_FALSE(told().runs_here && told().runs_there) << "the guest ran twice";
        if (told().runs_here) {
            EXPECT_TRUE(here) << "it went on here";
        }
        if (told().runs_there) {
            EXPECT_TRUE(there) << "it went on there";
        }
    }

private:
    bool later_than_told(ByteVector const& tpm) const {
        for (int number : {2, 3, 10, 20})
            if (number > m_told->tpm && tpm == tpm_state(number)) return true;
        return false;
    }

    coffer::tests::TempFolder m_folder;
    Host m_source{m_folder.path() / "a"};
    Host m_destination{m_folder.path() / "b"};
    VmConfig m_config;
    std::filesystem::path m_disk;
    bool m_conceals_disk = false;
    Told* m_told;
};

} // namespace coffer::vmm::migrate::tests
