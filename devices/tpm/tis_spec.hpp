// Registers of the TPM's FIFO interface ("TIS"): TCG PC Client Platform TPM Profile (PTP) 1.05 rev 14, 6.5.2, which
// continues TCG PC Client TPM Interface Specification 1.3. Offsets are from a locality's block of 4 KiB; there are five
// blocks. All registers are little-endian.
//
// Not emulated: the D-RTM hash window of locality 4 (TPM_HASH_START, _DATA, _END). Locality 4 is the chipset's: no
// guest software reaches it on a real platform, so its block takes no writes. The interface selector is fixed to FIFO.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coffer::devices::tis {

constexpr uint64_t k_block_size = 0x1000;  // one locality
constexpr uint64_t k_window_size = 0x5000; // five
constexpr size_t k_buffer_size = 4096;

// clang-format off
enum class Register : uint16_t {
    //                  offset     access  bits  readable by   writable by
    ACCESS            = 0x000,  //  R/W1S   8     all           all
    INT_ENABLE        = 0x008,  //  R/W     32    all           active locality
    INT_VECTOR        = 0x00C,  //  R/W     8     all           active locality
    INT_STATUS        = 0x010,  //  R/W1C   32    all           active locality
    INTF_CAPABILITY   = 0x014,  //  RO      32    all
    STS               = 0x018,  //  R/W1S   32    active (1s)   active locality
    DATA_FIFO         = 0x024,  //  R/W     8-32  active (1s)   active locality
    INTERFACE_ID      = 0x030,  //  RO      32    all           a write is tolerated
    XDATA_FIFO        = 0x080,  //  R/W     8-64  active (1s)   active locality
    DID_VID           = 0xF00,  //  RO      32    all
    RID               = 0xF04,  //  RO      8     all
};
// clang-format on

constexpr uint64_t k_data_fifo_size = 4;
constexpr uint64_t k_xdata_fifo_size = 0x40;

// ACCESS
constexpr uint8_t k_access_not_established = 1U << 0; // tpmEstablishment: 0 once a D-RTM sequence has taken place
constexpr uint8_t k_access_request_use = 1U << 1;     // write: ask for the TPM; read: asked and not granted
constexpr uint8_t k_access_pending = 1U << 2;         // read: another locality asks
constexpr uint8_t k_access_seize = 1U << 3;           // write: take it from a lower locality
constexpr uint8_t k_access_been_seized = 1U << 4;     // read: it was taken; write: clears this
constexpr uint8_t k_access_active = 1U << 5;          // read: this locality has it; write: relinquish
constexpr uint8_t k_access_valid = 1U << 7;           // tpmRegValidSts

// INT_ENABLE, INT_STATUS and, for the first four, INTF_CAPABILITY
constexpr uint32_t k_int_data_avail = 1U << 0;
constexpr uint32_t k_int_sts_valid = 1U << 1;
constexpr uint32_t k_int_locality_change = 1U << 2;
constexpr uint32_t k_int_command_ready = 1U << 7;
constexpr uint32_t k_int_all = k_int_data_avail | k_int_sts_valid | k_int_locality_change | k_int_command_ready;
constexpr uint32_t k_int_polarity_mask = 3U << 3; // typePolarity; 01: low level, the only one here
constexpr uint32_t k_int_low_level = 1U << 3;
constexpr uint32_t k_int_global = 1U << 31;
constexpr uint8_t k_int_vector_mask = 0x0F;

// INTF_CAPABILITY: the interrupts, InterruptLevelLow in 4, DataTransferSizeSupport 3 (64 bytes) in 10:9,
// InterfaceVersion 3 (FIFO interface of TPM 2.0) in 30:28; burst counts are dynamic.
constexpr uint32_t k_capability = 3U << 28 | 3U << 9 | 1U << 4 | k_int_all;

// STS
constexpr uint32_t k_sts_response_retry = 1U << 1; // write: read the response from its start again
constexpr uint32_t k_sts_self_test_done = 1U << 2;
constexpr uint32_t k_sts_expect = 1U << 3;        // the command is not complete
constexpr uint32_t k_sts_data_avail = 1U << 4;    // there is response to read
constexpr uint32_t k_sts_go = 1U << 5;            // write: execute
constexpr uint32_t k_sts_command_ready = 1U << 6; // write: make ready, aborting what is under way
constexpr uint32_t k_sts_valid = 1U << 7;
constexpr unsigned k_sts_burst_shift = 8;              // burstCount in 23:8
constexpr uint32_t k_sts_command_cancel = 1U << 24;    // write
constexpr uint32_t k_sts_reset_established = 1U << 25; // write, localities 3 and 4
constexpr uint32_t k_sts_family_2 = 1U << 26;          // tpmFamily 01 in 27:26

// INTERFACE_ID: InterfaceType 0 (FIFO) in 3:0, InterfaceVersion 0 in 7:4, CapLocality 1 (five) in 8, CapFIFO in 13,
// InterfaceSelector 0 (FIFO) in 18:17.
constexpr uint32_t k_interface_id = 0x0000'2100;
static_assert((k_interface_id & 0xF) == 0 && (k_interface_id >> 8 & 1) == 1 && (k_interface_id >> 13 & 1) == 1);
// A TPM of TIS 1.3 has no such register, and its place reads all ones: InterfaceType 15, "as in TIS 1.3".
// InterfaceVersion of INTF_CAPABILITY is 3 there as well, "1.3 for TPM 2.0".
constexpr uint32_t k_no_interface_id = 0xFFFF'FFFF;

// What the registers say they are: in nothing else do the two differ here.
enum class Generation : uint8_t { Tis13, Ptp };

// Vendor 0x1014 as libtpms' TPM_PT_MANUFACTURER "IBM ", device 1, revision 1.
constexpr uint32_t k_device_vendor = 0x0001'1014;
constexpr uint8_t k_revision = 0x01;

// The states of PTP 1.05 rev 14's FIFO state diagram.
enum class Phase : uint8_t { Idle, Ready, Reception, Executing, Completed };

} // namespace coffer::devices::tis
