// Speaks to a TPM as its platform does: commands with empty authorizations, and their responses taken apart. For tools
// and set-up; a guest's commands are passed on unread.
//
// Errors: Unsupported, naming the operation and the TPM's response code, where the TPM refuses; Corrupt where its
// response is malformed; what the backend says where there is no TPM behind it any more.
#pragma once

#include <string>
#include <vector>

#include "devices/tpm/pcr_banks.hpp"
#include "devices/tpm/tpm_backend.hpp"
#include "devices/tpm/tpm_command.hpp"

namespace coffer::devices {

// Takes big-endian fields off the front of a response. Past its end everything reads as zero, and ok() is false.
class TpmReader {
public:
    explicit TpmReader(Bytes bytes) : m_rest(bytes) {}

    uint8_t u8() { return number<uint8_t>(); }
    uint16_t u16() { return number<uint16_t>(); }
    uint32_t u32() { return number<uint32_t>(); }
    Bytes bytes(size_t size);
    Bytes sized() { return bytes(u16()); } // a TPM2B's content
    Bytes rest() const noexcept { return m_rest; }
    bool ok() const noexcept { return m_ok; }

private:
    template <class T>
    T number() {
        auto taken = bytes(sizeof(T));
        return taken.size() == sizeof(T) ? load_be<T>(taken) : T{};
    }

    Bytes m_rest;
    bool m_ok = true;
};

struct TpmResponse {
    uint32_t code = 0;
    ByteVector body; // behind the header: handles, and parameters with their size in front where there are sessions

    bool ok() const noexcept { return code == 0; }
};

class TpmClient {
public:
    explicit TpmClient(TpmBackend& tpm) : m_tpm(tpm) {}

    // Any answer of the TPM's.
    Result<TpmResponse> transact(ByteVector const& command);
    // The body of a success; `what` completes "the TPM refuses to".
    Result<ByteVector> demand(std::string_view what, ByteVector const& command);

    Result<void> startup();  // TPM2_Startup(TPM_SU_CLEAR)
    Result<void> shutdown(); // TPM2_Shutdown(TPM_SU_CLEAR): the state to power off from
    // TPM2_Clear by the platform, enabled first where the owner has disabled it (Part 3, 24.6 and 24.7).
    Result<void> clear();

    // One property of a group; zero where the TPM does not have it.
    Result<uint32_t> property(uint32_t tag);
    // Handles of one kind, by their first octet (Part 2, 7.2), in rising order.
    Result<std::vector<uint32_t>> handles(uint8_t kind);

    Result<PcrBankMask> active_banks();
    // From the next _TPM_Init on, these banks have all PCRs and the others none.
    Result<void> allocate_banks(PcrBankMask banks);
    // PCR 0 to 23 of an active bank.
    Result<std::vector<ByteVector>> read_pcrs(PcrBank const& bank);

private:
    TpmBackend& m_tpm;
};

} // namespace coffer::devices
