// Virtual I/O Device (VIRTIO) version 1.2, OASIS committee specification 01 (1 July 2022).
#pragma once

#include <cstddef>
#include <cstdint>

namespace coffer::devices::virtio {

// Identity on PCI (4.1.2): modern devices only.
constexpr uint16_t k_pci_vendor = 0x1AF4;
constexpr uint16_t k_pci_device_base = 0x1040;
constexpr uint8_t k_pci_revision = 1;

enum class DeviceType : uint16_t { Console = 3, Entropy = 4 };

// Feature bits (6).
constexpr uint64_t F_INDIRECT_DESC = uint64_t{1} << 28;
constexpr uint64_t F_VERSION_1 = uint64_t{1} << 32;

// Device status (2.1).
enum StatusBit : uint8_t {
    STATUS_ACKNOWLEDGE = 1,
    STATUS_DRIVER = 2,
    STATUS_DRIVER_OK = 4,
    STATUS_FEATURES_OK = 8,
    STATUS_NEEDS_RESET = 64,
    STATUS_FAILED = 128,
};

// Split virtqueue (2.7).
struct Descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};
static_assert(sizeof(Descriptor) == 16);
enum DescriptorFlag : uint16_t { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
constexpr uint16_t k_avail_no_interrupt = 1;
constexpr uint64_t k_ring_index = 2;   // in both rings, after the flags
constexpr uint64_t k_ring_entries = 4; // likewise
struct UsedElement {
    uint32_t id;
    uint32_t length;
};
static_assert(sizeof(UsedElement) == 8);

// Capabilities (4.1.4).
enum class CapabilityType : uint8_t { Common = 1, Notify = 2, Isr = 3, Device = 4, Pci = 5 };
enum CapabilityField : uint16_t {
    CAP_LENGTH = 2,
    CAP_TYPE = 3,
    CAP_BAR = 4,
    CAP_OFFSET = 8,
    CAP_SIZE = 12,
    CAP_BYTES = 16,
    CAP_NOTIFY_MULTIPLIER = 16,
    CAP_PCI_DATA = 16,
    CAP_LONG_BYTES = 20,
};

// Common configuration (4.1.4.3).
//                              // access  bytes
enum CommonRegister : uint16_t {
    DEVICE_FEATURE_SELECT = 0, // RW      4
    DEVICE_FEATURE = 4,        // RO      4
    DRIVER_FEATURE_SELECT = 8, // RW      4
    DRIVER_FEATURE = 12,       // RW      4
    CONFIG_MSIX_VECTOR = 16,   // RW      2
    NUM_QUEUES = 18,           // RO      2
    DEVICE_STATUS = 20,        // RW      1
    CONFIG_GENERATION = 21,    // RO      1
    QUEUE_SELECT = 22,         // RW      2
    QUEUE_SIZE = 24,           // RW      2
    QUEUE_MSIX_VECTOR = 26,    // RW      2
    QUEUE_ENABLE = 28,         // RW      2
    QUEUE_NOTIFY_OFF = 30,     // RO      2
    QUEUE_DESC = 32,           // RW      8
    QUEUE_DRIVER = 40,         // RW      8
    QUEUE_DEVICE = 48,         // RW      8
    COMMON_BYTES = 56,
};
constexpr uint16_t k_no_vector = 0xFFFF;

constexpr uint8_t k_isr_queue = 1;
constexpr uint8_t k_isr_config = 2;

// Console (5.3).
constexpr uint64_t F_CONSOLE_MULTIPORT = uint64_t{1} << 1;
constexpr size_t k_console_max_ports_offset = 4;
constexpr size_t k_console_config_bytes = 12;
enum ConsoleEvent : uint16_t {
    CONSOLE_DEVICE_READY = 0,
    CONSOLE_DEVICE_ADD = 1,
    CONSOLE_DEVICE_REMOVE = 2,
    CONSOLE_PORT_READY = 3,
    CONSOLE_CONSOLE_PORT = 4,
    CONSOLE_RESIZE = 5,
    CONSOLE_PORT_OPEN = 6,
    CONSOLE_PORT_NAME = 7,
};
struct ConsoleControl {
    uint32_t id;
    uint16_t event;
    uint16_t value;
};
static_assert(sizeof(ConsoleControl) == 8);

} // namespace coffer::devices::virtio
