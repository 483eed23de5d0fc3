// CPU backends: what the machine asks of KVM and of the software CPU, and nothing else in the tree knows which it is.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/strong.hpp"
#include "devices/core/irq.hpp"
#include "vmm/accel/cpu_state.hpp"

namespace coffer::vmm {

// Stated once by each backend; the rest of the tree branches on these alone.
struct AcceleratorCapabilities {
    std::string_view name;      // "kvm", "soft"
    unsigned max_vcpus = 1;
    bool kernel_irqchip = false;  // local APICs, IOAPIC, PICs and PIT are the backend's; else they are devices of ours
    bool native_ring0 = false;    // ring 0 runs on the host CPU
    bool dirty_log = false;
    bool smm = false;
    bool hyperv = false;
};

// A guest-physical range backed by host memory; page-aligned, no overlaps. Accesses outside of all regions, and writes
// to read-only ones, go to GuestIo.
struct MemoryRegion {
    GuestPhysAddr gpa;
    size_t size = 0;
    std::byte* host = nullptr;
    bool read_only = false;
};

// Where accesses that leave the vCPU go. Called on the vCPU's thread, without any lock; the machine takes the device
// lock. `size` of an MMIO access is 1 to 8 bytes (16 and more are split by the backend), of a PIO access 1, 2 or 4.
class GuestIo {
public:
    virtual ~GuestIo() = default;
    virtual void pio_read(uint16_t port, MutBytes to) noexcept = 0;
    virtual void pio_write(uint16_t port, Bytes from) noexcept = 0;
    virtual void mmio_read(GuestPhysAddr from, MutBytes to) noexcept = 0;
    virtual void mmio_write(GuestPhysAddr to, Bytes from) noexcept = 0;
};

enum class VcpuExit : uint8_t {
    Kicked,       // kick() was called; run() may be called again
    TripleFault,  // shutdown: the machine resets or stops
};

// Counts since creation. Readable while the vCPU is stopped.
struct VcpuStatistics {
    uint64_t completed_instructions = 0;  // refused by the host's own means and completed in user space, one by one
    std::map<std::string, uint64_t> exits_by_kind;
};

class Vcpu {
public:
    virtual ~Vcpu() = default;

    // Runs the guest on the calling thread (always the same one) until kicked; waits inside while the guest is halted,
    // or parked for INIT/SIPI. An error ends the VM: its message names what could not be executed and where.
    virtual Result<VcpuExit> run() = 0;
    // Any thread, and async-signal-safe: the current or the next run() returns soon.
    virtual void kick() noexcept = 0;

    // With the vCPU stopped, on any thread. Pending I/O is finished first.
    virtual Result<CpuState> get_state() = 0;
    virtual Result<void> set_state(CpuState const& state) = 0;
    // Back to the reset vector (Intel SDM vol. 3, table 10-1).
    virtual Result<void> reset() = 0;

    virtual VcpuStatistics statistics() const = 0;
};

// A write that signals an eventfd instead of calling GuestIo. `size` is in bytes, 0 for any (no `datamatch` then).
struct Doorbell {
    bool mmio = true;  // else a port
    uint64_t address = 0;
    unsigned size = 0;
    std::optional<uint64_t> datamatch;
};

// Eventfds between the guest and host threads, with no exit to user space. Thread-safe. A doorbell's eventfd belongs to
// the caller, who detaches it before closing it, and again when the guest moves the BAR it lies in.
class EventChannels {
public:
    virtual ~EventChannels() = default;
    virtual Result<void> attach_doorbell(Doorbell const& doorbell, int eventfd) = 0;
    virtual Result<void> detach_doorbell(Doorbell const& doorbell, int eventfd) = 0;
    // A GSI of its own for one MSI or MSI-X vector.
    virtual Result<unsigned> add_msi_route(uint64_t address, uint32_t data) = 0;
    virtual Result<void> update_msi_route(unsigned gsi, uint64_t address, uint32_t data) = 0;
    virtual Result<void> remove_msi_route(unsigned gsi) = 0;
    // Signalling `eventfd` raises the GSI. A level-triggered line needs `resample_eventfd` (else -1): signalled when the
    // guest has acknowledged the interrupt and the line was lowered.
    virtual Result<void> attach_interrupt(unsigned gsi, int eventfd, int resample_eventfd = -1) = 0;
    virtual Result<void> detach_interrupt(unsigned gsi, int eventfd) = 0;
};

// Which pages of RAM were written, by the guest or by a device that told memory_written(). Thread-safe; start() and
// harvest() may wait for the vCPUs to notice, so they are not called on a vCPU's thread, nor under a lock that a device
// may want (the machine's device lock). A page's content that is read after harvest() is at least as new as the harvest;
// what is written later is in the next one. Pages that were not written may be among them.
class DirtyLog {
public:
    virtual ~DirtyLog() = default;
    virtual Result<void> start() = 0;
    virtual Result<void> stop() = 0;
    // One bit a 4 KiB page of the region mapped at `gpa`, lowest first: written since start() or the last harvest.
    virtual Result<std::vector<uint64_t>> harvest(GuestPhysAddr gpa) = 0;
};

struct CpuidRegisters {
    uint32_t eax = 0;
    uint32_t ebx = 0;
    uint32_t ecx = 0;
    uint32_t edx = 0;
};

class Partition {
public:
    virtual ~Partition() = default;

    virtual AcceleratorCapabilities const& capabilities() const noexcept = 0;

    // Before or while vCPUs run (a flash device that changes mode maps and unmaps its range from within an exit).
    virtual Result<void> map(MemoryRegion const& region) = 0;
    virtual Result<void> unmap(GuestPhysAddr gpa) = 0;
    // A device wrote guest memory: translated code there is stale. Any thread.
    virtual void memory_written(GuestPhysAddr first, size_t size) noexcept = 0;

    // `interrupts` is the vCPU's local APIC where kernel_irqchip is false, else null; it and `io` outlive the vCPU.
    virtual Result<std::unique_ptr<Vcpu>> create_vcpu(unsigned index, GuestIo& io,
                                                      devices::CpuInterrupts* interrupts) = 0;
    // Where the local APIC of vCPU `index` reports to; null where kernel_irqchip is true.
    virtual devices::CpuSignals* signals(unsigned index) noexcept = 0;

    // Null where kernel_irqchip is false.
    virtual devices::IrqSink* irq_sink() noexcept = 0;
    virtual devices::MsiSink* msi_sink() noexcept = 0;
    // The backend's own PIT stops driving GSI 0 while the guest's HPET does (HPET 1.0a, 2.3.5 LEG_RT_CNF).
    virtual Result<void> set_hpet_legacy_routing(bool) { return {}; }
    // Null where the backend has none.
    virtual EventChannels* event_channels() noexcept { return nullptr; }
    virtual DirtyLog* dirty_log() noexcept { return nullptr; }

    // With all vCPUs stopped: the backend's own devices (interrupt controllers and PIT where kernel_irqchip is true).
    virtual Result<void> reset() { return {}; }
    virtual Result<ByteVector> save() { return ByteVector{}; }
    // All vCPUs' set_state() comes after, none has run yet. The backend's own clock is put forward by `step`
    // nanoseconds, as the machine puts the TSC in the vCPUs' states.
    virtual Result<void> restore(Bytes, [[maybe_unused]] int64_t step = 0) { return {}; }

    // Guest TSC ticks a second, constant for the life of the partition.
    virtual uint64_t tsc_hz() const noexcept = 0;
    // The guest's TSC now, as RDTSC on vCPU 0 would give it. Any thread.
    virtual uint64_t guest_tsc() const noexcept = 0;
    // What CPUID shows the guest on vCPU 0; zeroes for a leaf that is not there.
    virtual CpuidRegisters guest_cpuid(uint32_t leaf, uint32_t subleaf) const noexcept = 0;
    // Bits of guest-physical address (CPUID 0x80000008), for the firmware's PCI windows.
    virtual unsigned physical_address_bits() const noexcept = 0;
};

struct PartitionConfig {
    unsigned vcpus = 1;
};

// Fail with Unsupported and a line that says why where this host cannot.
Result<std::unique_ptr<Partition>> create_kvm_partition(PartitionConfig const& config);
Result<std::unique_ptr<Partition>> create_soft_partition(PartitionConfig const& config);

}  // namespace coffer::vmm
