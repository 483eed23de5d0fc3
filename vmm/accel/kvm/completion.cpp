#include "vmm/accel/kvm/completion.hpp"

#include <algorithm>
#include <cstring>
#include <vector>
#include <x86intrin.h>

#include <Zydis/Zydis.h>

#include "base/log.hpp"
#include "vmm/accel/kvm/msrs.hpp"
#include "vmm/accel/kvm/state.hpp"
#include "vmm/accel/soft/cpu.hpp"
#include "vmm/accel/soft/system/architecture.hpp"
#include "vmm/accel/soft/translate/interpreter.hpp"

namespace coffer::vmm::kvm {

namespace {

using soft::Cpu;
using soft::Decoded;
using soft::Fault;
using soft::Step;
using soft::Vector;

constexpr uint64_t k_rflags_tf = 1 << 8, k_rflags_rf = 1 << 16;
constexpr uint64_t k_cr4_la57 = 1 << 12;
constexpr uint64_t k_cr4_pge = 1 << 7;
constexpr uint64_t k_dr6_bs = 1 << 14;
constexpr uint32_t k_pf_reserved = 8;
constexpr size_t k_xstate_bv = 512;
constexpr uint64_t k_x87_and_sse = 3;

// KVM's memory slots as the interpreter asks for them.
class SlotMemory final : public soft::PhysicalMemory {
public:
    explicit SlotMemory(MemorySlots& slots) : m_slots(slots) {}
    std::byte* host_page(uint64_t gpa_page, bool& writable) const noexcept override {
        GuestPhysAddr page(gpa_page);
        std::byte* host = m_slots.host_address(page, soft::k_page_size, true);
        writable = host != nullptr;
        return host ? host : m_slots.host_address(page, soft::k_page_size, false);
    }
    bool has_code(uint64_t) const noexcept override { return false; }
    void code_written(uint64_t, size_t) noexcept override {}
    // Stores go past KVM's dirty log: publish_stores() tells it, when they are done.
    void note_store(uint64_t gpa_page) noexcept override {
        if (std::ranges::find(m_stored, gpa_page) == m_stored.end()) m_stored.push_back(gpa_page);
    }
    bool store_noted(uint64_t) const noexcept override { return false; }

    void publish_stores() noexcept {
        for (uint64_t page : m_stored) m_slots.mark_dirty(GuestPhysAddr(page), soft::k_page_size);
        m_stored.clear();
    }

private:
    std::vector<uint64_t> m_stored; // pages, since the last publish_stores()
    MemorySlots& m_slots;
};

// What the interpreter would look for in state that load() does not bring.
bool needs_kvm(ZydisMnemonic mnemonic) {
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_RDMSR:
    case ZYDIS_MNEMONIC_WRMSR:
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_XSETBV:
    case ZYDIS_MNEMONIC_IN:
    case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_OUTSD:
    case ZYDIS_MNEMONIC_HLT: return true;
    default: return false;
    }
}

// MOV to and from control and debug registers.
bool touches_system_register(Decoded const& decoded) {
    auto operands = std::span(decoded.operands).first(decoded.insn.operand_count); // the rest is not written
    return std::ranges::any_of(operands, [](ZydisDecodedOperand const& operand) {
        if (operand.type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
        auto kind = ZydisRegisterGetClass(operand.reg.value);
        return operand.visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT &&
               (kind == ZYDIS_REGCLASS_CONTROL || kind == ZYDIS_REGCLASS_DEBUG);
    });
}

bool equal(kvm_segment const& a, kvm_segment const& b) {
    return a.base == b.base && a.limit == b.limit && a.selector == b.selector && a.type == b.type &&
           a.present == b.present && a.dpl == b.dpl && a.db == b.db && a.s == b.s && a.l == b.l && a.g == b.g &&
           a.avl == b.avl;
}

} // namespace

struct InstructionCompletion::Impl {
    Impl(Handle const& handle, unsigned vcpu_index, MemorySlots& slots, GuestIo& guest_io,
         CompletionContext const& completion_context, std::unique_ptr<soft::NativeStep> step)
        : vcpu(handle), index(vcpu_index), context(completion_context), memory(slots), native(std::move(step)),
          interpreter(*native), cpu(std::make_unique<Cpu>()), xsave(std::max(context.xsave_size, sizeof(kvm_xsave))) {
        cpu->memory = &memory;
        cpu->io = &guest_io;
        cpu->index = index;
    }

    Result<void> load();
    Result<void> load_time_stamp();
    Result<void> store();
    Result<void> store_segments();
    Result<void> flush_shadow_translations();
    Result<Outcome> raise();
    Error refusal(Decoded const* decoded, std::string_view why) const;
    // Nothing where the instruction can be completed.
    std::optional<std::string_view> obstacle(Decoded const& decoded) const;

    Handle const& vcpu;
    unsigned index;
    CompletionContext context;
    SlotMemory memory;
    std::unique_ptr<soft::NativeStep> native;
    soft::Interpreter interpreter;
    std::unique_ptr<Cpu> cpu;

    // What KVM held when the completion began.
    kvm_regs regs{};
    kvm_sregs sregs{};
    kvm_vcpu_events events{};
    std::vector<std::byte> xsave;
};

Result<void> InstructionCompletion::Impl::load() {
    TRY(vcpu.call(COFFER_KVM(KVM_GET_REGS), &regs));
    TRY(vcpu.call(COFFER_KVM(KVM_GET_SREGS), &sregs));
    TRY(vcpu.call(COFFER_KVM(KVM_GET_VCPU_EVENTS), &events));
    // SAFETY: KVM writes the size that KVM_CAP_XSAVE2 gives, which `xsave` has.
    if (xsave.size() > sizeof(kvm_xsave))
        TRY(vcpu.call(COFFER_KVM(KVM_GET_XSAVE2), xsave.data()));
    else
        TRY(vcpu.call(COFFER_KVM(KVM_GET_XSAVE), xsave.data()));

    cpu->gpr = general_registers(regs);
    cpu->rip = regs.rip;
    cpu->rflags = regs.rflags;
    kvm_segment const* segments[] = {&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs};
    for (size_t i = 0; i < cpu->segments.size(); ++i) cpu->segments[i] = from_kvm(*segments[i]);
    cpu->thread_bases = {sregs.fs.base, sregs.gs.base};
    cpu->ldtr = from_kvm(sregs.ldt);
    cpu->tr = from_kvm(sregs.tr);
    cpu->gdtr = {sregs.gdt.base, sregs.gdt.limit};
    cpu->idtr = {sregs.idt.base, sregs.idt.limit};
    cpu->cr0 = sregs.cr0;
    cpu->cr2 = sregs.cr2;
    cpu->cr3 = sregs.cr3;
    cpu->cr4 = sregs.cr4;
    cpu->efer = sregs.efer;
    std::memcpy(cpu->fxsave.data(), xsave.data(), cpu->fxsave.size());
    cpu->interrupt_shadow = false; // it ends with this instruction
    cpu->nmi_blocked = events.nmi.masked != 0;
    soft::update_mode(*cpu);
    soft::flush_tlb_all(*cpu); // the guest has run since
    return {};
}

Result<void> InstructionCompletion::Impl::load_time_stamp() {
    constexpr uint32_t k_tsc_aux = 0xC0000103;
    constexpr uint32_t k_indices[] = {msr::IA32_TSC, k_tsc_aux};
    for (auto const& value : TRY(read_msrs(vcpu, k_indices))) {
        if (value.index == k_tsc_aux)
            cpu->tsc_aux = value.value;
        else
            cpu->tsc_offset = value.value - __rdtsc();
    }
    return {};
}

Result<void> InstructionCompletion::Impl::store_segments() {
    kvm_sregs wanted = sregs;
    kvm_segment* segments[] = {&wanted.es, &wanted.cs, &wanted.ss, &wanted.ds, &wanted.fs, &wanted.gs};
    kvm_segment const* before[] = {&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs};
    bool changed = wanted.cr2 != cpu->cr2;
    for (size_t i = 0; i < cpu->segments.size(); ++i) {
        auto now = to_kvm(cpu->segments[i]);
        if (equal(now, *before[i])) continue;
        *segments[i] = now;
        changed = true;
    }
    wanted.cr2 = cpu->cr2;
    if (changed) TRY(vcpu.call(COFFER_KVM(KVM_SET_SREGS), &wanted));
    return {};
}

Result<void> InstructionCompletion::Impl::store() {
    set_general_registers(regs, cpu->gpr);
    regs.rip = cpu->rip;
    regs.rflags = cpu->rflags;
    TRY(store_segments());
    TRY(vcpu.call(COFFER_KVM(KVM_SET_REGS), &regs));
    if (std::memcmp(xsave.data(), cpu->fxsave.data(), cpu->fxsave.size()) != 0) {
        std::memcpy(xsave.data(), cpu->fxsave.data(), cpu->fxsave.size());
        store_le<uint64_t>(xsave, k_xstate_bv, load_le<uint64_t>(xsave, k_xstate_bv) | k_x87_and_sse);
        // SAFETY: KVM reads the size that KVM_CAP_XSAVE2 gives, which `xsave` has.
        TRY(vcpu.call(COFFER_KVM(KVM_SET_XSAVE), xsave.data()));
    }
    auto shadow = static_cast<uint8_t>(cpu->interrupt_shadow ? KVM_X86_SHADOW_INT_STI : 0);
    bool masked = events.nmi.masked != 0;
    if (events.interrupt.shadow != shadow || masked != cpu->nmi_blocked) {
        events.flags = KVM_VCPUEVENT_VALID_SHADOW;
        events.interrupt.shadow = shadow;
        events.nmi.masked = cpu->nmi_blocked;
        TRY(vcpu.call(COFFER_KVM(KVM_SET_VCPU_EVENTS), &events));
    }
    return {};
}

// KVM drops what it derived from the guest's page tables when paging bits change, so they change and change back.
Result<void> InstructionCompletion::Impl::flush_shadow_translations() {
    kvm_sregs now{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_SREGS), &now));
    for (int i = 0; i < 2; ++i) {
        now.cr4 ^= k_cr4_pge;
        TRY(vcpu.call(COFFER_KVM(KVM_SET_SREGS), &now));
    }
    return {};
}

Result<InstructionCompletion::Outcome> InstructionCompletion::Impl::raise() {
    Fault const& fault = cpu->fault;
    if (fault.vector == Vector::PF && fault.cr2 != sregs.cr2) {
        sregs.cr2 = fault.cr2;
        TRY(vcpu.call(COFFER_KVM(KVM_SET_SREGS), &sregs));
    }
    events.flags = 0;
    events.exception.injected = 1;
    events.exception.nr = static_cast<uint8_t>(fault.vector);
    events.exception.has_error_code = fault.has_error;
    events.exception.error_code = fault.error;
    TRY(vcpu.call(COFFER_KVM(KVM_SET_VCPU_EVENTS), &events));
    return Outcome::Faulted;
}

std::optional<std::string_view> InstructionCompletion::Impl::obstacle(Decoded const& decoded) const {
    if (decoded.cls == soft::InsnClass::Undefined) {
        // Where KVM emulates ring 0, CPUID offers only what is completed here (cpuid.cpp): the rest is #UD.
        if (!context.native_ring0 && cpu->mode.cpl != 3) return std::nullopt;
        return "no allowed instruction";
    }
    if (needs_kvm(decoded.insn.mnemonic) || touches_system_register(decoded)) return "it needs state that KVM holds";
    bool locked = decoded.insn.attributes & ZYDIS_ATTRIB_HAS_LOCK;
    if (locked && decoded.memory.present && context.vcpus > 1)
        return "a locked access cannot be completed with several vCPUs";
    return std::nullopt;
}

Error InstructionCompletion::Impl::refusal(Decoded const* decoded, std::string_view why) const {
    std::string what = "an instruction";
    if (decoded) {
        what = fmt::format("'{}' (", ZydisMnemonicGetString(decoded->insn.mnemonic));
        for (size_t i = 0; i < decoded->length(); ++i) what += fmt::format("{}{:02x}", i ? " " : "", decoded->bytes[i]);
        what += ")";
    }
    return make_error(
        ErrorCode::Unsupported,
        "KVM on this host cannot execute {} of the guest, nor can user space: {}; at {:04x}:{:x}, CPL {}, "
        "{}-bit code, vCPU {}; try --accel soft",
        what, why, sregs.cs.selector, regs.rip, cpu->mode.cpl, cpu->mode.code_bits, index);
}

InstructionCompletion::InstructionCompletion(std::unique_ptr<Impl> impl) : m_impl(std::move(impl)) {}
InstructionCompletion::~InstructionCompletion() = default;

Result<std::unique_ptr<InstructionCompletion>> InstructionCompletion::create(Handle const& vcpu, unsigned index,
                                                                             MemorySlots& memory, GuestIo& io,
                                                                             CompletionContext const& context) {
    auto native = TRY(soft::NativeStep::create());
    return std::unique_ptr<InstructionCompletion>(
        new InstructionCompletion(std::make_unique<Impl>(vcpu, index, memory, io, context, std::move(native))));
}

Result<InstructionCompletion::Outcome> InstructionCompletion::complete() {
    Impl& impl = *m_impl;
    Cpu& cpu = *impl.cpu;
    struct Publish {
        SlotMemory& memory;
        ~Publish() { memory.publish_stores(); }
    } const publish{impl.memory};
    TRY(impl.load());
    if (cpu.cr4 & k_cr4_la57) return impl.refusal(nullptr, "the guest uses 5-level paging");

    Decoded decoded;
    Step step = Step::Fault;
    if (impl.interpreter.fetch(cpu, decoded)) {
        if (auto why = impl.obstacle(decoded)) {
            if (cpu.mode.cpl != 3) return impl.refusal(&decoded, *why);
            // As KVM answers by itself: a program of the guest does not end its VM.
            static log::RateLimit limit;
            if (limit.allow()) log::warning("#UD for a guest program: {}", impl.refusal(&decoded, *why).message());
            cpu.fault = Fault{.vector = Vector::UD};
            return impl.raise();
        }
        if (decoded.insn.mnemonic == ZYDIS_MNEMONIC_RDTSC || decoded.insn.mnemonic == ZYDIS_MNEMONIC_RDTSCP)
            TRY(impl.load_time_stamp());
        step = impl.interpreter.execute(cpu, decoded);
    }
    switch (step) {
    case Step::Fault:
        // The interpreter's page walk takes address bits for reserved that this guest may have.
        if (cpu.fault.vector == Vector::PF && (cpu.fault.error & k_pf_reserved) &&
            impl.context.physical_address_bits > soft::k_physical_address_bits && cpu.mode.cpl != 3)
            return impl.refusal(nullptr, "it meets page tables with reserved bits");
        return impl.raise();
    case Step::Shutdown: return Outcome::TripleFault;
    case Step::Halt: // refused above
    case Step::Next:
    case Step::Leave: break;
    }
    bool trap = (impl.regs.rflags & k_rflags_tf) && step == Step::Next;
    if (step == Step::Next) cpu.rflags &= ~k_rflags_rf; // IRET brings its own
    TRY(impl.store());
    if (decoded.insn.mnemonic == ZYDIS_MNEMONIC_INVPCID || decoded.insn.mnemonic == ZYDIS_MNEMONIC_INVLPG)
        TRY(impl.flush_shadow_translations());
    if (trap) {
        kvm_debugregs debug{};
        TRY(impl.vcpu.call(COFFER_KVM(KVM_GET_DEBUGREGS), &debug));
        debug.dr6 |= k_dr6_bs;
        TRY(impl.vcpu.call(COFFER_KVM(KVM_SET_DEBUGREGS), &debug));
        cpu.fault = Fault{.vector = Vector::DB};
        TRY(impl.raise());
    }
    return Outcome::Completed;
}

} // namespace coffer::vmm::kvm
