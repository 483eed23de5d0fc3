// NVM Express Base Specification 1.4 (10 June 2019): registers, commands, statuses and data structures.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bytes.hpp"

namespace coffer::devices::nvme {

// Drivers match the class. The ids are of a vendor whose range holds virtual devices, with a device number that no
// driver has quirks for.
constexpr uint16_t k_pci_vendor = 0x1B36;
constexpr uint16_t k_pci_device = 0x01C0;
constexpr uint32_t k_pci_class = 0x01'0802; // NVM Express I/O controller

constexpr uint32_t k_lba_size = 512;
constexpr unsigned k_lba_shift = 9;
constexpr uint64_t k_page_size = 4096;
constexpr unsigned k_io_queues = 16;           // pairs
constexpr unsigned k_queues = k_io_queues + 1; // with the admin queue
constexpr unsigned k_vectors = k_queues;
constexpr unsigned k_max_entries = 1024; // of a queue
constexpr unsigned k_transfer_shift = 8; // MDTS: 2^8 pages, 1 MiB
constexpr uint64_t k_max_transfer = k_page_size << k_transfer_shift;
constexpr unsigned k_max_events = 4; // AERL + 1
constexpr uint32_t k_namespace = 1;
constexpr uint32_t k_all_namespaces = 0xFFFF'FFFF;

//                     // access    bytes  section
enum Register : uint32_t {
    CAP = 0x00,         // RO        8      3.1.1
    VS = 0x08,          // RO        4      3.1.2
    INTMS = 0x0C,       // RW1S      4      3.1.3
    INTMC = 0x10,       // RW1C      4      3.1.4
    CC = 0x14,          // RW        4      3.1.5
    CSTS = 0x1C,        // RO        4      3.1.6
    NSSR = 0x20,        // RO 0      4      3.1.7 (CAP.NSSRS is 0)
    AQA = 0x24,         // RW        4      3.1.8
    ASQ = 0x28,         // RW        8      3.1.9
    ACQ = 0x30,         // RW        8      3.1.10
    DOORBELLS = 0x1000, // WO      4 each 3.1.24, 3.1.25; stride 4 bytes
};
constexpr uint64_t k_registers_size = 0x4000;

constexpr uint64_t k_cap_queue_entries = k_max_entries - 1;
constexpr uint64_t k_cap_contiguous = uint64_t{1} << 16;
constexpr uint64_t k_cap_timeout = uint64_t{60} << 24; // 500 ms units
constexpr uint64_t k_cap_nvm_command_set = uint64_t{1} << 37;
constexpr uint64_t k_cap = k_cap_queue_entries | k_cap_contiguous | k_cap_timeout | k_cap_nvm_command_set;
constexpr uint32_t k_version = 0x0001'0400;

constexpr uint32_t k_cc_enable = 1U << 0;
constexpr uint32_t k_cc_command_set = 7U << 4;
constexpr uint32_t k_cc_page_size = 15U << 7;
constexpr uint32_t k_cc_arbitration = 7U << 11;
constexpr uint32_t k_cc_shutdown = 3U << 14;
constexpr unsigned k_cc_sq_entry_shift = 16;
constexpr unsigned k_cc_cq_entry_shift = 20;
constexpr uint32_t k_cc_writable = 0x00FF'FFF1;
constexpr uint32_t k_csts_ready = 1U << 0;
constexpr uint32_t k_csts_fatal = 1U << 1;
constexpr uint32_t k_csts_shutdown_occurring = 1U << 2;
constexpr uint32_t k_csts_shutdown_complete = 2U << 2;
constexpr uint32_t k_csts_shutdown = 3U << 2;
constexpr uint32_t k_aqa_writable = 0x0FFF'0FFF;

// Submission queue entry (4.2).
struct Command {
    uint8_t opcode;
    uint8_t flags; // FUSE 1:0, PSDT 7:6
    uint16_t id;
    uint32_t nsid;
    uint64_t reserved;
    uint64_t metadata;
    uint64_t prp1;
    uint64_t prp2;
    uint32_t cdw10;
    uint32_t cdw11;
    uint32_t cdw12;
    uint32_t cdw13;
    uint32_t cdw14;
    uint32_t cdw15;
};
static_assert(sizeof(Command) == 64 && offsetof(Command, prp1) == 24 && offsetof(Command, cdw10) == 40);

// Completion queue entry (4.6); status holds the phase tag in bit 0.
struct Completion {
    uint32_t result;
    uint32_t reserved;
    uint16_t sq_head;
    uint16_t sq_id;
    uint16_t command_id;
    uint16_t status;
};
static_assert(sizeof(Completion) == 16);

enum AdminOpcode : uint8_t {
    DELETE_IO_SQ = 0x00,
    CREATE_IO_SQ = 0x01,
    GET_LOG_PAGE = 0x02,
    DELETE_IO_CQ = 0x04,
    CREATE_IO_CQ = 0x05,
    IDENTIFY = 0x06,
    ABORT = 0x08,
    SET_FEATURES = 0x09,
    GET_FEATURES = 0x0A,
    ASYNC_EVENT = 0x0C,
};

enum NvmOpcode : uint8_t { FLUSH = 0x00, WRITE = 0x01, READ = 0x02, WRITE_ZEROES = 0x08, DATASET_MANAGEMENT = 0x09 };

// Status code type in bits 10:8, status code in 7:0 (4.6.1); the value is what stands in status bits 15:1, with DNR in
// bit 14.
enum class Status : uint16_t {
    Success = 0x000,
    InvalidOpcode = 0x001,
    InvalidField = 0x002,
    DataTransferError = 0x004,
    InternalError = 0x006,
    AbortedSqDeletion = 0x008,
    InvalidNamespace = 0x00B,
    PrpOffsetInvalid = 0x013,
    NamespaceWriteProtected = 0x020,
    LbaOutOfRange = 0x080,
    CqInvalid = 0x100,
    InvalidQueueId = 0x101,
    InvalidQueueSize = 0x102,
    AbortLimitExceeded = 0x103,
    EventLimitExceeded = 0x105,
    InvalidVector = 0x108,
    InvalidLogPage = 0x109,
    InvalidQueueDeletion = 0x10C,
    FeatureNotSaveable = 0x10D,
    FeatureNotChangeable = 0x10E,
    WriteFault = 0x280,
    UnrecoveredReadError = 0x281,
};
constexpr uint16_t k_do_not_retry = 1U << 14;

enum IdentifyKind : uint8_t {
    IDENTIFY_NAMESPACE = 0,
    IDENTIFY_CONTROLLER = 1,
    IDENTIFY_ACTIVE_NAMESPACES = 2,
    IDENTIFY_NAMESPACE_DESCRIPTORS = 3,
};
constexpr size_t k_identify_size = 4096;

// Offsets in the Identify Controller structure (figure 247).
enum IdentifyController : size_t {
    IC_VID = 0,
    IC_SSVID = 2,
    IC_SN = 4,  // 20
    IC_MN = 24, // 40
    IC_FR = 64, // 8
    IC_RAB = 72,
    IC_MDTS = 77,
    IC_CNTLID = 78,
    IC_VER = 80,
    IC_CNTRLTYPE = 111,
    IC_ACL = 258,
    IC_AERL = 259,
    IC_FRMW = 260,
    IC_LPA = 261,
    IC_ELPE = 262,
    IC_NPSS = 263,
    IC_WCTEMP = 266,
    IC_CCTEMP = 268,
    IC_SQES = 512,
    IC_CQES = 513,
    IC_NN = 516,
    IC_ONCS = 520,
    IC_VWC = 525,
    IC_SUBNQN = 768, // 256
    IC_PSD0 = 2048,
};
constexpr uint8_t k_frmw_one_read_only_slot = 1U << 1 | 1U << 0;
constexpr uint8_t k_lpa_extended = 1U << 2; // log page offsets
constexpr uint16_t k_oncs_dataset_management = 1U << 2;
constexpr uint16_t k_oncs_write_zeroes = 1U << 3;
constexpr uint8_t k_vwc_present = 1U << 0;
constexpr uint8_t k_vwc_flush_all = 3U << 1; // Flush takes NSID FFFFFFFFh

// Offsets in the Identify Namespace structure (figure 245).
enum IdentifyNamespace : size_t {
    IN_NSZE = 0,
    IN_NCAP = 8,
    IN_NUSE = 16,
    IN_NSATTR = 99,
    IN_NGUID = 104, // 16
    IN_LBAF0 = 128,
};
constexpr uint8_t k_nsattr_write_protected = 1U << 0;
constexpr uint8_t k_descriptor_nguid = 2;

enum Feature : uint8_t {
    ARBITRATION = 0x01,
    POWER_MANAGEMENT = 0x02,
    TEMPERATURE_THRESHOLD = 0x04,
    ERROR_RECOVERY = 0x05,
    VOLATILE_WRITE_CACHE = 0x06,
    NUMBER_OF_QUEUES = 0x07,
    INTERRUPT_COALESCING = 0x08,
    INTERRUPT_VECTOR_CONFIGURATION = 0x09,
    WRITE_ATOMICITY = 0x0A,
    ASYNC_EVENT_CONFIGURATION = 0x0B,
};
constexpr uint32_t k_set_features_save = 1U << 31;

enum LogPage : uint8_t { LOG_ERROR = 1, LOG_SMART = 2, LOG_FIRMWARE_SLOT = 3 };
constexpr size_t k_log_size = 512; // SMART and firmware slot
constexpr size_t k_error_entry_size = 64;
constexpr uint32_t k_retain_event = 1U << 15;

// Asynchronous events of type 0, error status (figure 145).
enum class ErrorEvent : uint8_t { InvalidDoorbellRegister = 0, InvalidDoorbellValue = 1 };

// Read, Write: command dwords.
constexpr uint32_t k_cdw12_force_unit_access = 1U << 30;
constexpr uint32_t k_dsm_deallocate = 1U << 2;
struct DatasetRange {
    uint32_t attributes;
    uint32_t blocks;
    uint64_t first;
};
static_assert(sizeof(DatasetRange) == 16);
constexpr unsigned k_dsm_max_ranges = 256;

} // namespace coffer::devices::nvme
