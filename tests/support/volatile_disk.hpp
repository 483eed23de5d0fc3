// A file as a power failure leaves it: what was not flushed may have reached the disk in any order, in part, or not at
// all, in sectors of 512 bytes.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "devices/core/backends.hpp"

namespace coffer::tests {

class VolatileDisk final : public devices::BlockBackend {
public:
    struct State {
        ByteVector current; // as the process sees it
        struct Write {
            uint64_t offset;
            ByteVector bytes;
        };
        std::vector<Write> unsynced; // since the last flush, in order
        ByteVector durable;
        uint64_t operations = 0;            // writes, discards and flushes so far
        uint64_t power_off_at = UINT64_MAX; // from that operation on, all fail
        uint64_t fail_at = UINT64_MAX;      // that operation fails
        ErrorCode failure = ErrorCode::Io;

        // What the disk may hold after the power went.
        ByteVector after_power_failure(std::mt19937& random) const {
            ByteVector disk = durable;
            std::bernoulli_distribution whole(0.4);
            std::bernoulli_distribution kept(std::uniform_real_distribution(0.0, 1.0)(random));
            for (auto const& write : unsynced) {
                bool const all = whole(random);
                bool const keep = kept(random);
                for (size_t at = 0; at < write.bytes.size(); at += 512)
                    if (all ? keep : kept(random))
                        std::copy_n(write.bytes.begin() + static_cast<std::ptrdiff_t>(at),
                                    std::min<size_t>(512, write.bytes.size() - at),
                                    disk.begin() + static_cast<std::ptrdiff_t>(write.offset + at));
            }
            return disk;
        }
    };

    // `state` outlives the disk.
    explicit VolatileDisk(State& state, bool read_only = false) : m_state(state), m_read_only(read_only) {}

    uint64_t size() const noexcept override { return m_state.current.size(); }
    bool read_only() const noexcept override { return m_read_only; }
    Result<void> read(uint64_t offset, MutBytes to) override {
        COFFER_ASSERT(offset % 512 == 0 && to.size() % 512 == 0 && offset <= size() && to.size() <= size() - offset);
        std::copy_n(m_state.current.begin() + static_cast<std::ptrdiff_t>(offset), to.size(), to.begin());
        return {};
    }
    Result<void> write(uint64_t offset, Bytes from) override {
        COFFER_ASSERT(offset % 512 == 0 && from.size() % 512 == 0 && offset <= size() &&
                      from.size() <= size() - offset);
        // The write at which the power goes may still reach the disk in part.
        if (m_state.operations <= m_state.power_off_at)
            m_state.unsynced.push_back({offset, {from.begin(), from.end()}});
        TRY(step());
        std::ranges::copy(from, m_state.current.begin() + static_cast<std::ptrdiff_t>(offset));
        return {};
    }
    Result<void> flush() override {
        TRY(step());
        if (!m_drops_flushes) {
            m_state.durable = m_state.current;
            m_state.unsynced.clear();
        }
        return {};
    }
    Result<void> discard(uint64_t offset, uint64_t bytes) override { return write(offset, ByteVector(bytes)); }

    // A host that lies, to see that the tests would notice.
    void drop_flushes() noexcept { m_drops_flushes = true; }

private:
    Result<void> step() {
        uint64_t const now = m_state.operations++;
        if (now >= m_state.power_off_at) return make_error(ErrorCode::Io, "the power is off");
        if (now == m_state.fail_at) return make_error(m_state.failure, "a planned failure");
        return {};
    }

    State& m_state;
    bool m_read_only;
    bool m_drops_flushes = false;
};

} // namespace coffer::tests
