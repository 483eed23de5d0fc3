#include "vmm/accel/soft/translate/soft_partition.hpp"

#include <algorithm>

#include <cpuid.h>
#include <x86intrin.h>

#include "base/clock.hpp"

namespace coffer::vmm {

namespace soft {

namespace {

struct TscSample {
    uint64_t tsc = 0;
    Nanoseconds time = 0;
};

// The tightest of some pairs.
TscSample sample_tsc() noexcept {
    TscSample best;
    uint64_t best_width = ~0ULL;
    for (int i = 0; i < 16; ++i) {
        uint64_t before = __rdtsc();
        Nanoseconds now = monotonic_now();
        uint64_t after = __rdtsc();
        if (after - before < best_width) {
            best_width = after - before;
            best = {before + best_width / 2, now};
        }
    }
    return best;
}

// When a machine is made, the program has run for longer than is to be measured, and nothing waits for that.
TscSample const k_program_start = sample_tsc();

// Host TSC ticks a second. From the hypervisor's timing leaf where there is one, else measured.
uint64_t measure_tsc_hz() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 31 & 1)) {
        __cpuid(0x40000000, eax, ebx, ecx, edx);
        if (eax >= 0x40000010 && eax < 0x40010000) {
            __cpuid(0x40000010, eax, ebx, ecx, edx);
            if (eax > 100'000 && eax < 100'000'000) return uint64_t{eax} * 1000;
        }
    }
    constexpr Nanoseconds k_span = 20 * k_ns_per_ms;
    // A host that slept meanwhile stopped one clock and not the other, and longer is not needed.
    constexpr Nanoseconds k_longest = 50 * k_span;
    auto first = k_program_start;
    if (monotonic_now() - first.time > k_longest) first = sample_tsc();
    while (monotonic_now() - first.time < k_span) __builtin_ia32_pause();
    auto last = sample_tsc();
    // However long this thread waited for a core: a product of integers could overflow.
    return static_cast<uint64_t>(static_cast<double>(last.tsc - first.tsc) * static_cast<double>(k_ns_per_s) /
                                 static_cast<double>(last.time - first.time));
}

// Passes signals on to the vCPU once it exists; before that nothing can be pending that it would miss.
class SignalRelay final : public devices::CpuSignals {
public:
    void interrupt_raised() noexcept override {
        if (SoftVcpu* vcpu = m_vcpu.load()) vcpu->interrupt_raised();
    }
    void nmi() noexcept override {
        if (SoftVcpu* vcpu = m_vcpu.load()) vcpu->nmi();
    }
    void init() noexcept override {
        if (SoftVcpu* vcpu = m_vcpu.load()) vcpu->init();
    }
    void startup(uint8_t vector) noexcept override {
        if (SoftVcpu* vcpu = m_vcpu.load()) vcpu->startup(vector);
    }
    std::atomic<SoftVcpu*> m_vcpu{nullptr};
};

class SoftPartition final : public Partition, private DirtyLog {
public:
    SoftPartition(std::unique_ptr<GuestMemoryMap> memory, uint64_t tsc_hz)
        : m_memory(std::move(memory)), m_tsc_hz(tsc_hz), m_pattern(std::make_unique<Cpu>()) {
        m_pattern->memory = m_memory.get();
        m_pattern->tsc_hz = tsc_hz;
        reset_cpu(*m_pattern);
    }

    AcceleratorCapabilities const& capabilities() const noexcept override {
        static AcceleratorCapabilities const capabilities{.name = "soft", .max_vcpus = 1, .dirty_log = true};
        return capabilities;
    }

    Result<void> map(MemoryRegion const& region) override {
        TRY(m_memory->map(region));
        changed(region.gpa, region.size);
        return {};
    }
    Result<void> unmap(GuestPhysAddr gpa) override {
        changed(gpa, TRY(m_memory->unmap(gpa)));
        return {};
    }
    void memory_written(GuestPhysAddr first, size_t size) noexcept override {
        SoftVcpu* vcpu = m_signals.m_vcpu.load();
        if (vcpu && size != 0) vcpu->memory_written(first.value(), size);
        m_memory->note_device_stores(first.value(), size);
    }
    DirtyLog* dirty_log() noexcept override { return this; }

    Result<std::unique_ptr<Vcpu>> create_vcpu(unsigned index, GuestIo& io,
                                              devices::CpuInterrupts* interrupts) override {
        if (index != 0 || m_signals.m_vcpu.load())
            return make_error(ErrorCode::Unsupported, "the soft backend runs one vCPU: use --cpus 1, or --accel kvm");
        std::unique_ptr<SoftVcpu> vcpu = TRY(SoftVcpu::create(index, *m_memory, io, interrupts, m_tsc_hz));
        m_signals.m_vcpu.store(vcpu.get());
        return std::unique_ptr<Vcpu>(std::make_unique<Owned>(*this, std::move(vcpu)));
    }
    devices::CpuSignals* signals(unsigned index) noexcept override { return index == 0 ? &m_signals : nullptr; }

    devices::IrqSink* irq_sink() noexcept override { return nullptr; }
    devices::MsiSink* msi_sink() noexcept override { return nullptr; }

    uint64_t tsc_hz() const noexcept override { return m_tsc_hz; }
    uint64_t guest_tsc() const noexcept override { return soft::guest_tsc(any_cpu()); }
    CpuidRegisters guest_cpuid(uint32_t leaf, uint32_t subleaf) const noexcept override {
        CpuidResult result = cpuid(any_cpu(), leaf, subleaf);
        return {result.eax, result.ebx, result.ecx, result.edx};
    }
    unsigned physical_address_bits() const noexcept override { return cpuid(any_cpu(), 0x80000008, 0).eax & 0xFF; }

    // The machine's handle: the relay forgets the vCPU before it goes.
    class Owned final : public Vcpu {
    public:
        Owned(SoftPartition& partition, std::unique_ptr<SoftVcpu> vcpu)
            : m_partition(partition), m_vcpu(std::move(vcpu)) {}
        ~Owned() override { m_partition.m_signals.m_vcpu.store(nullptr); }
        Result<VcpuExit> run() override { return m_vcpu->run(); }
        void kick() noexcept override { m_vcpu->kick(); }
        Result<CpuState> get_state() override { return m_vcpu->get_state(); }
        Result<void> set_state(CpuState const& state) override { return m_vcpu->set_state(state); }
        Result<void> reset() override { return m_vcpu->reset(); }
        VcpuStatistics statistics() const override { return m_vcpu->statistics(); }
        SoftVcpu& inner() { return *m_vcpu; }

    private:
        SoftPartition& m_partition;
        std::unique_ptr<SoftVcpu> m_vcpu;
    };

private:
    // The vCPU, or one like it before it exists.
    Cpu const& any_cpu() const {
        SoftVcpu* vcpu = m_signals.m_vcpu.load();
        return vcpu ? vcpu->cpu() : *m_pattern;
    }

    // DirtyLog. The vCPU's write tags stand for notes: they go whenever notes did, so that the stores that they let
    // through are in memory before the caller looks, or noted again.
    Result<void> start() override {
        TRY(m_memory->start_log());
        drop_write_tags();
        return {};
    }
    Result<void> stop() override {
        m_memory->stop_log();
        return {};
    }
    Result<std::vector<uint64_t>> harvest(GuestPhysAddr gpa) override {
        auto stores = TRY(m_memory->take_stores(gpa));
        drop_write_tags();
        return stores;
    }
    void drop_write_tags() {
        if (SoftVcpu* vcpu = m_signals.m_vcpu.load()) vcpu->drop_write_tags();
    }

    void changed(GuestPhysAddr gpa, size_t size) {
        if (SoftVcpu* vcpu = m_signals.m_vcpu.load()) vcpu->memory_map_changed(gpa.value(), size);
    }

    std::unique_ptr<GuestMemoryMap> m_memory;
    uint64_t m_tsc_hz;
    std::unique_ptr<Cpu> m_pattern;
    SignalRelay m_signals;
};

} // namespace

void set_block_trace(Vcpu& vcpu, BlockTrace trace) {
    auto* owned = dynamic_cast<SoftPartition::Owned*>(&vcpu);
    COFFER_ASSERT(owned);
    owned->inner().set_trace(std::move(trace));
}

} // namespace soft

Result<std::unique_ptr<Partition>> create_soft_partition(PartitionConfig const& config) {
    if (config.vcpus != 1)
        return make_error(ErrorCode::Unsupported,
                          "the soft backend runs one vCPU and {} are asked for: use --cpus 1, or --accel kvm",
                          config.vcpus);
    std::unique_ptr<soft::GuestMemoryMap> memory = TRY(soft::GuestMemoryMap::create());
    return std::unique_ptr<Partition>(std::make_unique<soft::SoftPartition>(std::move(memory), soft::measure_tsc_hz()));
}

} // namespace coffer::vmm
