// KVM_RUN and what its exits ask for (api.rst 4.10 and 5).
#include <cerrno>
#include <csignal>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/log.hpp"
#include "vmm/accel/kvm/msrs.hpp"
#include "vmm/accel/kvm/vcpu.hpp"

namespace coffer::vmm::kvm {

namespace {

struct ExitName {
    uint32_t reason;
    std::string_view name;
};

constexpr ExitName k_exit_names[] = {
    {KVM_EXIT_UNKNOWN, "unknown"},
    {KVM_EXIT_EXCEPTION, "exception"},
    {KVM_EXIT_IO, "pio"},
    {KVM_EXIT_HYPERCALL, "hypercall"},
    {KVM_EXIT_DEBUG, "debug"},
    {KVM_EXIT_HLT, "hlt"},
    {KVM_EXIT_MMIO, "mmio"},
    {KVM_EXIT_IRQ_WINDOW_OPEN, "irq-window"},
    {KVM_EXIT_SHUTDOWN, "shutdown"},
    {KVM_EXIT_FAIL_ENTRY, "fail-entry"},
    {KVM_EXIT_INTR, "intr"},
    {KVM_EXIT_SET_TPR, "set-tpr"},
    {KVM_EXIT_TPR_ACCESS, "tpr-access"},
    {KVM_EXIT_INTERNAL_ERROR, "internal-error"},
    {KVM_EXIT_SYSTEM_EVENT, "system-event"},
    {KVM_EXIT_IOAPIC_EOI, "ioapic-eoi"},
    {KVM_EXIT_HYPERV, "hyperv"},
    {KVM_EXIT_X86_RDMSR, "rdmsr"},
    {KVM_EXIT_X86_WRMSR, "wrmsr"},
    {KVM_EXIT_DIRTY_RING_FULL, "dirty-ring-full"},
    {KVM_EXIT_X86_BUS_LOCK, "bus-lock"},
    {KVM_EXIT_NOTIFY, "notify"},
};

std::string exit_name(size_t reason) {
    for (auto const& entry : k_exit_names)
        if (entry.reason == reason) return std::string(entry.name);
    return fmt::format("reason-{}", reason);
}

// The vCPU's thread takes the kick signal only while it may be in KVM_RUN.
class RunningThread {
public:
    explicit RunningThread(std::atomic<pid_t>& thread) : m_thread(thread) {
        sigset_t kick;
        ::sigemptyset(&kick);
        ::sigaddset(&kick, kick_signal());
        ::pthread_sigmask(SIG_UNBLOCK, &kick, nullptr);
        m_thread = ::gettid();
    }
    ~RunningThread() { m_thread = 0; }
    RunningThread(RunningThread const&) = delete;
    RunningThread& operator=(RunningThread const&) = delete;

private:
    std::atomic<pid_t>& m_thread;
};

} // namespace

Result<VcpuExit> KvmVcpu::run() {
    RunningThread running(m_thread);
    for (;;) {
        if (m_io_unfinished) {
            // A kick waits until KVM has finished the guest's access, which it does before it looks at immediate_exit.
            if (m_kicked.load()) m_run.set_immediate_exit(true);
        } else if (take_kick()) {
            return VcpuExit::Kicked;
        }
        // SAFETY: KVM_RUN takes no argument; it writes the run area mapped from this descriptor.
        int result = ::ioctl(m_vcpu.fd(), KVM_RUN, 0);
        if (result < 0) {
            int reason = errno;
            // EAGAIN: a parked vCPU was woken by INIT or SIPI and is not runnable yet.
            if (reason == EINTR || reason == EAGAIN) {
                ++m_interrupted;
                m_io_unfinished = false;
                continue;
            }
            return errno_error(reason, fmt::format("KVM_RUN failed on vCPU {}{}", m_index, where()));
        }
        m_io_unfinished = false;
        auto outcome = TRY(handle_exit());
        if (outcome.exit) return *outcome.exit;
    }
}

Result<KvmVcpu::Outcome> KvmVcpu::handle_exit() {
    uint32_t reason = m_run->exit_reason;
    ++m_exits[std::min<size_t>(reason, m_exits.size() - 1)];
    switch (reason) {
    case KVM_EXIT_IO: handle_pio(); return Outcome{};
    case KVM_EXIT_MMIO: handle_mmio(); return Outcome{};
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        answer_msr_exit(*m_run);
        m_io_unfinished = true;
        return Outcome{};
    case KVM_EXIT_SHUTDOWN: return Outcome{VcpuExit::TripleFault};
    case KVM_EXIT_SYSTEM_EVENT:
        // On x86 these come from a guest that resets or reports a crash through hypervisor registers.
        log::info("guest asks for system event {}", m_run->system_event.type);
        return Outcome{VcpuExit::TripleFault};
    case KVM_EXIT_INTERNAL_ERROR: return handle_internal_error();
    // Nothing to do but enter again: the last three tell of limits that the guest met.
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_IOAPIC_EOI:
    case KVM_EXIT_SET_TPR:
    case KVM_EXIT_TPR_ACCESS:
    case KVM_EXIT_X86_BUS_LOCK:
    case KVM_EXIT_NOTIFY: return Outcome{};
    case KVM_EXIT_FAIL_ENTRY:
        return make_error(ErrorCode::Internal,
                          "the host CPU refused to enter vCPU {} (hardware reason {:#x}, host CPU {}){}", m_index,
                          m_run->fail_entry.hardware_entry_failure_reason, m_run->fail_entry.cpu, where());
    default:
        return make_error(ErrorCode::Internal, "unexpected KVM exit '{}' on vCPU {}{}", exit_name(reason), m_index,
                          where());
    }
}

void KvmVcpu::handle_pio() {
    auto const& io = m_run->io;
    // INS and OUTS bring several items at once, packed.
    MutBytes data = m_run.bytes(io.data_offset, size_t{io.size} * io.count);
    for (; !data.empty(); data = data.subspan(io.size)) {
        MutBytes item = data.first(io.size);
        if (io.direction == KVM_EXIT_IO_OUT) {
            m_io.pio_write(io.port, item);
        } else {
            m_io.pio_read(io.port, item);
        }
    }
    m_io_unfinished = true;
}

void KvmVcpu::handle_mmio() {
    auto& mmio = m_run->mmio;
    size_t size = std::min<size_t>(mmio.len, sizeof mmio.data);
    MutBytes data = std::as_writable_bytes(std::span(mmio.data)).first(size);
    if (mmio.is_write)
        m_io.mmio_write(GuestPhysAddr(mmio.phys_addr), data);
    else
        m_io.mmio_read(GuestPhysAddr(mmio.phys_addr), data);
    m_io_unfinished = true;
}

Result<KvmVcpu::Outcome> KvmVcpu::handle_internal_error() {
    auto const& failure = m_run->internal;
    if (failure.suberror == KVM_INTERNAL_ERROR_EMULATION) return complete_instruction();
    std::string data;
    for (size_t i = 0; i < std::min<size_t>(failure.ndata, std::size(failure.data)); ++i)
        data += fmt::format(" {:x}", failure.data[i]);
    return make_error(ErrorCode::Unsupported, "KVM gave up on vCPU {} (suberror {}, data{}){}", m_index,
                      failure.suberror, data, where());
}

Result<KvmVcpu::Outcome> KvmVcpu::complete_instruction() {
    if (!m_completion) return Error(m_completion.error()).with_context("no instruction can be completed in user space");
    switch (TRY((*m_completion)->complete())) {
    case InstructionCompletion::Outcome::Completed: ++m_completed; break;
    case InstructionCompletion::Outcome::Faulted: break;
    case InstructionCompletion::Outcome::TripleFault: return Outcome{VcpuExit::TripleFault};
    }
    return Outcome{};
}

std::string KvmVcpu::where() const {
    kvm_regs regs{};
    kvm_sregs sregs{};
    if (m_vcpu.try_call(COFFER_KVM(KVM_GET_REGS), &regs) < 0 || m_vcpu.try_call(COFFER_KVM(KVM_GET_SREGS), &sregs) < 0)
        return {};
    return fmt::format(" at {:04x}:{:x} (CR0 {:x}, CR3 {:x}, CR4 {:x}, EFER {:x}, RFLAGS {:x}, RSP {:x})",
                       sregs.cs.selector, regs.rip, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, regs.rflags, regs.rsp);
}

VcpuStatistics KvmVcpu::statistics() const {
    VcpuStatistics result;
    result.completed_instructions = m_completed;
    for (size_t reason = 0; reason < m_exits.size(); ++reason)
        if (m_exits[reason] != 0) result.exits_by_kind[exit_name(reason)] = m_exits[reason];
    if (m_interrupted != 0) result.exits_by_kind["interrupted"] = m_interrupted;
    return result;
}

} // namespace coffer::vmm::kvm
