// The orders of reading and writing matter: api.rst 4.38 (GET_MP_STATE may run pending INIT or SIPI and change
// registers), 4.31 (SET_REGS drops pending exceptions), SDM vol. 3, 11.4.4 (APIC base before APIC registers).
#include "vmm/accel/kvm/state.hpp"

#include <algorithm>
#include <cstring>

#include "base/log.hpp"
#include "vmm/accel/kvm/msrs.hpp"

namespace coffer::vmm::kvm {

namespace {

constexpr size_t k_legacy_xsave = 512;
constexpr size_t k_xsave_header = 64;
constexpr uint64_t k_xfeature_x87_sse = 3;

kvm_dtable to_kvm(DescriptorTable const& table) {
    kvm_dtable result{};
    result.base = table.base;
    result.limit = table.limit;
    return result;
}

// SAFETY of the X-structures: KVM reads and writes exactly the size that KVM_CAP_XSAVE2 gives, which `area` has.
Result<void> read_xsave(Handle const& vcpu, size_t size, CpuState& state) {
    std::vector<std::byte> area(std::max(size, sizeof(kvm_xsave)));
    if (size > sizeof(kvm_xsave))
        TRY(vcpu.call(COFFER_KVM(KVM_GET_XSAVE2), area.data()));
    else
        TRY(vcpu.call(COFFER_KVM(KVM_GET_XSAVE), area.data()));
    std::memcpy(state.fxsave.data(), area.data(), k_legacy_xsave);
    state.xsave_extended.assign(area.begin() + k_legacy_xsave, area.end());
    return {};
}

Result<void> write_xsave(Handle const& vcpu, size_t size, CpuState const& state) {
    std::vector<std::byte> area(std::max(size, sizeof(kvm_xsave)));
    std::memcpy(area.data(), state.fxsave.data(), k_legacy_xsave);
    if (!state.xsave_extended.empty()) {
        if (state.xsave_extended.size() < k_xsave_header ||
            (state.xsave_extended.size() > area.size() - k_legacy_xsave &&
             std::any_of(state.xsave_extended.begin() + static_cast<ptrdiff_t>(area.size() - k_legacy_xsave),
                         state.xsave_extended.end(), [](std::byte b) { return b != std::byte{0}; })))
            return make_error(ErrorCode::Corrupt,
                              "saved CPU state has {} bytes of extended registers; this host has {}",
                              state.xsave_extended.size(), area.size() - k_legacy_xsave);
        size_t length = std::min(state.xsave_extended.size(), area.size() - k_legacy_xsave);
        std::memcpy(area.data() + k_legacy_xsave, state.xsave_extended.data(), length);
    }
    // XSTATE_BV: a clear bit would let KVM take the initial value instead of what fxsave says.
    store_le<uint64_t>(area, k_legacy_xsave, load_le<uint64_t>(area, k_legacy_xsave) | k_xfeature_x87_sse);
    TRY(vcpu.call(COFFER_KVM(KVM_SET_XSAVE), area.data()));
    return {};
}

void read_events(kvm_vcpu_events const& events, CpuState& state) {
    state.interrupt_shadow = events.interrupt.shadow != 0;
    state.nmi_blocked = events.nmi.masked != 0;
    state.nmi_pending = events.nmi.pending != 0 || events.nmi.injected != 0;
    auto& pending = state.pending_event;
    if (events.exception.injected || events.exception.pending)
        pending = {PendingEvent::Kind::Exception, events.exception.nr, events.exception.has_error_code != 0,
                   events.exception.error_code};
    else if (events.interrupt.injected)
        pending = {PendingEvent::Kind::Interrupt, events.interrupt.nr, false, 0};
}

kvm_vcpu_events to_events(CpuState const& state) {
    kvm_vcpu_events events{};
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    events.interrupt.shadow = state.interrupt_shadow ? KVM_X86_SHADOW_INT_STI : 0;
    events.nmi.masked = state.nmi_blocked;
    events.nmi.pending = state.nmi_pending;
    auto const& pending = state.pending_event;
    switch (pending.kind) {
    case PendingEvent::Kind::None: break;
    case PendingEvent::Kind::Exception:
        events.exception.injected = 1;
        events.exception.nr = pending.vector;
        events.exception.has_error_code = pending.has_error_code;
        events.exception.error_code = pending.error_code;
        break;
    case PendingEvent::Kind::Interrupt:
        events.interrupt.injected = 1;
        events.interrupt.nr = pending.vector;
        break;
    }
    return events;
}

CpuActivity from_mp_state(uint32_t state) {
    switch (state) {
    case KVM_MP_STATE_HALTED: return CpuActivity::Halted;
    case KVM_MP_STATE_UNINITIALIZED:
    case KVM_MP_STATE_INIT_RECEIVED: return CpuActivity::WaitingForSipi;
    default: return CpuActivity::Running;
    }
}

uint32_t to_mp_state(CpuActivity activity) {
    switch (activity) {
    case CpuActivity::Halted: return KVM_MP_STATE_HALTED;
    case CpuActivity::WaitingForSipi: return KVM_MP_STATE_INIT_RECEIVED;
    case CpuActivity::Running: break;
    }
    return KVM_MP_STATE_RUNNABLE;
}

Result<void> write_saved_msrs(Handle const& vcpu, StateLayout const& layout, CpuState const& state) {
    std::vector<MsrValue> values;
    for (uint32_t index : layout.saved_msrs)
        for (auto const& value : state.msrs)
            if (value.index == index) values.push_back(value);
    for (auto const& value : state.msrs) {
        if (value.index == msr::IA32_APIC_BASE || value.value == 0) continue;
        if (std::ranges::find(layout.saved_msrs, value.index) == layout.saved_msrs.end())
            log::warning("MSR {:#x} of the saved CPU state ({:#x}) does not exist on this host", value.index,
                         value.value);
    }
    return write_msrs(vcpu, values);
}

} // namespace

Segment from_kvm(kvm_segment const& segment) {
    Segment result;
    result.selector = segment.selector;
    result.base = segment.base;
    result.limit = segment.limit;
    result.attributes = static_cast<uint16_t>((segment.type & 0xF) | (segment.s & 1) << 4 | (segment.dpl & 3) << 5 |
                                              (segment.present & 1) << 7 | (segment.avl & 1) << 12 |
                                              (segment.l & 1) << 13 | (segment.db & 1) << 14 | (segment.g & 1) << 15);
    return result;
}

kvm_segment to_kvm(Segment const& segment) {
    kvm_segment result{};
    auto field = [&](unsigned first, unsigned mask) {
        return static_cast<uint8_t>((segment.attributes >> first) & mask);
    };
    result.selector = segment.selector;
    result.base = segment.base;
    result.limit = segment.limit;
    result.type = field(0, 0xF);
    result.s = field(4, 1);
    result.dpl = field(5, 3);
    result.present = field(7, 1);
    result.avl = field(12, 1);
    result.l = field(13, 1);
    result.db = field(14, 1);
    result.g = field(15, 1);
    result.unusable = !result.present;
    return result;
}

std::array<uint64_t, 16> general_registers(kvm_regs const& regs) {
    return {regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            regs.r8,  regs.r9,  regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15};
}

void set_general_registers(kvm_regs& regs, std::array<uint64_t, 16> const& values) {
    decltype(&kvm_regs::rax) const members[] = {&kvm_regs::rax, &kvm_regs::rcx, &kvm_regs::rdx, &kvm_regs::rbx,
                                                &kvm_regs::rsp, &kvm_regs::rbp, &kvm_regs::rsi, &kvm_regs::rdi,
                                                &kvm_regs::r8,  &kvm_regs::r9,  &kvm_regs::r10, &kvm_regs::r11,
                                                &kvm_regs::r12, &kvm_regs::r13, &kvm_regs::r14, &kvm_regs::r15};
    for (size_t i = 0; i < values.size(); ++i) regs.*members[i] = values[i];
}

Result<CpuState> read_state(Handle const& vcpu, StateLayout const& layout) {
    CpuState state;
    kvm_mp_state mp{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_MP_STATE), &mp));
    state.activity = from_mp_state(mp.mp_state);

    kvm_regs regs{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_REGS), &regs));
    state.gpr = general_registers(regs);
    state.rip = regs.rip;
    state.rflags = regs.rflags;

    kvm_sregs sregs{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_SREGS), &sregs));
    kvm_segment const* segments[] = {&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs};
    for (size_t i = 0; i < state.segments.size(); ++i) state.segments[i] = from_kvm(*segments[i]);
    state.ldtr = from_kvm(sregs.ldt);
    state.tr = from_kvm(sregs.tr);
    state.gdtr = {sregs.gdt.base, sregs.gdt.limit};
    state.idtr = {sregs.idt.base, sregs.idt.limit};
    state.cr0 = sregs.cr0;
    state.cr2 = sregs.cr2;
    state.cr3 = sregs.cr3;
    state.cr4 = sregs.cr4;
    state.cr8 = sregs.cr8;
    state.efer = sregs.efer;

    kvm_xcrs xcrs{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_XCRS), &xcrs));
    for (uint32_t i = 0; i < std::min<uint32_t>(xcrs.nr_xcrs, KVM_MAX_XCRS); ++i)
        if (xcrs.xcrs[i].xcr == 0) state.xcr0 = xcrs.xcrs[i].value;
    TRY(read_xsave(vcpu, layout.xsave_size, state));

    kvm_debugregs debug{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_DEBUGREGS), &debug));
    std::copy(std::begin(debug.db), std::end(debug.db), state.dr.begin());
    state.dr6 = debug.dr6;
    state.dr7 = debug.dr7;

    state.msrs = TRY(read_msrs(vcpu, layout.saved_msrs));
    state.msrs.push_back({msr::IA32_APIC_BASE, sregs.apic_base});
    kvm_lapic_state lapic{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_LAPIC), &lapic));
    Bytes lapic_bytes = object_bytes(lapic);
    state.local_apic.assign(lapic_bytes.begin(), lapic_bytes.end());

    kvm_vcpu_events events{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_VCPU_EVENTS), &events));
    read_events(events, state);
    return state;
}

Result<void> write_state(Handle const& vcpu, StateLayout const& layout, CpuState const& state) {
    kvm_mp_state mp{};
    mp.mp_state = to_mp_state(state.activity);
    TRY(vcpu.call(COFFER_KVM(KVM_SET_MP_STATE), &mp));

    kvm_regs regs{};
    set_general_registers(regs, state.gpr);
    regs.rip = state.rip;
    regs.rflags = state.rflags;
    TRY(vcpu.call(COFFER_KVM(KVM_SET_REGS), &regs));

    kvm_sregs sregs{};
    TRY(vcpu.call(COFFER_KVM(KVM_GET_SREGS), &sregs)); // for the APIC base, where the state carries none
    kvm_segment* segments[] = {&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs};
    for (size_t i = 0; i < state.segments.size(); ++i) *segments[i] = to_kvm(state.segments[i]);
    sregs.ldt = to_kvm(state.ldtr);
    sregs.tr = to_kvm(state.tr);
    sregs.gdt = to_kvm(state.gdtr);
    sregs.idt = to_kvm(state.idtr);
    sregs.cr0 = state.cr0;
    sregs.cr2 = state.cr2;
    sregs.cr3 = state.cr3;
    sregs.cr4 = state.cr4;
    sregs.cr8 = state.cr8;
    sregs.efer = state.efer;
    for (auto const& value : state.msrs)
        if (value.index == msr::IA32_APIC_BASE) sregs.apic_base = value.value;
    std::ranges::fill(sregs.interrupt_bitmap, 0); // the events below say it
    TRY(vcpu.call(COFFER_KVM(KVM_SET_SREGS), &sregs));

    TRY(write_xsave(vcpu, layout.xsave_size, state));
    kvm_xcrs xcrs{};
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0].value = state.xcr0;
    TRY(vcpu.call(COFFER_KVM(KVM_SET_XCRS), &xcrs));

    if (!state.local_apic.empty()) {
        kvm_lapic_state lapic{};
        if (state.local_apic.size() != sizeof lapic)
            return make_error(ErrorCode::Corrupt, "saved local APIC state has {} bytes, not {}",
                              state.local_apic.size(), sizeof lapic);
        std::memcpy(&lapic, state.local_apic.data(), sizeof lapic);
        TRY(vcpu.call(COFFER_KVM(KVM_SET_LAPIC), &lapic));
    }
    TRY(write_saved_msrs(vcpu, layout, state));

    kvm_vcpu_events events = to_events(state);
    TRY(vcpu.call(COFFER_KVM(KVM_SET_VCPU_EVENTS), &events));

    kvm_debugregs debug{};
    std::copy(state.dr.begin(), state.dr.end(), std::begin(debug.db));
    debug.dr6 = state.dr6;
    debug.dr7 = state.dr7;
    TRY(vcpu.call(COFFER_KVM(KVM_SET_DEBUGREGS), &debug));
    return {};
}

} // namespace coffer::vmm::kvm
