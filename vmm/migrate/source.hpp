// The source's side of a migration: what is said to the destination, and when this host lets go of the VM. The machine
// is the caller's, who stops it between send_memory() and prepare(), and lets it go on or ends it as the outcome says.
//
//   greet → send_files, send_memory … → [guest stopped] → prepare → hand_over → Moved | StillHere | Undecided
//
// One thread at a time; which thread it is does not matter.
#pragma once

#include <map>
#include <set>
#include <string>

#include "vmm/home/home_session.hpp"
#include "vmm/home/migration_journal.hpp"
#include "vmm/migrate/step_times.hpp"
#include "vmm/migrate/stream.hpp"

namespace coffer::vmm::migrate {

struct Peer {
    crypto::Digest fingerprint{};
    std::string name;
    std::string place; // HOST:PORT
    Exporter exporter{};
};

enum class Outcome : uint8_t {
    Moved = 1,     // the destination has it, and this host never runs it again
    StillHere = 2, // this host has it, and the destination never starts it
    Undecided = 3, // handed over, and not confirmed: settle() asks
};

class Source {
public:
    struct Progress {
        std::function<void(uint64_t done, uint64_t total)> files = {}; // bytes
    };

    // `machine` is the Hello without what this class knows: identity, keys, nonce, firmware. `firmware` is the code in
    // the machine's flash; it outlives this, and does not change. `disk_files` are the home's files that a DiskSender
    // sends, because the guest writes them.
    static Result<Source> begin(HomeSession& home, Stream& stream, Peer peer, HelloMessage machine, Bytes firmware,
                                std::set<std::string> disk_files = {});

    Uuid const& id() const noexcept { return m_hello.migration; }

    // Both ends prove that they have the key, and the destination says that it takes the VM. Nothing of the VM but
    // `keys` has moved.
    Result<void> greet();
    // Firmware and the home's files, while the guest runs; what changed since is sent by prepare().
    Result<void> send_files(Progress const& progress);
    Result<void> send_memory(Bytes batch) { return m_stream.send(MessageType::Memory, batch); }
    // Returns when the destination has taken all that was sent: megabytes of it are on their way otherwise, which the
    // guest would have to wait for were it stopped.
    Result<void> wait_until_taken();

    // With the guest stopped, devices drained and all that it was told is stored, stored. Sends the rest; the
    // destination has all of it, durable, and is about to start it. After an error the VM is here, as it was.
    Result<void> prepare(Bytes state, crypto::Digest const& memory);
    // This host lets go, durably; then the destination may start. An error is StillHere's.
    Result<Outcome> hand_over();

    // Where nothing was handed over: tells the destination, as far as it listens, and forgets the migration.
    void give_up(Error const& error) noexcept;

    // Of prepare() and hand_over(); the caller begins it, and adds what it does itself.
    StepTimes& times() noexcept { return m_times; }

private:
    Source(HomeSession& home, Stream& stream, Peer peer, HelloMessage hello, Bytes firmware,
           std::set<std::string> disk_files)
        : m_home(home), m_stream(stream), m_peer(std::move(peer)), m_hello(std::move(hello)), m_firmware(firmware),
          m_disk_files(std::move(disk_files)) {}
    struct Sent {
        uint64_t size = 0;
        crypto::Digest digest{}; // of files that are replaced while the VM runs
        bool operator==(Sent const&) const = default;
    };
    Result<void> send_home(Progress const& progress);
    Result<void> send_pieces(MessageType type, Bytes bytes);
    Result<void> send_file(FileMessage const& message, std::filesystem::path const& path,
                           std::function<void(uint64_t)> const& advance);
    OutgoingMigration entry(OutgoingState state) const;

    HomeSession& m_home;
    Stream& m_stream;
    Peer m_peer;
    HelloMessage m_hello;
    Bytes m_firmware;
    std::set<std::string> m_disk_files;
    uint32_t m_marks = 0;
    bool m_noted = false; // in the journal, and nowhere else
    StepTimes m_times;
    std::map<std::string, Sent> m_sent;
};

// Asks what became of a migration that was handed over, and settles it: Moved, StillHere (the home is this host's
// again), or an error, where it is as undecided as before. `take_back` makes it durable that this host owns the VM.
struct SettleActions {
    std::function<Result<void>()> take_back;
};
Result<Outcome> settle(Stream& stream, MigrationJournal const& journal, OutgoingMigration const& migration,
                       SettleActions const& actions);

} // namespace coffer::vmm::migrate
