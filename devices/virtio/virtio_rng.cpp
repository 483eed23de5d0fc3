#include "devices/virtio/virtio_rng.hpp"

#include <algorithm>
#include <array>
#include <cerrno>

#include <sys/random.h>

#include "base/log.hpp"
#include "base/tagged.hpp"

namespace coffer::devices {

using namespace virtio;

namespace {

constexpr uint32_t k_pci_class = 0x10'0000; // network and computing encryption controller: what drivers see elsewhere
constexpr uint16_t k_entries = 64;
constexpr size_t k_piece = 1024; // a request gets this much at most; drivers ask again

bool fill_random(MutBytes to) {
    while (!to.empty()) {
        // SAFETY: writes at most to.size() bytes at to.data().
        ssize_t got = ::getrandom(to.data(), to.size(), 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        to = to.subspan(static_cast<size_t>(got));
    }
    return true;
}

} // namespace

VirtioRng::VirtioRng(std::string unit, GuestMemory& memory, Scheduler& scheduler)
    : VirtioPci({.type = DeviceType::Entropy, .pci_class = k_pci_class, .features = 0, .config_bytes = 0}, {k_entries},
                memory, scheduler),
      m_unit(std::move(unit)), m_timer(scheduler.make_timer([this] {
          if (queue_usable(0)) queue_notified(0);
      })) {}

void VirtioRng::driver_reset() noexcept {
    m_timer->disarm();
}

void VirtioRng::refill() noexcept {
    Nanoseconds now = scheduler().now();
    Nanoseconds past = std::clamp<Nanoseconds>(now - m_refilled, 0, k_ns_per_s);
    uint64_t earned = static_cast<uint64_t>(past) * k_rate / static_cast<uint64_t>(k_ns_per_s);
    if (earned == 0) return;
    m_budget = std::min(m_budget + earned, k_burst);
    m_refilled = now;
}

void VirtioRng::queue_notified(unsigned index) {
    refill();
    VirtQueue::Chain chain;
    std::array<std::byte, k_piece> buffer;
    for (;;) {
        if (m_budget < k_piece) {
            m_timer->arm(scheduler().now() + static_cast<Nanoseconds>(k_piece) * k_ns_per_s / Nanoseconds{k_rate});
            return;
        }
        if (!take(index, chain)) return;
        if (!chain.readable.empty() || chain.writable_bytes() == 0) {
            needs_reset("an impossible buffer for random bytes");
            return;
        }
        MutBytes bytes = MutBytes(buffer).first(std::min<uint64_t>(buffer.size(), chain.writable_bytes()));
        if (!fill_random(bytes)) {
            log::error("{}: the host gives no random bytes", m_unit);
            queue(index).put_back();
            return;
        }
        auto written = queue(index).write(chain, bytes);
        if (!written) {
            needs_reset("a buffer for random bytes that is not in RAM");
            return;
        }
        m_budget -= bytes.size();
        finish(index, chain, static_cast<uint32_t>(*written));
    }
}

Result<ByteVector> VirtioRng::save() const {
    return encode_fields(VirtioRngState{save_virtio()});
}

Result<void> VirtioRng::restore(Bytes bytes) {
    VirtioRngState state;
    TRY(decode_fields(bytes, state));
    TRY(check_virtio(state.virtio));
    restore_virtio(state.virtio);
    return {};
}

} // namespace coffer::devices
