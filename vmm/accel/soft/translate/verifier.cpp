#include "vmm/accel/soft/translate/verifier.hpp"

#include <algorithm>
#include <cstring>

#include "vmm/accel/soft/translate/emitter.hpp"
#include "vmm/accel/soft/translate/reencode.hpp"

namespace coffer::vmm::soft {

namespace {

// Bytes of a template, made once by the emitter.
struct Template {
    std::array<uint8_t, 128> bytes{};
    size_t size = 0;

    template <class Emit>
    explicit Template(Emit emit) {
        Emitter e(bytes.data(), bytes.size());
        emit(e);
        size = e.size();
    }
    bool matches(std::span<uint8_t const> code) const {
        return code.size() >= size && std::memcmp(code.data(), bytes.data(), size) == 0;
    }
};

struct Slot {
    int32_t begin, end;
    bool load, store;
};

int32_t read32(uint8_t const* at) {
    int32_t value;
    std::memcpy(&value, at, 4);
    return value;
}

class Verifier {
public:
    Verifier(std::span<uint8_t const> code, std::span<Slot const> slots) : m_code(code), m_slots(slots) {}

    // Of blocks.
    bool m_block = false;
    bool m_user = false;
    std::span<Site* const> m_sites;
    // Of steps.
    int32_t m_exit = -1;

    size_t m_checked = 0; // bytes at [r14] that may be accessed by the next instruction that uses them
    bool m_writable = false;
    bool m_host_address = true; // r14 may hold one: it must not be read

    std::optional<Rejection> run() {
        while (m_at < m_code.size()) {
            arrive();
            m_ended = false;
            if (m_reason) break;
            if (!(m_block && block_template()) && !state_access() && !jump() && !plain()) break;
            if (m_reason) break;
        }
        if (!m_reason && m_at != m_code.size()) m_reason = "an instruction that is not allowed";
        if (!m_reason && !m_ended) m_reason = "the end can be fallen through";
        if (!m_reason && !m_targets.empty()) m_reason = "a jump to no instruction";
        if (m_reason) return Rejection{m_at, m_reason};
        return std::nullopt;
    }

private:
    std::span<uint8_t const> rest() const { return m_code.subspan(m_at); }

    bool fail(char const* reason) {
        m_reason = reason;
        return false;
    }

    // A boundary: what is known does not hold where it can be jumped to.
    void arrive() {
        bool target = false;
        std::erase_if(m_targets, [&](Target const& t) {
            if (t.at < m_at) m_reason = "a jump into an instruction";
            if (t.at != m_at) return false;
            target = true;
            m_host_address |= t.host_address;
            return true;
        });
        if (!target) return;
        m_checked = 0;
        m_index_mask = 0;
        m_alias = Host::rsp;
    }

    // A forward jump within the block.
    bool add_target(size_t from, int64_t displacement) {
        int64_t target = static_cast<int64_t>(from) + displacement;
        if (displacement < 0 || target > static_cast<int64_t>(m_code.size()))
            return fail("a jump backwards or out of the block");
        m_targets.push_back(Target{static_cast<size_t>(target), m_host_address});
        return true;
    }

    bool take(size_t size) {
        m_at += size;
        return true;
    }

    bool known_site(uint64_t value) const {
        return std::any_of(m_sites.begin(), m_sites.end(), [&](Site* site) {
            return reinterpret_cast<uint64_t>(site) == value; // SAFETY: compared
        });
    }

    // mov r15, site; jmp [rsp + slot]
    bool exit_template() {
        auto code = rest();
        if (code.size() < 17 || code[0] != 0x49 || code[1] != 0xBF || code[10] != 0xFF || code[11] != 0xA4 ||
            code[12] != 0x24)
            return false;
        uint64_t site;
        std::memcpy(&site, code.data() + 2, 8);
        int32_t slot = read32(code.data() + 13);
        if (slot != offset::exit && slot != offset::cold) return false;
        if (!known_site(site)) return fail("an exit with an unknown site");
        m_ended = true;
        return take(17);
    }

    bool check_template() {
        static Template const head([](Emitter& e) {
            e.move(Host::r15, Host::r14);
            e.shift_imm(5, Host::r15, 7);
            e.alu_imm32(4, Host::r15, (k_tlb_entries - 1) << 5, false);
            e.bytes(0x4E, 0x33, 0xB4, 0x3C); // xor r14, [rsp + r15 + disp32]
        });
        auto code = rest();
        size_t const tag_at = head.size;
        size_t const size = head.size + 4 + 7 + 6 + 8;
        if (code.size() < size || !head.matches(code)) return false;
        uint8_t const* at = code.data() + tag_at;
        int32_t set = offset::tlb + (m_user ? static_cast<int32_t>(sizeof(TlbSet)) : 0);
        bool write = read32(at) == set + static_cast<int32_t>(offsetof(TlbEntry, write_tag));
        if (!write && read32(at) != set + static_cast<int32_t>(offsetof(TlbEntry, read_tag)))
            return fail("a check of a wrong tag");
        at += 4;
        constexpr uint8_t k_cmp[] = {0x49, 0x81, 0xFE}, k_add[] = {0x4E, 0x03, 0xB4, 0x3C};
        if (std::memcmp(at, k_cmp, 3) != 0 || at[7] != 0x0F || at[8] != 0x87 || std::memcmp(at + 13, k_add, 4) != 0)
            return fail("a check that is not whole");
        int32_t limit = read32(at + 3);
        if (limit < 0 || limit >= 4096) return fail("a check without a limit");
        if (read32(at + 17) != set + static_cast<int32_t>(offsetof(TlbEntry, host)))
            return fail("a check with a wrong host address");
        if (!add_target(m_at + tag_at + 4 + 7 + 6, read32(at + 9))) return false;
        if (m_host_address) return fail("a check of a host address");
        m_checked = static_cast<size_t>(4096 - limit);
        m_writable = write;
        m_host_address = true;
        m_index_mask = 0;
        return take(size);
    }

    // xor r14, [rsp + r15 + tag] of a cold stub: r14 becomes the linear address again; only the exit follows.
    bool recover_template() {
        auto code = rest();
        constexpr uint8_t k_xor[] = {0x4E, 0x33, 0xB4, 0x3C};
        if (code.size() < 8 + 17 || std::memcmp(code.data(), k_xor, 4) != 0) return false;
        int32_t disp = read32(code.data() + 4);
        int32_t set = offset::tlb + (m_user ? static_cast<int32_t>(sizeof(TlbSet)) : 0);
        if (disp != set + static_cast<int32_t>(offsetof(TlbEntry, write_tag)) &&
            disp != set + static_cast<int32_t>(offsetof(TlbEntry, read_tag)))
            return fail("a stub with a wrong tag");
        take(8);
        return exit_template() || fail("a stub without an exit");
    }

    bool flag_templates() {
        static Template const save([](Emitter& e) {
            e.store(offset::saved, Host::rax);
            e.bytes(0x9F, 0x0F, 0x90, 0xC0);
            e.store(offset::flag_slot, Host::rax);
            e.load(Host::rax, offset::saved);
        });
        static Template const restore([](Emitter& e) {
            e.store(offset::saved, Host::rax);
            e.load(Host::rax, offset::flag_slot);
            e.bytes(0x04, 0x7F, 0x9E);
            e.load(Host::rax, offset::saved);
        });
        auto code = rest();
        if (save.matches(code)) return take(save.size);
        if (restore.matches(code)) return take(restore.size);
        return false;
    }

    bool indirect_template() {
        static auto const make_head = [](bool user) {
            return Template([user](Emitter& e) {
                e.store(offset::rip, Host::r14);
                e.store(offset::saved, Host::rcx);
                e.bytes(0x45, 0x0F, 0xB7, 0xFE);
                e.lea_indexed(Host::r15, Host::r15, Host::r15, 0, 0, false);
                e.load(Host::rcx, offset::salt + (user ? 8 : 0));
                e.lea_indexed(Host::rcx, Host::rcx, Host::r14, 0, 0);
                e.state_indexed(0x8B, Host::r14, Host::r15, offset::jumps, 3);
                e.lea_indexed(Host::rcx, Host::rcx, Host::r14, 0, 0);
                e.bytes(0xE3, 8 + 17);
                e.load(Host::rcx, offset::saved);
            });
        };
        static Template const heads[2] = {make_head(false), make_head(true)};
        static Template const tail([](Emitter& e) {
            e.load(Host::rcx, offset::saved);
            e.bytes(0x42, 0xFF, 0xA4, 0xFC);
            e.dword(static_cast<uint32_t>(offset::jumps + 8));
        });
        if (!heads[m_user ? 1 : 0].matches(rest())) return false;
        if (m_host_address) return fail("a host address as a target");
        take(heads[m_user ? 1 : 0].size);
        if (!exit_template()) return fail("a jump cache without a miss");
        if (!tail.matches(rest())) return fail("a jump cache without a hit");
        m_ended = true;
        return take(tail.size);
    }

    bool block_template() {
        return check_template() || recover_template() || flag_templates() || indirect_template() || exit_template();
    }

    // mov or add between a register and a slot of the state.
    bool state_access() {
        auto code = rest();
        size_t i = 0;
        bool size16 = code[i] == 0x66;
        if (size16 && code.size() > 1) ++i;
        uint8_t rex = 0;
        if ((code[i] & 0xF0) == 0x40 && code.size() > i + 1) rex = code[i++];
        if (code.size() < i + 4) return false;
        uint8_t opcode = code[i], modrm = code[i + 1];
        if (opcode != 0x8B && opcode != 0x89 && opcode != 0x03) return false;
        if ((modrm & 7) != 4 || code[i + 2] != 0x24 || (rex & 3) != 0) return false;
        int32_t disp;
        size_t size = i + 4;
        if (modrm >> 6 == 1)
            disp = static_cast<int8_t>(code[i + 3]);
        else if (modrm >> 6 == 2 && code.size() >= i + 7) {
            disp = read32(code.data() + i + 3);
            size = i + 7;
        } else
            return false;
        auto reg = static_cast<Host>((modrm >> 3 & 7) | (rex & 4 ? 8 : 0));
        int32_t bytes = size16 ? 2 : rex & 8 ? 8 : 4;
        bool store = opcode == 0x89;
        bool allowed = std::any_of(m_slots.begin(), m_slots.end(), [&](Slot const& slot) {
            return disp >= slot.begin && disp + bytes <= slot.end && (store ? slot.store : slot.load);
        });
        if (!allowed) return fail("an access to a part of the state that is not the guest's");
        if (store) {
            if (reg == Host::r14 && m_host_address) return fail("a host address would be stored");
        } else if (!written(reg)) {
            return false;
        }
        return take(size);
    }

    // What a write to a register does to what is known.
    bool written(Host reg) {
        if (reg == Host::rsp) return fail("a write to the state pointer");
        if (reg == m_alias) m_alias = Host::rsp;
        if (reg == Host::r14) {
            m_checked = 0;
            m_host_address = false;
        }
        if (reg == Host::r15) m_index_mask = 0;
        return true;
    }

    bool jump() {
        auto code = rest();
        switch (code[0]) {
        case 0xE9:
            if (code.size() < 5) return false;
            if (!add_target(m_at + 5, read32(code.data() + 1))) return false;
            m_ended = true;
            return take(5);
        case 0x0F:
            if (code.size() < 6 || (code[1] & 0xF0) != 0x80) return false;
            return add_target(m_at + 6, read32(code.data() + 2)) && take(6);
        case 0xE0:
        case 0xE1:
        case 0xE2:
        case 0xE3:
            if (code.size() < 2) return false;
            return add_target(m_at + 2, static_cast<int8_t>(code[1])) && take(2);
        case 0x67:
            if (code.size() < 3 || code[1] < 0xE0 || code[1] > 0xE3) return false;
            return add_target(m_at + 3, static_cast<int8_t>(code[2])) && take(3);
        case 0xFF:
            if (m_block || code.size() < 4) return false;
            // Of a step: jmp [rsp + exit]
            if (code[1] == 0xA4 && code[2] == 0x24 && code.size() >= 7 && read32(code.data() + 3) == m_exit) {
                m_ended = true;
                return take(7);
            }
            return false;
        default: return false;
        }
    }

    bool plain() {
        auto code = rest();
        // mov rsi, r14 (or rdi, in steps): a stand-in for r14 in the one instruction that follows.
        if (code.size() >= 3 && code[0] == 0x49 && code[1] == 0x8B &&
            (code[2] == 0xF6 || (code[2] == 0xFE && !m_block)) && m_checked != 0) {
            m_alias = code[2] == 0xF6 ? Host::rsi : Host::rdi;
            return take(3);
        }
        Decoded& d = m_decoded;
        if (decode(64, code, d) != DecodeStatus::Ok) return fail("bytes that are no instruction");
        bool mask_move = d.insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || d.insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU;
        if (d.cls != InsnClass::Plain || (d.scrub && m_block)) return fail("an instruction that is not plain");
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_XLAT) return fail("an implied memory operand");
        for (unsigned i = 0; i < d.insn.raw.prefix_count; ++i) {
            switch (d.insn.raw.prefixes[i].value) {
            case 0x26:
            case 0x2E:
            case 0x36:
            case 0x3E:
            case 0x64:
            case 0x65:
            case 0x67: return fail("a segment or address-size prefix");
            default: break;
            }
        }
        bool uses_alias = false;
        auto operands = std::span(d.operands).first(d.insn.operand_count);
        for (ZydisDecodedOperand const& operand : operands)
            if (operand.type == ZYDIS_OPERAND_TYPE_MEMORY && !memory_operand(d, operand, mask_move, uses_alias))
                return false;
        for (ZydisDecodedOperand const& operand : operands)
            if (operand.type == ZYDIS_OPERAND_TYPE_REGISTER && !register_operand(d, operand)) return false;
        // and r15d, 2^n - 1
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_AND && d.operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            d.operands[0].reg.value == ZYDIS_REGISTER_R15D && d.operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
            m_index_mask = d.operands[1].imm.value.u;
        if (m_alias != Host::rsp && !uses_alias) return fail("a stand-in that is not used at once");
        take(d.length());
        if (uses_alias) {
            // The register comes back from its slot at once.
            Host alias = m_alias;
            m_alias = Host::rsp;
            size_t before = m_at;
            if (m_at >= m_code.size() || !state_access()) return fail("a stand-in that stays");
            auto slot = m_code.subspan(before);
            uint8_t modrm = slot[0] == 0x48 ? slot[2] : 0;
            if (slot[1] != 0x8B || (modrm >> 3 & 7) != static_cast<uint8_t>(alias))
                return fail("a stand-in that stays");
        }
        return true;
    }

    bool register_operand(Decoded const& d, ZydisDecodedOperand const& operand) {
        ZydisRegister reg = operand.reg.value;
        if (!is_gpr(reg)) return true;
        if (is_high_byte(reg)) return true; // parts of RAX-RBX
        auto host = static_cast<Host>(gpr_number(reg));
        if (host == Host::rsp) return fail("the state pointer as an operand");
        bool reads = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
        bool writes = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
        // Narrow writes keep the rest.
        reads |= writes && gpr_bytes(reg) < 4;
        if (host == Host::r14 && reads && m_host_address) return fail("a host address would be read");
        if (writes) {
            bool keeps_mask = host == Host::r15 && d.insn.mnemonic == ZYDIS_MNEMONIC_AND;
            uint64_t mask = m_index_mask;
            if (!written(host)) return false;
            if (keeps_mask) m_index_mask = mask;
        }
        return true;
    }

    bool memory_operand(Decoded const& d, ZydisDecodedOperand const& operand, bool mask_move, bool& uses_alias) {
        ZydisDecodedOperandMem const& mem = operand.mem;
        if (operand.mem.type == ZYDIS_MEMOP_TYPE_AGEN) {
            bool rsp = mem.base == ZYDIS_REGISTER_RSP || mem.base == ZYDIS_REGISTER_RIP;
            bool r14 = mem.base == ZYDIS_REGISTER_R14 || mem.index == ZYDIS_REGISTER_R14;
            if (rsp || (r14 && m_host_address)) return fail("an address made of a host address");
            return true;
        }
        if (!d.memory.present) return fail("a memory operand without an access");
        bool alias = m_alias != Host::rsp && is_gpr(mem.base) && gpr_bytes(mem.base) == 8 &&
                     gpr_number(mem.base) == static_cast<unsigned>(m_alias);
        if (mask_move && !alias) return fail("an implied memory operand");
        if (!alias && mem.base != ZYDIS_REGISTER_R14) return fail("memory that is not addressed by r14");
        if (mem.index != ZYDIS_REGISTER_NONE || mem.disp.value != 0) return fail("memory beside the checked address");
        if (d.memory.size > m_checked) return fail("memory that is not checked");
        if (d.memory.write && !m_writable) return fail("a store without a check for one");
        if (d.bit_string) {
            ZydisRegister index = d.operands[1].reg.value;
            if (gpr_number(index) != 15 || m_index_mask != gpr_bytes(index) * 8 - 1)
                return fail("a bit index that is not masked");
        }
        uses_alias = alias;
        m_checked = 0;
        return true;
    }

    std::span<uint8_t const> m_code;
    std::span<Slot const> m_slots;
    size_t m_at = 0;
    char const* m_reason = nullptr;
    bool m_ended = false;
    uint64_t m_index_mask = 0;
    Host m_alias = Host::rsp;
    struct Target {
        size_t at;
        bool host_address;
    };
    std::vector<Target> m_targets;
    Decoded m_decoded{};
};

constexpr Slot whole(int32_t begin, int32_t size, bool load, bool store) {
    return {begin, begin + size, load, store};
}

} // namespace

std::optional<Rejection> verify_block(std::span<uint8_t const> code, bool user, std::span<Site* const> sites) {
    static constexpr std::array slots{
        whole(gpr_slot(13), 3 * 8, true, true),       whole(offset::rip, 8, false, true),
        whole(offset::thread_bases, 16, true, false), whole(offset::attention, 4, true, false),
        whole(offset::flag_slot, 8, true, true),      whole(offset::spare, 16, true, true),
        whole(offset::saved, 8, true, true),          whole(offset::value, 8, true, true),
    };
    Verifier verifier(code, slots);
    verifier.m_block = true;
    verifier.m_user = user;
    verifier.m_sites = sites;
    return verifier.run();
}

std::optional<Rejection> verify_step(std::span<uint8_t const> code, StepLayout layout, size_t operand_size) {
    std::array const slots{whole(gpr_slot(13), 3 * 8, true, true), whole(layout.spare, 16, true, true)};
    Verifier verifier(code, slots);
    verifier.m_exit = layout.exit;
    verifier.m_checked = operand_size;
    verifier.m_writable = true;
    verifier.m_host_address = operand_size != 0;
    return verifier.run();
}

void reject(std::span<uint8_t const> code, Rejection const& rejection) noexcept {
    std::string text;
    size_t from = rejection.offset > 16 ? rejection.offset - 16 : 0;
    for (size_t i = from; i < std::min(code.size(), rejection.offset + 24); ++i)
        text += fmt::format("{}{:02x}", i == rejection.offset ? " > " : i == from ? "" : " ", code[i]);
    abort_with(fmt::format("the software CPU refuses code of its own making: {} at byte {} ({})", rejection.reason,
                           rejection.offset, text));
}

} // namespace coffer::vmm::soft
