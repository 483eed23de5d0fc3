#include "vmm/accel/kvm/ring0_probe.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/clock.hpp"
#include "vmm/accel/kvm/vcpu.hpp"

namespace coffer::vmm::kvm {

namespace {

constexpr uint64_t k_memory = 0x10000;
constexpr uint64_t k_pml4 = 0x1000, k_pdpt = 0x2000, k_pd = 0x3000, k_code = 0x4000;
constexpr uint32_t k_iterations = 8'000;
constexpr unsigned k_tries = 3;
// A CPU runs this loop at 10^9 instructions a second and more, KVM's emulator at one to two million.
constexpr double k_native_threshold = 20e6;

// mov ecx, k_iterations; again: dec ecx; jnz again; hlt
constexpr std::array<uint8_t, 10> k_loop{0xB9, k_iterations & 0xFF, k_iterations >> 8, 0, 0, 0xFF, 0xC9, 0x75, 0xFC,
                                         0xF4};

class HostMemory {
public:
    explicit HostMemory(size_t size) : m_size(size) {
        m_start = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    ~HostMemory() {
        if (valid()) ::munmap(m_start, m_size);
    }
    HostMemory(HostMemory const&) = delete;
    HostMemory& operator=(HostMemory const&) = delete;
    bool valid() const { return m_start != MAP_FAILED; }
    MutBytes bytes() const { return {static_cast<std::byte*>(m_start), m_size}; }

private:
    void* m_start;
    size_t m_size;
};

Result<void> enter_long_mode(Handle const& vcpu) {
    kvm_sregs sregs{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_SREGS), &sregs));
    sregs.cr3 = k_pml4;
    sregs.cr4 |= 0x20;       // PAE
    sregs.cr0 |= 0x80000001; // PG, PE
    sregs.efer |= 0x500;     // LME, LMA
    kvm_segment code{};
    code.selector = 8;
    code.limit = 0xFFFFFFFF;
    code.type = 11;
    code.s = code.present = code.l = code.g = 1;
    sregs.cs = code;
    kvm_segment data = code;
    data.selector = 16;
    data.type = 3;
    data.l = 0;
    data.db = 1;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
    TRY(vcpu.call(COFFER_KVM(KVM_SET_SREGS), &sregs));
    return {};
}

} // namespace

Result<Ring0Measurement> measure_ring0(System const& system) {
    HostMemory memory(k_memory);
    if (!memory.valid()) return errno_error(errno, "cannot get memory for the ring 0 measurement");
    constexpr uint64_t k_present_writable = 3, k_large = 0x80;
    store_le<uint64_t>(memory.bytes(), k_pml4, k_pdpt | k_present_writable);
    store_le<uint64_t>(memory.bytes(), k_pdpt, k_pd | k_present_writable);
    store_le<uint64_t>(memory.bytes(), k_pd, k_large | k_present_writable);
    std::copy_n(reinterpret_cast<std::byte const*>(k_loop.data()), k_loop.size(), // SAFETY: bytes of an array
                memory.bytes().data() + k_code);

    auto vm = TRY(system.create_vm());
    kvm_userspace_memory_region slot{};
    slot.memory_size = k_memory;
    // SAFETY: `memory` outlives the VM.
    slot.userspace_addr = reinterpret_cast<uintptr_t>(memory.bytes().data());
    TRY(vm.call(COFFER_KVM(KVM_SET_USER_MEMORY_REGION), &slot));
    int vcpu_fd = TRY(vm.call(COFFER_KVM(KVM_CREATE_VCPU), 0UL));
    Handle vcpu(UniqueFd(vcpu_fd), "measuring vCPU");
    size_t run_area_size = TRY(system.run_area_size());
    auto run = TRY(RunArea::map(vcpu, run_area_size));
    // Long mode has to be in CPUID before EFER may say it.
    auto leaves = TRY(system.supported_cpuid());
    Table<kvm_cpuid2, kvm_cpuid_entry2> cpuid(leaves.size());
    cpuid.header()->nent = static_cast<uint32_t>(leaves.size());
    std::copy(leaves.begin(), leaves.end(), cpuid.entries());
    TRY(vcpu.call(COFFER_KVM(KVM_SET_CPUID2), cpuid.header()));
    TRY(enter_long_mode(vcpu));

    // The best of some tries: a loaded host can make the guest look slower than it is, never faster.
    Ring0Measurement best;
    for (unsigned attempt = 0; attempt < k_tries && !best.native; ++attempt) {
        kvm_regs regs{};
        regs.rip = k_code;
        regs.rflags = 2;
        TRY(vcpu.call(COFFER_KVM(KVM_SET_REGS), &regs));
        Nanoseconds start = monotonic_now();
        int result;
        do {
            // SAFETY: KVM_RUN takes no argument; it writes the run area mapped above.
            result = ::ioctl(vcpu.fd(), KVM_RUN, 0);
        } while (result < 0 && errno == EINTR);
        Nanoseconds elapsed = std::max<Nanoseconds>(monotonic_now() - start, 1);
        if (result < 0) return errno_error(errno, "KVM cannot run the ring 0 measurement");
        if (run->exit_reason != KVM_EXIT_HLT)
            return make_error(ErrorCode::Unsupported, "KVM left the ring 0 measurement with exit {}: it runs no guest",
                              run->exit_reason);
        double rate = 2.0 * k_iterations / (static_cast<double>(elapsed) / static_cast<double>(k_ns_per_s));
        best.instructions_per_second = std::max(best.instructions_per_second, rate);
        best.native = best.instructions_per_second >= k_native_threshold;
    }
    return best;
}

} // namespace coffer::vmm::kvm
