#include "vmm/accel/soft/translate/interpreter.hpp"

#include <algorithm>
#include <cstring>

namespace coffer::vmm::soft {

namespace {

constexpr uint64_t k_cr0_mp = 1 << 1, k_cr0_em = 1 << 2, k_cr0_ts = 1 << 3;
constexpr uint64_t k_cr4_osfxsr = 1 << 9;

Step raise(Cpu& cpu, Vector vector) {
    cpu.fault = Fault{.vector = vector};
    if (vector == Vector::GP || vector == Vector::AC) cpu.fault.has_error = true;
    return Step::Fault;
}

// The linear address of an access at `offset`. False: Cpu::fault.
bool to_linear(Cpu& cpu, SegmentName segment, uint64_t offset, size_t size, Access access, uint64_t& linear) {
    if (cpu.mode.code_bits != 64) return segment_to_linear(cpu, segment, offset, size, access, linear);
    linear = offset;
    if (segment == SegmentName::Fs) linear += cpu.thread_bases[0];
    if (segment == SegmentName::Gs) linear += cpu.thread_bases[1];
    return true;
}

} // namespace

std::optional<Vector> fpu_fault(uint64_t cr0, uint64_t cr4, FpuUse use) noexcept {
    switch (use) {
    case FpuUse::None: return std::nullopt;
    case FpuUse::X87: return cr0 & (k_cr0_em | k_cr0_ts) ? std::optional(Vector::NM) : std::nullopt;
    case FpuUse::Wait: return (cr0 & k_cr0_mp) && (cr0 & k_cr0_ts) ? std::optional(Vector::NM) : std::nullopt;
    case FpuUse::Mmx:
        if (cr0 & k_cr0_em) return Vector::UD;
        return cr0 & k_cr0_ts ? std::optional(Vector::NM) : std::nullopt;
    case FpuUse::Sse:
        if ((cr0 & k_cr0_em) || !(cr4 & k_cr4_osfxsr)) return Vector::UD;
        return cr0 & k_cr0_ts ? std::optional(Vector::NM) : std::nullopt;
    }
    return std::nullopt;
}

bool Interpreter::fetch(Cpu& cpu, Decoded& to) noexcept {
    std::array<uint8_t, 15> bytes{};
    size_t have = 0;
    Segment const& cs = cpu.segment(SegmentName::Cs);
    bool flat = cpu.mode.code_bits == 64;
    // The bytes of the first page, and those of the second only where the instruction needs them.
    while (have < bytes.size()) {
        uint64_t offset = cpu.rip + have;
        if (!flat) {
            if (offset > cs.limit) {
                raise(cpu, Vector::GP);
                return false;
            }
        }
        uint64_t linear = flat ? offset : (cs.base + offset) & 0xFFFF'FFFF;
        size_t count = std::min<size_t>(bytes.size() - have, k_page_size - (linear & (k_page_size - 1)));
        if (!flat) count = static_cast<size_t>(std::min<uint64_t>(count, uint64_t{cs.limit} - offset + 1));
        FetchPage fetched;
        if (!fetch_translate(cpu, linear, fetched)) return false;
        uint64_t gpa = fetched.gpa;
        bool writable;
        std::byte* page = cpu.memory->host_page(gpa & k_page_mask, writable);
        if (page)
            std::memcpy(bytes.data() + have, page + (gpa & (k_page_size - 1)), count);
        else
            std::memset(bytes.data() + have, 0xFF, count); // no code in MMIO: all ones is #UD
        have += count;
        switch (decode(cpu.mode.code_bits, std::span(bytes).first(have), to)) {
        case DecodeStatus::Ok: return true;
        case DecodeStatus::NeedMore: break;
        case DecodeStatus::TooLong: raise(cpu, Vector::GP); return false;
        case DecodeStatus::Undefined: raise(cpu, Vector::UD); return false;
        }
    }
    raise(cpu, Vector::GP);
    return false;
}

Step Interpreter::step(Cpu& cpu) noexcept {
    Decoded d;
    if (!fetch(cpu, d)) return Step::Fault;
    return execute(cpu, d);
}

Step Interpreter::execute(Cpu& cpu, Decoded const& d) noexcept {
    switch (d.cls) {
    case InsnClass::Plain: return execute_plain(cpu, d);
    case InsnClass::Branch:
    case InsnClass::Stack:
    case InsnClass::System: return execute_system(cpu, d.view());
    case InsnClass::Undefined: break;
    }
    return raise(cpu, Vector::UD);
}

Step Interpreter::execute_plain(Cpu& cpu, Decoded const& d) noexcept {
    if (auto vector = fpu_fault(cpu.cr0, cpu.cr4, d.fpu)) return raise(cpu, *vector);
    uint64_t next = cpu.rip + d.length();
    if (cpu.mode.code_bits != 64) next &= 0xFFFF'FFFF;
    std::array<uint8_t, k_max_memory_operand> buffer;
    std::span<uint8_t> operand;
    uint64_t linear = 0;
    if (d.memory.present) {
        operand = std::span(buffer).first(d.memory.size);
        uint64_t offset = effective_offset(d, cpu.gpr, next);
        Access access = d.memory.write ? Access::Write : Access::Read;
        if (!to_linear(cpu, d.memory.segment, offset, operand.size(), access, linear)) return Step::Fault;
        if (d.memory.write && d.memory.read && !memory_check_write(cpu, linear, operand.size())) return Step::Fault;
        // memory_read() and _write() take up to 64 bytes; FNSAVE's image is longer.
        for (size_t done = 0; d.memory.read && done < operand.size(); done += 64) {
            size_t count = std::min<size_t>(64, operand.size() - done);
            if (!memory_read(cpu, linear + done, operand.data() + done, count)) return Step::Fault;
        }
    }
    if (auto vector = m_native.run(d, next, linear, cpu.gpr, cpu.rflags, cpu.fxsave, operand))
        return raise(cpu, *vector);
    if (d.memory.write) {
        bool several = operand.size() > 64;
        if (several && !memory_check_write(cpu, linear, 64)) return Step::Fault;
        if (several && !memory_check_write(cpu, linear + 64, operand.size() - 64)) return Step::Fault;
        for (size_t done = 0; done < operand.size(); done += 64) {
            size_t count = std::min<size_t>(64, operand.size() - done);
            if (!memory_write(cpu, linear + done, operand.data() + done, count)) return Step::Fault;
        }
    }
    cpu.rip = cpu.mode.code_bits == 16 ? next & 0xFFFF : next;
    return Step::Next;
}

} // namespace coffer::vmm::soft
