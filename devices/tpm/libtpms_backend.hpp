// TPM 2.0 by libtpms 0.9 (TPM 2.0 Library revision 1.64 in the TCG's reference form).
//
// libtpms keeps its state in globals: there is one TPM in a process, and create() refuses a second one.
//
// Durability with libtpms: it takes its NV memory for always available, and a store callback that fails puts it into
// failure mode. So the callback only copies what is stored, and make_durable() commits the copy afterwards.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/file.hpp"
#include "devices/core/backends.hpp"
#include "devices/tpm/tpm_backend.hpp"

namespace coffer::devices {

// What create() does where there is no stored state.
enum class TpmManufacture : bool { No, Yes };

class LibtpmsBackend final : public TpmBackend {
public:
    // Powers the TPM on. `stored` is what was last committed to `store`, and `store` outlives the backend.
    //   with state, and No: that TPM. Integrity where libtpms cannot load it.
    //   without state, and Yes: a new TPM (banks SHA-1, SHA-256, SHA-384, SHA-512), durable when this returns.
    //   without state, and No: NotFound; a lost state never becomes a new TPM in silence.
    //   with state, and Yes: AlreadyExists; a TPM is never overwritten.
    // Busy where this process has a TPM already.
    static Result<std::unique_ptr<LibtpmsBackend>> create(std::optional<ByteVector> stored, TpmManufacture manufacture,
                                                          NvStore& store);
    ~LibtpmsBackend() override;
    LibtpmsBackend(LibtpmsBackend const&) = delete;
    LibtpmsBackend& operator=(LibtpmsBackend const&) = delete;

    Result<size_t> limit_buffer_size(size_t bytes) override;
    struct BufferSize {
        uint32_t now;
        uint32_t least;
        uint32_t most;
    };
    BufferSize buffer_size() const noexcept;
    // libtpms' description of itself, JSON; `flags` choose its parts (TPMLIB_GetInfo).
    std::string info(uint32_t flags) const;
    Result<size_t> execute(Locality locality, Bytes command, MutBytes response) override;
    void cancel() noexcept override;
    Result<void> make_durable() override;
    Result<void> power_cycle() override;
    bool established() const noexcept override { return m_established.load(std::memory_order_acquire); }
    Result<void> reset_established(Locality locality) override;
    Result<void> hash_start() override;
    Result<void> hash_data(Bytes data) override;
    Result<void> hash_end() override;
    Result<ByteVector> volatile_state() override;
    Result<ByteVector> permanent_state() override;
    Result<void> restore(Bytes permanent, Bytes volatile_state) override;

private:
    friend struct LibtpmsCallbacks;

    explicit LibtpmsBackend(NvStore& store) : m_store(store) {}
    Result<void> power_on();
    void refresh_established() noexcept;

    NvStore& m_store;
    UniqueFd m_silence; // takes libtpms' messages, which can hold a command's secrets
    bool m_failure_reported = false;
    ByteVector m_permanent;        // as libtpms last stored it
    ByteVector m_committed;        // as m_store last accepted it
    bool m_unsettled = false;      // they may differ
    ByteVector m_volatile_to_load; // for the next power_on() alone
    bool m_manufacturing = false;  // the one time that state may be reported absent
    Locality m_locality = Locality::Zero;
    std::atomic<bool> m_established{false};
    ByteVector m_command;
    unsigned char* m_response = nullptr; // libtpms' own, by malloc
    uint32_t m_response_capacity = 0;
};

} // namespace coffer::devices
