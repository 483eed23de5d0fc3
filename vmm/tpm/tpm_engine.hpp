// A TPM behind swtpm's protocol, without the sockets: what the control commands and TPM commands do to it.
//
// Thread rule: any function from any thread; execute() excludes control(), but for CancelCommand.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>

#include "devices/tpm/libtpms_backend.hpp"
#include "vmm/home/home_session.hpp"
#include "vmm/tpm/control_message.hpp"

namespace coffer::vmm {

class TpmEngine {
public:
    // The TPM is powered on. Home and TPM outlive the engine, which is the TPM's only user.
    TpmEngine(HomeSession& home, devices::LibtpmsBackend& tpm) : m_home(home), m_tpm(tpm) {}

    // Runs a TPM command; the size of its response in `response`, which has room for k_max_command bytes, once the
    // state it has changed is durable. While the home refuses to take the state this waits and tries again; nothing
    // (Cancelled) where stop() came first, or `gone` says that nobody waits for the response: the peer is told nothing.
    // Commands that come after that are answered with TPM_RC_RETRY, and not begun, until the home takes what they would
    // build on.
    Result<size_t> execute(Bytes command, MutBytes response, std::function<bool()> const& gone = {});

    // The response to a request other than SetDataFd and Shutdown, which are their sockets' business.
    tpm_control::Response control(tpm_control::Request const& request);

    // Ends execute() early, now and from now on.
    void stop() noexcept;
    // Largest command, in bytes.
    static constexpr size_t k_max_command = 4096;

private:
    using Response = tpm_control::Response;
    using ControlResult = tpm_control::ControlResult;

    Response locked_control(tpm_control::Request const& request);
    Response init(uint32_t flags);
    Response with_running(std::function<Result<void>()> const& action);
    Response set_locality(uint8_t locality);
    Response reset_established(uint8_t locality);
    Response established();
    Response store_volatile();
    Response get_state_blob(Bytes body);
    Response set_state_blob(Bytes body);
    Response set_buffer_size(uint32_t size);
    Response get_info(Bytes body);
    Response cancel();
    Response report(Result<void> const& result);

    HomeSession& m_home;
    devices::LibtpmsBackend& m_tpm;
    std::atomic<uint64_t> m_executing{0}; // number of the command inside the TPM; 0: none
    std::atomic<bool> m_stop{false};

    std::mutex m_mutex; // guards all below, and the TPM
    uint64_t m_commands = 0;
    bool m_running = true;
    devices::Locality m_locality = devices::Locality::Zero;
    // For the next Init alone, in the clear.
    ByteVector m_next_permanent;
    ByteVector m_next_volatile;
    std::map<uint32_t, ByteVector> m_sealed; // state blobs by type, as last sealed, for reads from an offset
};

} // namespace coffer::vmm
