// The destination's side of a migration: what is taken from the source, and when this host becomes the VM's owner. The
// machine is the caller's.
//
//   greet → receive → prepare → wait_for_go → [guest starts] → confirm
//
// One thread at a time.
#pragma once

#include <memory>

#include "vmm/home/home_open.hpp"
#include "vmm/home/incoming_home.hpp"
#include "vmm/home/migration_journal.hpp"
#include "vmm/memory/guest_ram.hpp"
#include "vmm/migrate/memory_receiver.hpp"
#include "vmm/migrate/parted_file.hpp"
#include "vmm/migrate/source.hpp"

namespace coffer::vmm::migrate {

class Destination {
public:
    struct Options {
        // A machine that the VM can run on here, or why there is none; makes its RAM. Before anything moves.
        std::function<Result<std::vector<MutBytes>>(HelloMessage const&)> check_machine;
        // Unwraps the home's bundle key through this host's own provider.
        BundleOpener open_key;
        // Where a copy of the source's disk image goes (the configuration's number and path), a file that is not there;
        // null: copies are refused.
        std::function<Result<std::filesystem::path>(size_t number, HelloDisk const&)> place_disk = {};
        // Whether a disk image outside of the home may be used here, which the source expects at this path: it could
        // name any file. Asked before anything moves, and of what the home that came says. Null: none may.
        std::function<Result<void>(std::filesystem::path const&)> may_use_disk = {};
        // How long a machine that is ready waits for a source that is silent, or lost.
        Nanoseconds patience = 120 * k_ns_per_s;
        // Whether the source came back by another connection than the one that is listened to.
        std::function<bool()> superseded = {};
    };

    Destination(HomeRoot root, std::unique_ptr<Stream> stream, Peer peer, Options options);
    // Gives up what did not come to be: the folder is removed, a home that was prepared abandoned.
    ~Destination();
    Destination(Destination const&) = delete;
    Destination& operator=(Destination const&) = delete;

    // Takes the source's Hello, which the caller has received. After success both ends have proven that they have the
    // key, and the VM fits here. An error was told to the source.
    Result<void> greet(Bytes hello);
    // Firmware, files, memory and state, until the source says that this was all. The same.
    Result<void> receive();
    // The home, durable and arriving: it can be read, and not be changed.
    Result<std::unique_ptr<HomeSession>> open_home();
    Bytes state() const noexcept { return m_state; }
    // After receive(), once: what the machine's flash is made of.
    HostMapping take_firmware() noexcept { return std::move(m_firmware); }
    // With the machine restored: durable, and the source hears that it can let go.
    Result<void> ready();

    // Waits until the source lets go, on this connection or on one that `reconnect` comes by (it waits for one, up to
    // the given time; null where none came). After success this host owns the VM for good, and the guest may run. After
    // an error it never will: all of it is gone from here.
    using Reconnect = std::function<std::unique_ptr<Stream>(Nanoseconds limit)>;
    Result<void> wait_for_go(Reconnect const& reconnect);
    // The guest runs. Where the source does not hear it, it will ask.
    void confirm() noexcept;

    // From the source's Prepare on; the caller adds what it does itself.
    StepTimes& times() noexcept { return m_times; }
    HelloMessage const& hello() const noexcept { return m_hello; }
    HomeLocation const& location() const noexcept { return m_location; }
    Peer const& peer() const noexcept { return m_peer; }
    // The source may hear of an error of the caller's own.
    void fail(Error const& error) noexcept {
        if (m_stream) m_stream->send_failure(error);
    }

private:
    enum class Stage : uint8_t { Empty, Receiving, Published, Prepared, Started, Over };

    Result<void> greet_unguarded(Bytes hello);
    Result<void> receive_unguarded();
    Result<void> take_firmware(Bytes bytes);
    Result<void> begin_file(FileMessage const& message);
    Result<void> begin_parts(FileMessage const& message);
    Result<void> begin_part(FilePartMessage const& message);
    Result<void> take_file_data(Bytes bytes);
    Result<void> sync_parts();
    enum class HasSnapshots : uint8_t { No, Yes };
    Result<void> check_disks(HasSnapshots snapshots) const;
    Result<void> check_place(size_t number, HasSnapshots snapshots) const;
    Result<void> may_use_disk(std::filesystem::path const& path) const;
    Result<void> check_configuration(VmConfig const& config) const;
    Result<bool> take_answer(Stream::Frame const& frame);
    Result<void> told(Result<void> done);
    void abandon() noexcept;

    HomeRoot m_root;
    std::unique_ptr<Stream> m_stream;
    Peer m_peer;
    Options m_options;
    MigrationJournal m_journal;
    HelloMessage m_hello;
    HomeLocation m_location;
    std::optional<crypto::BundleKey> m_key;
    std::unique_ptr<MemoryReceiver> m_memory;
    std::optional<IncomingHome> m_home;
    HostMapping m_firmware;
    size_t m_firmware_here = 0;
    ByteVector m_state;
    StepTimes m_times;
    PrepareMessage m_prepare;
    Stage m_stage = Stage::Empty;
    // The file that is being received, or a part of one.
    uint64_t m_file_left = 0;
    PartedFile* m_part_of = nullptr;
    uint64_t m_part_at = 0;
    std::map<std::pair<uint32_t, std::string>, PartedFile> m_parted; // as FileMessage names them
    std::vector<std::filesystem::path> m_made_disks;
    std::map<size_t, std::filesystem::path> m_places; // of disks that are not where they were
};

// Answers a source that asks what became of a migration, with no process here that has its machine: Started where this
// host owns the VM, else it never will, and what is left of it here is removed.
Result<void> answer_ask(Stream& stream, HomeRoot const& root, Peer const& peer, AskMessage const& ask);

} // namespace coffer::vmm::migrate
