// A TPM 2.0 as its register interfaces (CRB, TIS) see it: something that executes commands.
//
// Thread rule: cancel() and established() may be called from any thread at any time; all other functions block, and are
// called by one thread at a time (TpmThread's, once a front end owns the backend).
//
// Durability. execute() changes the TPM's state in memory; make_durable() writes what has changed to where the next
// start finds it. A response is shown to the guest only after make_durable() has succeeded; TpmThread sees to that.
#pragma once

#include <cstdint>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer::devices {

// Who sends a command, as the platform's chipset tells it (PC Client PTP 1.05 rev 14, 6.2). 4 is the D-RTM hardware.
enum class Locality : uint8_t { Zero, One, Two, Three, Four };
constexpr unsigned k_locality_count = 5;

class TpmBackend {
public:
    virtual ~TpmBackend() = default;

    // The front end's buffer, in bytes. Returns the largest command and response from now on, which is no larger.
    // InvalidArgument where the TPM cannot work with so little.
    virtual Result<size_t> limit_buffer_size(size_t bytes) = 0;

    // Runs one command, of any content and size, and writes its response; returns the response's size. `response` has
    // room for the buffer size. An error means that there is no TPM behind it any more.
    virtual Result<size_t> execute(Locality locality, Bytes command, MutBytes response) = 0;
    // Asks the running command to end early with TPM_RC_CANCELED. May be lost where the command has hardly begun: the
    // caller repeats it until the command ends. Without effect where none runs.
    virtual void cancel() noexcept = 0;

    // Success: all state that the next start needs is durable. Cheap where nothing has changed. After an error it may
    // be called again at any time.
    virtual Result<void> make_durable() = 0;

    // _TPM_Init: power-on or platform reset. Volatile state is gone, and TPM2_Startup is expected next.
    virtual Result<void> power_cycle() = 0;

    // Whether a D-RTM sequence has taken place since the last reset of the flag (TPM_ACCESS and TPM_LOC_STATE show its
    // inverse).
    virtual bool established() const noexcept = 0;
    // Refused (Permission) below locality 3.
    virtual Result<void> reset_established(Locality locality) = 0;

    // _TPM_Hash_Start, _TPM_Hash_Data, _TPM_Hash_End (TPM 2.0 Library 1.59, Part 3, 31): a D-RTM measurement into PCR
    // 17, or, before TPM2_Startup, an H-CRTM one into PCR 0.
    virtual Result<void> hash_start() = 0;
    virtual Result<void> hash_data(Bytes data) = 0;
    virtual Result<void> hash_end() = 0;

    // What a suspend keeps and the NV store does not hold: PCRs, sessions, loaded objects, clock.
    virtual Result<ByteVector> volatile_state() = 0;
    // The state as of make_durable(), and the whole of a suspended TPM put back. After an error the TPM is in failure
    // mode until a further restore succeeds.
    virtual Result<ByteVector> permanent_state() = 0;
    virtual Result<void> restore(Bytes permanent, Bytes volatile_state) = 0;
};

} // namespace coffer::devices
