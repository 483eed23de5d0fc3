#include "vmm/cli/host_link.hpp"

#include <array>
#include <sys/socket.h>

#include "base/log.hpp"

namespace coffer::cli {

namespace {

constexpr Nanoseconds k_connect_limit = 10 * k_ns_per_s;
constexpr Nanoseconds k_close_limit = 5 * k_ns_per_s;

} // namespace

Result<HostLink> HostLink::open(vmm::HomeRoot const& root, UniqueFd socket, std::string place, bool server) {
    vmm::HostTrust const trust(root);
    auto const identity = TRY(trust.identity());
    vmm::migrate::Peer peer;
    peer.place = std::move(place);
    auto check = [&](crypto::Certificate const&, crypto::Digest const& fingerprint) -> Result<void> {
        auto host = trust.find(fingerprint);
        // For a user it is a matter of rights, not of a missing thing.
        if (!host && host.error().code() == ErrorCode::NotFound)
            return Error(ErrorCode::Permission, host.error().message());
        if (!host) return host.error();
        peer.name = host->name;
        peer.fingerprint = fingerprint;
        return {};
    };
    crypto::TlsChannel::Settings const settings{identity.certificate, identity.key, check};
    auto channel = server ? TRY(crypto::TlsChannel::accept(std::move(socket), settings))
                          : TRY(crypto::TlsChannel::connect(std::move(socket), settings));
    auto const exporter = TRY(channel.export_key(vmm::migrate::k_exporter_label, peer.exporter.size()));
    std::copy(exporter.begin(), exporter.end(), peer.exporter.begin());
    return HostLink(std::move(channel), std::move(peer));
}

Result<HostLink> HostLink::connect(vmm::HomeRoot const& root, vmm::TcpPlace const& place) {
    auto socket = TRY(vmm::connect_tcp(place, k_connect_limit));
    auto link = open(root, std::move(socket), place.to_string(), false);
    if (!link) return std::move(link).error().with_context(place.to_string());
    return link;
}

Result<HostLink> HostLink::accept(vmm::HomeRoot const& root, UniqueFd socket, std::string from) {
    return open(root, std::move(socket), std::move(from), true);
}

vmm::control::MigrationPeer HostLink::control_peer() const {
    return {m_peer.fingerprint, m_peer.name, m_peer.place, m_peer.exporter};
}

Result<std::unique_ptr<PumpedLink>> PumpedLink::start(HostLink link) {
    std::array<int, 2> pair{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0)
        return errno_error(errno, "cannot make a socket pair");
    std::unique_ptr<PumpedLink> pumped(new PumpedLink(std::move(link)));
    pumped->m_near = UniqueFd(pair[0]);
    pumped->m_far = UniqueFd(pair[1]);
    pumped->m_thread = std::thread([raw = pumped.get()] {
        auto done = raw->m_link.pump(raw->m_far.get(), [raw] {
            auto const end = raw->m_end.load();
            return end == 0 || monotonic_now() < end;
        });
        if (!done) log::debug("{}", done.error().message());
        ::shutdown(raw->m_far.get(), SHUT_RDWR);
    });
    return pumped;
}

PumpedLink::~PumpedLink() {
    m_near.reset();
    m_end = monotonic_now() + k_close_limit;
    m_thread.join();
}

} // namespace coffer::cli
