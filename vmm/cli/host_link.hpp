// A TLS connection to another host that is trusted here, whose bytes a process without the host's key is to have.
// Neither process has what the other does: this one the network, the other one the VM.
#pragma once

#include <atomic>
#include <optional>
#include <thread>

#include "vmm/control/migrate.hpp"
#include "vmm/migrate/host_identity.hpp"
#include "vmm/migrate/source.hpp"
#include "vmm/migrate/tcp.hpp"

namespace coffer::cli {

class HostLink {
public:
    // As a client. Permission, NotFound where one of the hosts does not trust the other.
    static Result<HostLink> connect(vmm::HomeRoot const& root, vmm::TcpPlace const& place);
    // As the server of an accepted connection.
    static Result<HostLink> accept(vmm::HomeRoot const& root, UniqueFd socket, std::string from);

    vmm::migrate::Peer const& peer() const noexcept { return m_peer; }
    vmm::control::MigrationPeer control_peer() const;
    std::string describe() const { return m_channel.describe(); }

    // Until both directions are closed, or an end is lost.
    Result<void> pump(int local, std::function<bool()> const& keep_on) { return m_channel.pump(local, keep_on); }

private:
    HostLink(crypto::TlsChannel channel, vmm::migrate::Peer peer)
        : m_channel(std::move(channel)), m_peer(std::move(peer)) {}
    static Result<HostLink> open(vmm::HomeRoot const& root, UniqueFd socket, std::string place, bool server);

    crypto::TlsChannel m_channel;
    vmm::migrate::Peer m_peer;
};

// A link that a thread pumps, from this object's making on. near() is the end for the VM's process.
class PumpedLink {
public:
    static Result<std::unique_ptr<PumpedLink>> start(HostLink link);
    // Waits for both ends to close, a few seconds at most. near() is closed before.
    ~PumpedLink();

    HostLink const& link() const noexcept { return m_link; }
    UniqueFd& near() noexcept { return m_near; }

private:
    explicit PumpedLink(HostLink link) : m_link(std::move(link)) {}

    HostLink m_link;
    UniqueFd m_near;
    UniqueFd m_far;
    std::atomic<Nanoseconds> m_end{0}; // when to give up; 0: not yet
    std::thread m_thread;
};

} // namespace coffer::cli
