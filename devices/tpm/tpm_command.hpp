// TPM 2.0 command and response headers, and a builder of commands for tests and tools. The structures are those of TCG
// TPM 2.0 Library, revision 1.59, Part 1, 18 ("Command/Response Structure"); the codes are of Part 2, 6.5.2 and 6.6.3.
#pragma once

#include <optional>

#include "base/bytes.hpp"

namespace coffer::devices {

enum class TpmTag : uint16_t { NoSessions = 0x8001, Sessions = 0x8002 };

enum class TpmResponseCode : uint32_t {
    Success = 0x000,
    Initialize = 0x100,  // TPM2_Startup has not been received yet
    Failure = 0x101,     // failure mode
    CommandSize = 0x142, // commandSize disagrees with the bytes that came
    CommandCode = 0x143,
    Canceled = 0x909,
    Retry = 0x922, // the TPM was not able to start the command: send it again
};

enum class TpmCommandCode : uint32_t {
    EvictControl = 0x120,
    NvUndefineSpace = 0x122,
    Clear = 0x126,
    ClearControl = 0x127,
    NvDefineSpace = 0x12A,
    PcrAllocate = 0x12B,
    CreatePrimary = 0x131,
    NvWrite = 0x137,
    SelfTest = 0x143,
    Startup = 0x144,
    Shutdown = 0x145,
    NvRead = 0x14E,
    FlushContext = 0x165,
    NvReadPublic = 0x169,
    ReadPublic = 0x173,
    GetCapability = 0x17A,
    GetRandom = 0x17B,
    PcrRead = 0x17E,
    PcrExtend = 0x182,
};

// Permanent handles (Part 2, 7.4).
constexpr uint32_t k_tpm_rh_owner = 0x4000'0001;
constexpr uint32_t k_tpm_rs_pw = 0x4000'0009;
constexpr uint32_t k_tpm_rh_endorsement = 0x4000'000B;
constexpr uint32_t k_tpm_rh_platform = 0x4000'000C;

// tag, size of the whole message, command or response code; big-endian.
constexpr size_t k_tpm_header_size = 10;
constexpr size_t k_tpm_size_offset = 2;
constexpr size_t k_tpm_code_offset = 6;

struct TpmHeader {
    uint16_t tag;
    uint32_t size;
    uint32_t code;
};

// Nothing where the message is shorter than a header; the size field is as the sender wrote it.
inline std::optional<TpmHeader> parse_tpm_header(Bytes message) {
    if (message.size() < k_tpm_header_size) return std::nullopt;
    return TpmHeader{load_be<uint16_t>(message), load_be<uint32_t>(message, k_tpm_size_offset),
                     load_be<uint32_t>(message, k_tpm_code_offset)};
}

// Writes a response without parameters; returns its size. The buffer holds at least a header.
inline size_t write_tpm_response(MutBytes to, TpmResponseCode code) {
    store_be<uint16_t>(to, 0, static_cast<uint16_t>(TpmTag::NoSessions));
    store_be<uint32_t>(to, k_tpm_size_offset, static_cast<uint32_t>(k_tpm_header_size));
    store_be<uint32_t>(to, k_tpm_code_offset, static_cast<uint32_t>(code));
    return k_tpm_header_size;
}

// Appends fields in command order; take() fills in the size.
class TpmCommand {
public:
    TpmCommand(TpmTag tag, TpmCommandCode code) {
        u16(static_cast<uint16_t>(tag)).u32(0).u32(static_cast<uint32_t>(code));
    }

    TpmCommand& u8(uint8_t value) { return be(value); }
    TpmCommand& u16(uint16_t value) { return be(value); }
    TpmCommand& u32(uint32_t value) { return be(value); }
    TpmCommand& bytes(Bytes value) {
        append(m_bytes, value);
        return *this;
    }
    // A TPM2B: u16 size and content.
    TpmCommand& sized(Bytes value) {
        COFFER_ASSERT(value.size() <= UINT16_MAX);
        return u16(static_cast<uint16_t>(value.size())).bytes(value);
    }
    // An authorization area of `handles` password sessions with empty passwords.
    TpmCommand& empty_password(unsigned handles = 1) {
        u32(9 * handles);
        for (; handles > 0; --handles) u32(k_tpm_rs_pw).u16(0).u8(1).u16(0);
        return *this;
    }
    ByteVector take() {
        store_be<uint32_t>(m_bytes, k_tpm_size_offset, static_cast<uint32_t>(m_bytes.size()));
        return std::move(m_bytes);
    }

private:
    template <class T>
    TpmCommand& be(T value) {
        m_bytes.resize(m_bytes.size() + sizeof value);
        store_be<T>(m_bytes, m_bytes.size() - sizeof value, value);
        return *this;
    }

    ByteVector m_bytes;
};

} // namespace coffer::devices
