// Registers of the TPM's command response buffer interface: TCG PC Client Platform TPM Profile (PTP) 1.05 rev 14, 6.5.3
// and the table of registers there. Offsets are from the locality's block; all registers are little-endian.
//
// Not emulated: interrupts (INT_ENABLE and INT_STS read as zero; the ACPI tables declare none), localities 1 to 4
// (CapLocality is 0), the D-RTM hash window of locality 4.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coffer::devices::crb {

constexpr uint64_t k_block_size = 0x1000; // one locality

// clang-format off
enum class Register : uint16_t {
    //                 offset     access  bits  what
    LOC_STATE        = 0x00,   //  RO      32    locality state, the same in every locality
    LOC_CTRL         = 0x08,   //  WO      32    request, relinquish, seize; reads 0
    LOC_STS          = 0x0C,   //  RO      32    this locality's grant
    INTF_ID          = 0x30,   //  RO      64    what interfaces there are; selector locked
    INTF_ID_HIGH     = 0x34,
    CTRL_EXT         = 0x38,   //  RO      64    0
    CTRL_REQ         = 0x40,   //  R/W1S   32    power state requests; a bit reads 0 once carried out
    CTRL_STS         = 0x44,   //  RO      32    idle, fatal error
    CTRL_CANCEL      = 0x48,   //  R/W     32    1 asks the running command to end
    CTRL_START       = 0x4C,   //  R/W1S   32    1 while a command runs
    INT_ENABLE       = 0x50,   //  RO      32    0
    INT_STS          = 0x54,   //  RO      32    0
    CTRL_CMD_SIZE    = 0x58,   //  RO      32    bytes of the command buffer; a write is tolerated
    CTRL_CMD_LADDR   = 0x5C,   //  RO      32    its address; likewise
    CTRL_CMD_HADDR   = 0x60,   //  RO      32
    CTRL_RSP_SIZE    = 0x64,   //  RO      32    bytes of the response buffer; likewise
    CTRL_RSP_LADDR   = 0x68,   //  RO      32    its address: the same buffer; likewise
    CTRL_RSP_HADDR   = 0x6C,   //  RO      32
};
// clang-format on

// TPM_CRB_DATA_BUFFER, and the page behind the block where CTRL_CMD_LADDR and CTRL_RSP_LADDR say the buffer is: the
// same bytes at both places.
constexpr uint64_t k_buffer_offset = 0x80;
constexpr size_t k_buffer_size = 3968;
static_assert(k_buffer_offset + k_buffer_size == k_block_size);
constexpr uint64_t k_buffer_page = k_block_size;
constexpr uint64_t k_window_size = k_buffer_page + 0x1000;

// LOC_STATE
constexpr uint32_t k_state_not_established = 1U << 0; // tpmEstablished: 0 once a D-RTM sequence has taken place
constexpr uint32_t k_state_assigned = 1U << 1;        // locAssigned
// bits 4:2 activeLocality: 0 is the only one
constexpr uint32_t k_state_valid = 1U << 7; // tpmRegValidSts

// LOC_CTRL
constexpr uint32_t k_control_request = 1U << 0;
constexpr uint32_t k_control_relinquish = 1U << 1;
// Seize (bit 2) has no lower locality to take from, and resetEstablishmentBit (bit 3) is refused below locality 3.

// LOC_STS
constexpr uint32_t k_status_granted = 1U << 0;

// INTF_ID: InterfaceType 1 (CRB) in 3:0, InterfaceVersion 1 in 7:4, CapLocality 0 in 8, CapCRBIdleBypass 0 in 9,
// CapDataXferSizeSupport 3 (64 bytes) in 12:11, CapCRB in 14, InterfaceSelector 1 (CRB) in 18:17.
constexpr uint32_t k_interface_id = 0x0002'5811;
static_assert((k_interface_id & 0xF) == 1 && (k_interface_id >> 4 & 0xF) == 1);
static_assert((k_interface_id >> 11 & 3) == 3 && (k_interface_id >> 14 & 1) == 1 && (k_interface_id >> 17 & 3) == 1);
// Vendor 0x1014 as libtpms' TPM_PT_MANUFACTURER "IBM ", device 1.
constexpr uint32_t k_vendor_device = 0x0001'1014;

// CTRL_REQ
constexpr uint32_t k_request_ready = 1U << 0;
constexpr uint32_t k_request_idle = 1U << 1;

// CTRL_STS
constexpr uint32_t k_control_idle = 1U << 1;

// CTRL_CANCEL, CTRL_START
constexpr uint32_t k_cancel_invoke = 1;
constexpr uint32_t k_start_invoke = 1;

// The states of PTP 1.05 rev 14, figure 4 ("TPM State Diagram for CRB Interface"); Ready and Command Reception differ
// in nothing that shows.
enum class Phase : uint8_t { Idle, Ready, Executing, Completed };

} // namespace coffer::devices::crb
