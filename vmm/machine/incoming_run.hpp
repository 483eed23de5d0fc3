// What a run has to do with coming from another host: the destination's side of a migration
// (vmm/migrate/destination.hpp), with the machine that it becomes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "vmm/control/migrate.hpp"
#include "vmm/control/server.hpp"
#include "vmm/machine/machine.hpp"
#include "vmm/migrate/destination.hpp"

namespace coffer::vmm {

class IncomingRun {
public:
    // `stream` has said who is at the other end. `open_key` asks this host's provider.
    struct Options {
        HomeRoot root;
        BundleOpener open_key;
        // As migrate::Destination::Options has them.
        std::function<Result<std::filesystem::path>(size_t, migrate::HelloDisk const&)> place_disk = {};
        std::function<Result<void>(std::filesystem::path const&)> may_use_disk = {};
        Nanoseconds patience = 120 * k_ns_per_s;
    };
    static std::unique_ptr<IncomingRun> create(UniqueFd socket, migrate::Peer peer, Options options);

    // The source's Hello was received. Takes all of the VM: its home is then open, arriving, and a run may begin.
    Result<std::unique_ptr<HomeSession>> take(Bytes hello);

    // For run_vm(), in this order.
    std::unique_ptr<Partition> take_partition() { return std::move(m_partition); }
    std::unique_ptr<GuestRam> take_ram() { return std::move(m_ram); }
    std::string const& backend() const noexcept { return m_state->backend; }
    MachineState const& state() const noexcept { return *m_state; }
    // Flash content as it was. Corrupt where home and machine are not of one moment.
    Result<void> configure(PlatformConfig& config);
    // A source that lost its connection comes back by this request, while this waits for it.
    bool is_waiting() const noexcept { return m_is_waiting; }
    Result<control::SettleAnswer> come_back(control::SettleRequest const& request, control::Conversation& with);
    // Returns when this host owns the VM: the guest is to run then. After an error it never does here.
    Result<void> wait_for_go(HomeSession& home);
    void confirm() noexcept;
    // A step of getting the machine to run is done.
    void passed(std::string_view step) { m_destination->times().done(step); }
    // Tells the source, where it listens, why its VM does not run here.
    void fail(Error const& error) noexcept { m_destination->fail(error); }

    // Any thread: gives the migration up, unless this host owns the VM already.
    void cancel() noexcept { m_cancelled = true; }

    migrate::Peer const& peer() const noexcept { return m_destination->peer(); }
    std::string const& name() const noexcept { return m_destination->hello().name; }

private:
    IncomingRun() = default;
    Result<std::vector<MutBytes>> check_machine(migrate::HelloMessage const& hello);
    std::unique_ptr<migrate::Stream> next_stream(Nanoseconds limit);
    std::unique_ptr<migrate::Stream> make_stream(UniqueFd socket);

    std::unique_ptr<Partition> m_partition;
    std::unique_ptr<GuestRam> m_ram;
    std::optional<MachineState> m_state;
    std::atomic<bool> m_cancelled{false};
    std::atomic<bool> m_is_waiting{true};
    std::mutex m_mutex;
    std::condition_variable m_changed;
    std::deque<UniqueFd> m_waiting;                      // connections that the source came back by
    std::unique_ptr<migrate::Destination> m_destination; // last: gives up what the others hold
};

} // namespace coffer::vmm
