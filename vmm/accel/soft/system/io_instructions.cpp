// IN, OUT, INS and OUTS, with the permission checks of IOPL and the task state's bitmap (Intel SDM vol. 1, 18.5).
#include "vmm/accel/soft/system/handlers.hpp"
#include "vmm/accel/soft/system/segments.hpp"

namespace coffer::vmm::soft {

namespace {

bool port_allowed(Cpu& cpu, uint16_t port, size_t size) noexcept {
    unsigned const iopl = (cpu.rflags & k_iopl) >> 12;
    if (!cpu.mode.protected_mode || cpu.mode.cpl <= iopl) return true;
    unsigned const type = cpu.tr.attributes & k_segment_type;
    if (type != k_type_tss_busy && type != k_type_tss_available) return raise(cpu, Vector::GP, 0);
    uint16_t map = 0;
    if (cpu.tr.limit < 103) return raise(cpu, Vector::GP, 0);
    if (!linear_read(cpu, cpu.tr.base + 102, &map, sizeof map, Privilege::Implicit)) return false;
    uint64_t const at = uint64_t{map} + port / 8;
    if (at + 1 > cpu.tr.limit) return raise(cpu, Vector::GP, 0);
    uint16_t bits = 0;
    if (!linear_read(cpu, cpu.tr.base + at, &bits, sizeof bits, Privilege::Implicit)) return false;
    uint64_t const wanted = mask_bits(static_cast<unsigned>(size)) << (port % 8);
    return (bits & wanted) == 0 || raise(cpu, Vector::GP, 0);
}

uint64_t port_read(Cpu& cpu, uint16_t port, size_t size) noexcept {
    std::array<std::byte, 4> raw{};
    ++cpu.pio_accesses;
    cpu.io->pio_read(port, MutBytes(raw).first(size));
    return load_le_sized(Bytes(raw).first(size));
}

void port_write(Cpu& cpu, uint16_t port, uint64_t value, size_t size) noexcept {
    std::array<std::byte, 4> raw{};
    store_le_sized(MutBytes(raw).first(size), value & mask_bits(static_cast<unsigned>(size * 8)));
    ++cpu.pio_accesses;
    cpu.io->pio_write(port, Bytes(raw).first(size));
}

size_t element_size(Insn const& insn) noexcept {
    if (!(insn.decoded->opcode & 1)) return 1;
    return insn.decoded->operand_width == 16 ? 2 : 4;
}

} // namespace

Step in_out(Cpu& cpu, Insn const& insn) noexcept {
    bool const in = mnemonic(insn) == ZYDIS_MNEMONIC_IN;
    Operand const& where = operand(insn, in ? 1 : 0);
    size_t const size = element_size(insn);
    auto const port = static_cast<uint16_t>(where.type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? where.imm.value.u & 0xFF
                                                                                       : cpu.reg(Gpr::Rdx));
    if (!port_allowed(cpu, port, size)) return Step::Fault;
    if (in)
        write_gpr(cpu, Gpr::Rax, static_cast<unsigned>(size * 8), port_read(cpu, port, size));
    else
        port_write(cpu, port, cpu.reg(Gpr::Rax), size);
    // The access may have raised or lowered an interrupt line, or changed the memory map.
    return done_leave(cpu, insn);
}

Step string_io(Cpu& cpu, Insn const& insn) noexcept {
    bool const in = (insn.decoded->opcode & 0xFE) == 0x6C;
    size_t const size = element_size(insn);
    unsigned const width = insn.decoded->address_width;
    bool const repeat = repeat_prefix(insn) != 0;
    auto const port = static_cast<uint16_t>(cpu.reg(Gpr::Rdx));
    Gpr const pointer = in ? Gpr::Rdi : Gpr::Rsi;
    SegmentName segment = SegmentName::Es;
    for (size_t i = 0; !in && i < insn.decoded->operand_count; ++i) {
        if (is_memory(operand(insn, i))) segment = segment_name(operand(insn, i).mem.segment);
    }
    if (!port_allowed(cpu, port, size)) return Step::Fault;

    uint64_t count = repeat ? read_gpr(cpu, Gpr::Rcx, width) : 1;
    uint64_t const step = (cpu.rflags & k_df) ? uint64_t{0} - size : size;
    while (count > 0) {
        uint64_t linear = 0, value = 0;
        uint64_t const offset = read_gpr(cpu, pointer, width);
        if (!segment_to_linear(cpu, segment, offset, size, in ? Access::Write : Access::Read, linear))
            return Step::Fault;
        if (in) {
            // The device must not see a read whose result has no place to go.
            if (!memory_check_write(cpu, linear, size)) return Step::Fault;
            value = port_read(cpu, port, size);
            if (!memory_write(cpu, linear, &value, size)) return Step::Fault;
        } else {
            if (!memory_read(cpu, linear, &value, size)) return Step::Fault;
            port_write(cpu, port, value, size);
        }
        write_gpr(cpu, pointer, width, offset + step);
        if (repeat) write_gpr(cpu, Gpr::Rcx, width, count - 1);
        --count;
        if (count > 0 && ((cpu.rflags & k_tf) || cpu.attention.load(std::memory_order_relaxed) != 0))
            return Step::Leave;
    }
    return done_leave(cpu, insn);
}

} // namespace coffer::vmm::soft
