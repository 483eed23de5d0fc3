#include "vmm/accel/soft/translate/block_builder.hpp"

#include <cstring>

#include "vmm/accel/soft/translate/interpreter.hpp"
#include "vmm/accel/soft/translate/reencode.hpp"

namespace coffer::vmm::soft {

namespace {

// Whether translation may go on behind an instruction that C++ executes.
bool ends_block(Decoded const& d) {
    if (d.cls != InsnClass::System) return d.cls == InsnClass::Branch || d.cls == InsnClass::Undefined;
    switch (d.insn.meta.category) {
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET: return true;
    default: break;
    }
    switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_RSM: return true;
    default: return false;
    }
}

// Instructions that the inline paths do not take on: C++ executes them.
bool inline_possible(Decoded const& d, unsigned code_bits) {
    if (d.scrub) return false;
    switch (d.cls) {
    case InsnClass::Plain: return true;
    case InsnClass::Stack:
        // POP to memory computes its address behind the pop.
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_POP && d.memory.present) return false;
        return d.insn.operand_width == code_bits;
    case InsnClass::Branch:
        if (code_bits == 32 && d.insn.operand_width != 32) return false;
        switch (d.insn.mnemonic) {
        case ZYDIS_MNEMONIC_JCXZ:
        case ZYDIS_MNEMONIC_JECXZ:
        case ZYDIS_MNEMONIC_JRCXZ:
        case ZYDIS_MNEMONIC_LOOP:
        case ZYDIS_MNEMONIC_LOOPE:
        case ZYDIS_MNEMONIC_LOOPNE: return d.insn.address_width != 16;
        default: return true;
        }
    default: return false;
    }
}

} // namespace

BlockBuilder::BlockBuilder() : m_insns(k_max_instructions), m_buffer(k_max_code) {}

uint64_t BlockBuilder::next_rip(size_t i) const {
    return truncate(m_rips[i] + m_insns[i].length());
}

bool BlockBuilder::same_page(uint64_t target) const {
    return (target & k_page_mask) == (m_source.rip & k_page_mask) && m_block->second_page == k_no_page;
}

Site& BlockBuilder::new_site(SiteKind kind, uint64_t rip) {
    Site& site = m_target.sites->emplace_back();
    m_sites.push_back(&site);
    site.kind = kind;
    site.rip = rip;
    site.block = m_block;
    site.flags_in_slot = m_flags == Flags::Slot;
    return site;
}

BlockBuilder::Outcome BlockBuilder::decode_all(BlockSource const& source) {
    m_count = 0;
    m_ended = false;
    std::span<uint8_t const> bytes = source.crossing.empty() ? source.first_page : source.crossing;
    size_t limit = source.crossing.empty() ? k_max_instructions : 1;
    uint64_t rip = source.rip;
    while (m_count < limit && !bytes.empty()) {
        Decoded& d = m_insns[m_count];
        DecodeStatus status = decode(source.key.code_bits, bytes, d);
        if (status == DecodeStatus::NeedMore) {
            if (m_count == 0) return source.crossing.empty() ? Outcome::Crossing : Outcome::TooLong;
            break;
        }
        if (status == DecodeStatus::TooLong) {
            if (m_count == 0) return Outcome::TooLong;
            break;
        }
        m_rips[m_count] = rip;
        if (status == DecodeStatus::Undefined) {
            d.cls = InsnClass::Undefined;
            d.insn.length = 0;
            d.memory = {};
            d.fpu = FpuUse::None;
        }
        ++m_count;
        m_ended = ends_block(d);
        if (m_ended) break;
        bytes = bytes.subspan(d.length());
        rip = truncate(rip + d.length());
    }
    return Outcome::Built;
}

BlockBuilder::Outcome BlockBuilder::build(BlockSource const& source, Target const& target, Block& block) {
    m_source = source;
    m_target = target;
    m_block = &block;
    Outcome outcome = decode_all(source);
    if (outcome != Outcome::Built) return outcome;
    compute_liveness(std::span(m_insns).first(m_count), std::span(m_uses).first(m_count),
                     std::span(m_live).first(m_count));
    m_e = Emitter(m_buffer.data(), m_buffer.size());
    m_stubs.clear();
    m_sites.clear();
    m_marks.clear();
    m_flags = Flags::Host;
    m_slot_valid = false;
    block.gpa = source.gpa;
    block.rip = source.rip;
    block.key = source.key;
    block.code = target.offset;
    block.instructions = static_cast<uint16_t>(m_count);
    uint64_t end = m_rips[m_count - 1] + m_insns[m_count - 1].length();
    block.guest_size = static_cast<uint16_t>(std::max<uint64_t>(end - source.rip, 1));
    for (size_t i = 0; i < m_count; ++i) emit_instruction(i);
    if (!m_ended) {
        restore_flags();
        emit_jump_edge(next_rip(m_count - 1));
    }
    emit_stubs();
    m_size = m_e.size();
    block.code_size = static_cast<uint32_t>(m_size);
    return Outcome::Built;
}

void BlockBuilder::emit_instruction(size_t i) {
    Decoded const& d = m_insns[i];
    m_open_accesses.clear();
    if (d.cls == InsnClass::Undefined) {
        emit_system(i, SiteKind::Raise, Vector::UD);
        return;
    }
    if (auto vector = fpu_fault(m_source.cr0, m_source.cr4, d.fpu)) {
        emit_system(i, SiteKind::Raise, *vector);
        return;
    }
    if (!inline_possible(d, m_source.key.code_bits)) {
        emit_system(i, SiteKind::System);
        return;
    }
    switch (d.cls) {
    case InsnClass::Plain: emit_plain_instruction(i); break;
    case InsnClass::Stack: emit_stack(i); break;
    default: emit_branch(i); break;
    }
}

// ---- Flags ----

// Scaffolding may change EFLAGS behind this.
void BlockBuilder::save_flags() {
    if (m_flags == Flags::Slot) return;
    if (!m_slot_valid) {
        m_e.store(offset::saved, Host::rax);
        m_e.bytes(0x9F, 0x0F, 0x90, 0xC0); // lahf; seto al
        m_e.store(offset::flag_slot, Host::rax);
        m_e.load(Host::rax, offset::saved);
    }
    m_flags = Flags::Slot;
    m_slot_valid = true;
}

void BlockBuilder::restore_flags() {
    if (m_flags == Flags::Host) return;
    m_e.store(offset::saved, Host::rax);
    m_e.load(Host::rax, offset::flag_slot);
    m_e.bytes(0x04, 0x7F, 0x9E); // add al, 0x7F; sahf
    m_e.load(Host::rax, offset::saved);
    m_flags = Flags::Host;
}

// ---- Memory ----

void BlockBuilder::emit_memory_address(size_t i) {
    Decoded const& d = m_insns[i];
    ZydisDecodedOperandMem const& mem = d.operands[d.memory.operand].mem;
    save_flags();
    emit_offset(m_e, mem, d.insn.address_width, Host::r14, next_rip(i));
    if (d.bit_string) emit_bit_string_reach(m_e, d);
    if (d.memory.segment == SegmentName::Fs) m_e.state(0x03, Host::r14, offset::thread_bases, wide());
    if (d.memory.segment == SegmentName::Gs) m_e.state(0x03, Host::r14, offset::thread_bases + 8, wide());
}

// r14: a linear address, becomes the host's. Flags are lost.
void BlockBuilder::emit_check(size_t i, uint16_t size, bool write) {
    Site& site = new_site(SiteKind::Access, rip_of(i));
    site.write = write;
    site.size = size;
    site.length = m_insns[i].length();
    site.bytes = m_insns[i].bytes;
    int32_t set = offset::tlb + (m_source.key.user ? static_cast<int32_t>(sizeof(TlbSet)) : 0);
    int32_t tag = set + static_cast<int32_t>(write ? offsetof(TlbEntry, write_tag) : offsetof(TlbEntry, read_tag));
    static_assert(sizeof(TlbEntry) == 32 && k_tlb_entries == 1024);
    site.retry = m_target.executable + m_target.offset + m_e.size();
    m_e.move(Host::r15, Host::r14);
    m_e.shift_imm(5, Host::r15, 12 - 5);
    m_e.alu_imm32(4, Host::r15, (k_tlb_entries - 1) << 5, false);
    m_e.state_indexed(0x33, Host::r14, Host::r15, tag);
    m_e.alu_imm32(7, Host::r14, 4096 - size);
    m_e.bytes(0x0F, 0x87); // ja cold
    m_stubs.push_back(Stub{.site = &site, .patch = m_e.size(), .recover = true, .tag = tag});
    m_e.dword(0);
    m_e.state_indexed(0x03, Host::r14, Host::r15, set + static_cast<int32_t>(offsetof(TlbEntry, host)));
    m_open_accesses.push_back(&site);
}

// Behind an instruction: where C++ that executed it continues.
void BlockBuilder::finish_accesses() {
    for (Site* site : m_open_accesses) site->resume = m_target.executable + m_target.offset + m_e.size();
}

// ---- Instructions ----

void BlockBuilder::emit_plain_instruction(size_t i) {
    Decoded const& d = m_insns[i];
    FlagUse const& use = m_uses[i];
    if (d.memory.present) {
        emit_memory_address(i);
        emit_check(i, d.memory.size, d.memory.write);
    }
    if (use.reads != 0 || use.touches) {
        // Behind it, EFLAGS is what counts: what it does not write must be there before.
        uint32_t live_behind = i + 1 < m_count ? m_live[i + 1] : k_arithmetic_flags;
        if (use.reads != 0 || (live_behind & ~use.kills) != 0) restore_flags();
        m_flags = Flags::Host;
        m_slot_valid &= !use.touches;
    }
    InsnMark mark{.begin = static_cast<uint32_t>(m_e.size()),
                  .end = 0,
                  .guest = static_cast<uint16_t>(rip_of(i) - m_source.rip),
                  .flags_in_slot = m_flags == Flags::Slot};
    emit_plain(m_e, d, next_rip(i), offset::spare);
    mark.end = static_cast<uint32_t>(m_e.size());
    m_marks.push_back(mark);
    finish_accesses();
}

void BlockBuilder::emit_system(size_t i, SiteKind kind, Vector vector) {
    Decoded const& d = m_insns[i];
    Site& site = new_site(kind, rip_of(i));
    site.length = d.length();
    site.bytes = d.bytes;
    site.vector = vector;
    emit_exit(site);
    site.resume = m_target.executable + m_target.offset + m_e.size();
    m_flags = Flags::Host; // and in the slot: C++ enters with both
    m_slot_valid = true;
    if (kind == SiteKind::Raise) return;
    if (m_ended && i + 1 == m_count) {
        // Not reached by Step::Next: an instruction that ends the block leaves.
        Site& behind = new_site(SiteKind::Fetch, next_rip(i));
        emit_exit(behind);
    }
}

void BlockBuilder::emit_stack(size_t i) {
    Decoded const& d = m_insns[i];
    ZydisDecodedOperand const& operand = d.operands[0];
    int32_t bytes = wide() ? 8 : 4;
    auto size = static_cast<uint16_t>(bytes);
    if (d.insn.mnemonic == ZYDIS_MNEMONIC_PUSH) {
        if (d.memory.present) {
            emit_memory_address(i);
            emit_check(i, size, false);
            m_e.rex(wide(), 1, 0, 1);
            m_e.bytes(0x8B, 0x36); // mov r14, [r14]
            m_e.store(offset::value, Host::r14);
        } else
            save_flags();
        m_e.lea(Host::r14, Host::r13, -bytes, wide());
        emit_check(i, size, true);
        if (operand.type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
            m_e.rex(wide(), 0, 0, 1);
            m_e.bytes(0xC7, 0x06); // mov [r14], imm32
            m_e.dword(static_cast<uint32_t>(operand.imm.value.u));
        } else {
            Host from = Host::r15;
            if (d.memory.present)
                m_e.load(Host::r15, offset::value);
            else if (auto host = host_of(gpr_number(operand.reg.value)))
                from = *host;
            else
                emit_get(m_e, Host::r15, gpr_number(operand.reg.value));
            m_e.rex(wide(), bit3(from), 0, 1);
            m_e.bytes(0x89, 0x06 | low3(from) << 3); // mov [r14], from
        }
        m_e.lea(Host::r13, Host::r13, -bytes, wide());
    } else if (d.insn.mnemonic == ZYDIS_MNEMONIC_POP) {
        save_flags();
        m_e.move(Host::r14, Host::r13, wide());
        emit_check(i, size, false);
        m_e.lea(Host::r13, Host::r13, bytes, wide());
        unsigned guest = gpr_number(operand.reg.value);
        Host to = host_of(guest).value_or(Host::r14);
        m_e.rex(wide(), bit3(to), 0, 1);
        m_e.bytes(0x8B, 0x06 | low3(to) << 3); // mov to, [r14]
        if (!host_of(guest)) m_e.store(gpr_slot(guest), Host::r14);
    } else { // LEAVE
        save_flags();
        m_e.move(Host::r14, Host::rbp, wide());
        emit_check(i, size, false);
        m_e.lea(Host::r13, Host::rbp, bytes, wide());
        m_e.rex(wide(), bit3(Host::rbp), 0, 1);
        m_e.bytes(0x8B, 0x06 | low3(Host::rbp) << 3); // mov rbp, [r14]
    }
    finish_accesses();
}

void BlockBuilder::emit_branch(size_t i) {
    Decoded const& d = m_insns[i];
    ZydisDecodedOperand const& operand = d.operands[0];
    int32_t bytes = wide() ? 8 : 4;
    auto size = static_cast<uint16_t>(bytes);
    auto relative = [&] { return truncate(next_rip(i) + static_cast<uint64_t>(operand.imm.value.s)); };
    bool direct = operand.type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    // The target of an indirect JMP or CALL into `to`.
    auto get_target = [&](Host to) {
        if (d.memory.present) {
            emit_memory_address(i);
            emit_check(i, size, false);
            m_e.rex(wide(), bit3(to), 0, 1);
            m_e.bytes(0x8B, 0x06 | low3(to) << 3);
        } else {
            emit_get(m_e, to, gpr_number(operand.reg.value));
            if (!wide()) m_e.move(to, to, false);
        }
    };
    switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
        if (direct) {
            restore_flags();
            emit_jump_edge(relative());
            return;
        }
        get_target(Host::r14);
        break;
    case ZYDIS_MNEMONIC_CALL: {
        if (!direct) {
            get_target(Host::r14);
            m_e.store(offset::value, Host::r14);
        }
        save_flags();
        m_e.lea(Host::r14, Host::r13, -bytes, wide());
        emit_check(i, size, true);
        uint64_t back = next_rip(i);
        if (wide() && static_cast<int64_t>(back) != static_cast<int32_t>(back)) {
            m_e.move_imm(Host::r15, back);
            m_e.bytes(0x4D, 0x89, 0x3E); // mov [r14], r15
        } else {
            m_e.rex(wide(), 0, 0, 1);
            m_e.bytes(0xC7, 0x06); // mov [r14], imm32
            m_e.dword(static_cast<uint32_t>(back));
        }
        m_e.lea(Host::r13, Host::r13, -bytes, wide());
        restore_flags();
        if (direct) {
            emit_jump_edge(relative());
            finish_accesses();
            return;
        }
        m_e.load(Host::r14, offset::value);
        break;
    }
    case ZYDIS_MNEMONIC_RET: {
        int32_t extra = direct ? static_cast<int32_t>(operand.imm.value.u) : 0;
        save_flags();
        m_e.move(Host::r14, Host::r13, wide());
        emit_check(i, size, false);
        m_e.rex(wide(), 1, 0, 1);
        m_e.bytes(0x8B, 0x36); // mov r14, [r14]
        m_e.lea(Host::r13, Host::r13, bytes + extra, wide());
        break;
    }
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE: {
        restore_flags();
        if (d.insn.address_width == 32) m_e.byte(0x67);
        // Its displacement reaches over a near jump only.
        m_e.bytes(d.insn.opcode, 5, 0xE9);
        m_e.dword(0);
        size_t not_taken = m_e.size();
        emit_jump_edge(relative());
        m_e.patch_dword(not_taken - 4, static_cast<uint32_t>(m_e.size() - not_taken));
        emit_jump_edge(next_rip(i));
        return;
    }
    default: { // Jcc: the low four bits of its opcode are the condition
        restore_flags();
        uint64_t taken = relative();
        uint8_t condition = d.insn.opcode & 0xF;
        if (taken > rip_of(i) && (same_page(taken) || !m_source.key.user)) {
            m_e.bytes(0x0F, 0x80 | condition);
            m_e.dword(0);
            emit_edge(taken, m_e.size() - 4);
            emit_jump_edge(next_rip(i));
        } else {
            m_e.bytes(0x0F, 0x80 | (condition ^ 1));
            m_e.dword(0);
            size_t skip = m_e.size();
            emit_jump_edge(taken);
            m_e.patch_dword(skip - 4, static_cast<uint32_t>(m_e.size() - skip));
            emit_jump_edge(next_rip(i));
        }
        return;
    }
    }
    restore_flags();
    emit_indirect();
    finish_accesses();
}

// ---- Edges ----

// A patchable rel32 at `patch` that goes to `target`, by way of a stub until it is linked.
void BlockBuilder::emit_edge(uint64_t target, size_t patch) {
    Site& site = new_site(SiteKind::Link, target);
    site.cross_page = !same_page(target);
    site.patch = static_cast<uint32_t>(m_target.offset + patch);
    m_stubs.push_back(Stub{.site = &site, .patch = patch, .recover = false, .tag = 0});
}

void BlockBuilder::emit_jump_edge(uint64_t target) {
    if (target <= m_rips[m_count - 1]) emit_poll(target);
    if (m_source.key.user && !same_page(target)) {
        // Links across pages would have to be undone at each change of address space.
        m_e.move_imm(Host::r14, target);
        emit_indirect();
        return;
    }
    m_e.byte(0xE9);
    m_e.dword(0);
    emit_edge(target, m_e.size() - 4);
}

// Leaves where attention is set. JRCXZ is the one test that keeps flags.
void BlockBuilder::emit_poll(uint64_t target) {
    Site& site = new_site(SiteKind::Poll, target);
    m_e.move(Host::r14, Host::rcx);
    m_e.load32(Host::rcx, offset::attention);
    m_e.bytes(0xE3, 0); // jrcxz
    size_t skip = m_e.size();
    m_e.move(Host::rcx, Host::r14);
    emit_exit(site);
    m_e.patch_byte(skip - 1, static_cast<uint8_t>(m_e.size() - skip));
    m_e.move(Host::rcx, Host::r14);
}

// r14: the target.
void BlockBuilder::emit_indirect() {
    Site& site = new_site(SiteKind::Indirect, 0);
    m_e.store(offset::rip, Host::r14);
    m_e.store(offset::saved, Host::rcx);
    m_e.bytes(0x45, 0x0F, 0xB7, 0xFE);                             // movzx r15d, r14w
    m_e.lea_indexed(Host::r15, Host::r15, Host::r15, 0, 0, false); // entries are 16 bytes: scale 8 of twice the index
    m_e.load(Host::rcx, offset::salt + (m_source.key.user ? 8 : 0));
    m_e.lea_indexed(Host::rcx, Host::rcx, Host::r14, 0, 0);
    m_e.state_indexed(0x8B, Host::r14, Host::r15, offset::jumps, 3);
    m_e.lea_indexed(Host::rcx, Host::rcx, Host::r14, 0, 0);
    m_e.bytes(0xE3, 0); // jrcxz hit
    size_t skip = m_e.size();
    m_e.load(Host::rcx, offset::saved);
    emit_exit(site);
    m_e.patch_byte(skip - 1, static_cast<uint8_t>(m_e.size() - skip));
    m_e.load(Host::rcx, offset::saved);
    m_e.bytes(0x42, 0xFF, 0xA4, 0xFC); // jmp [rsp + r15*8 + jumps + 8]
    m_e.dword(static_cast<uint32_t>(offset::jumps + 8));
}

void BlockBuilder::emit_exit(Site& site) {
    m_e.bytes(0x49, 0xBF);                        // mov r15, site
    m_e.qword(reinterpret_cast<uint64_t>(&site)); // SAFETY: handed back to C++ in Frame::site
    m_e.jump_state(offset::exit);
}

void BlockBuilder::emit_stubs() {
    for (Stub const& stub : m_stubs) {
        m_e.patch_dword(stub.patch, static_cast<uint32_t>(m_e.size() - stub.patch - 4));
        if (stub.recover) {
            m_e.state_indexed(0x33, Host::r14, Host::r15, stub.tag);
            m_e.bytes(0x49, 0xBF);
            m_e.qword(reinterpret_cast<uint64_t>(stub.site)); // SAFETY: handed to the trampoline and C++
            m_e.jump_state(offset::cold);
        } else {
            stub.site->stub = static_cast<uint32_t>(m_target.offset + m_e.size());
            emit_exit(*stub.site);
        }
    }
}

} // namespace coffer::vmm::soft
