// A TpmBackend that answers as it is told, for tests of what stands in front of a TPM. There may be any number of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "devices/tpm/tpm_backend.hpp"
#include "devices/tpm/tpm_command.hpp"

namespace coffer::tests {

class FakeTpm final : public devices::TpmBackend {
public:
    Result<size_t> limit_buffer_size(size_t bytes) override { return bytes; }

    // The response: success, and the command's bytes behind the header, as many as fit.
    Result<size_t> execute(devices::Locality from, Bytes command, MutBytes response) override {
        {
            std::unique_lock lock(m_mutex);
            m_running = true;
            m_changed.notify_all();
            m_changed.wait(lock, [&] { return !m_hold || m_cancelled; });
            m_running = false;
            bool cancelled = std::exchange(m_cancelled, false);
            if (cancelled) return devices::write_tpm_response(response, devices::TpmResponseCode::Canceled);
        }
        ++executed;
        locality = from;
        size_t size = devices::write_tpm_response(response, devices::TpmResponseCode::Success);
        size_t echo = std::min(command.size(), response.size() - size);
        std::copy_n(command.begin(), echo, response.begin() + static_cast<ptrdiff_t>(size));
        store_be<uint32_t>(response, devices::k_tpm_size_offset, static_cast<uint32_t>(size + echo));
        return size + echo;
    }
    // Lost, as with libtpms, where no command has begun; `lose_cancels` more are lost too.
    void cancel() noexcept override {
        std::lock_guard lock(m_mutex);
        ++cancels;
        if (!m_running || lose_cancels > 0) {
            if (lose_cancels > 0) --lose_cancels;
            return;
        }
        m_cancelled = true;
        m_changed.notify_all();
    }
    Result<void> make_durable() override {
        if (store_fails) return Error(ErrorCode::NoSpace, "fake store is full");
        ++commits;
        return {};
    }
    Result<void> power_cycle() override {
        ++power_cycles;
        return {};
    }
    bool established() const noexcept override { return is_established; }
    Result<void> reset_established(devices::Locality from) override {
        if (from < devices::Locality::Three) return Error(ErrorCode::Permission, "locality");
        is_established = false;
        return {};
    }
    Result<void> hash_start() override {
        hashed.clear();
        is_established = true;
        return {};
    }
    Result<void> hash_data(Bytes data) override {
        append(hashed, data);
        return {};
    }
    Result<void> hash_end() override {
        ++hashes;
        return {};
    }
    Result<ByteVector> volatile_state() override { return ByteVector(1); }
    Result<ByteVector> permanent_state() override { return ByteVector(1); }
    Result<void> restore(Bytes, Bytes) override { return {}; }

    // Commands stay inside execute() until release(), or a cancel that is not lost.
    void hold() {
        std::lock_guard lock(m_mutex);
        m_hold = true;
    }
    void release() {
        std::lock_guard lock(m_mutex);
        m_hold = false;
        m_changed.notify_all();
    }
    void wait_running() {
        std::unique_lock lock(m_mutex);
        m_changed.wait(lock, [&] { return m_running; });
    }

    std::atomic<bool> store_fails{false};
    std::atomic<bool> is_established{false};
    std::atomic<unsigned> executed{0};
    std::atomic<unsigned> commits{0};
    std::atomic<unsigned> power_cycles{0};
    std::atomic<unsigned> hashes{0};
    std::atomic<unsigned> cancels{0};
    std::atomic<unsigned> lose_cancels{0};
    std::atomic<devices::Locality> locality{devices::Locality::Zero};
    ByteVector hashed;

private:
    std::mutex m_mutex;
    std::condition_variable m_changed;
    bool m_hold = false;
    bool m_running = false;
    bool m_cancelled = false;
};

} // namespace coffer::tests
