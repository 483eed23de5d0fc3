// The control protocol of swtpm, as its tpm_ioctl.h (swtpm 0.7) has the numbers. All fields are big-endian. A request
// is a u32 command and the body below; a response is a u32 result (but for GetCapability) and the fields named.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coffer::vmm::tpm_control {

enum class Command : uint32_t {
    GetCapability = 0x01,    // -> u64 capabilities, and no result
    Init = 0x02,             // u32 flags
    Shutdown = 0x03,         //
    GetEstablished = 0x04,   // -> u8 bit, three bytes of padding
    SetLocality = 0x05,      // u8 locality; some clients add three bytes of padding
    HashStart = 0x06,        //
    HashData = 0x07,         // u32 length, data
    HashEnd = 0x08,          //
    CancelCommand = 0x09,    //
    StoreVolatile = 0x0A,    //
    ResetEstablished = 0x0B, // as SetLocality
    GetStateBlob = 0x0C,     // u32 flags, u32 type, u32 offset -> u32 flags, u32 total, u32 length, data
    SetStateBlob = 0x0D,     // u32 flags, u32 type, u32 length, data
    Stop = 0x0E,             //
    GetConfig = 0x0F,        // -> u32 flags
    SetDataFd = 0x10,        // and a socket by SCM_RIGHTS
    SetBufferSize = 0x11,    // u32 size, 0 asks -> u32 size, u32 least, u32 most
    GetInfo = 0x12,          // u64 flags, u32 offset, u32 padding -> u32 total, u32 length, data
};

// Bits of GetCapability, in order of the commands they stand for.
constexpr uint64_t k_capabilities = 0x7FFF; // all of the above

// TPM 1.2 codes, which the protocol uses whatever the TPM's version.
enum class ControlResult : uint32_t {
    Success = 0x00,
    BadParameter = 0x03,
    Fail = 0x09,
    BadOrdinal = 0x0A, // unknown, or not now
    IoError = 0x1F,
    BadLocality = 0x3D,
};

constexpr uint32_t k_blob_permanent = 1;
constexpr uint32_t k_blob_volatile = 2;
constexpr uint32_t k_blob_save_state = 3;   // of TPM 1.2
constexpr uint32_t k_blob_is_encrypted = 2; // flag of a blob that goes out or comes in
constexpr uint32_t k_config_file_key = 1;
constexpr uint32_t k_config_migration_key = 2;

constexpr size_t k_command_size = 4;
constexpr size_t k_max_padding = 3;
// Of a body's data. State blobs have some tens of KiB.
constexpr size_t k_max_data = size_t{1} << 20;

} // namespace coffer::vmm::tpm_control
