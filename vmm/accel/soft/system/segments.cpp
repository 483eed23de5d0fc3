#include "vmm/accel/soft/system/segments.hpp"

namespace coffer::vmm::soft {

namespace {

bool table_bounds(Cpu const& cpu, uint16_t selector, uint64_t& base, uint64_t& limit) noexcept {
    if (selector & 4) {
        if (is_null(cpu.ldtr.selector) || !(cpu.ldtr.attributes & k_segment_present)) return false;
        base = cpu.ldtr.base;
        limit = cpu.ldtr.limit;
    } else {
        base = cpu.gdtr.base;
        limit = cpu.gdtr.limit;
    }
    return true;
}

} // namespace

Lookup find_descriptor(Cpu& cpu, uint16_t selector, Descriptor& descriptor) noexcept {
    uint64_t base = 0, limit = 0;
    uint64_t const offset = selector & 0xFFF8;
    if (!table_bounds(cpu, selector, base, limit) || offset + 7 > limit) return Lookup::OutOfTable;
    descriptor = {.linear = base + offset};
    if (!linear_read(cpu, descriptor.linear, &descriptor.low, 8, Privilege::Implicit)) return Lookup::Fault;
    return Lookup::Found;
}

bool read_descriptor(Cpu& cpu, uint16_t selector, Descriptor& descriptor, Vector vector) noexcept {
    switch (find_descriptor(cpu, selector, descriptor)) {
    case Lookup::Found: return true;
    case Lookup::OutOfTable: return raise(cpu, vector, selector_error(selector));
    case Lookup::Fault: break;
    }
    return false;
}

bool read_upper_half(Cpu& cpu, uint16_t selector, Descriptor& descriptor) noexcept {
    uint64_t base = 0, limit = 0;
    if (!table_bounds(cpu, selector, base, limit) || uint64_t{selector & 0xFFF8U} + 15 > limit) {
        return raise(cpu, Vector::GP, selector_error(selector));
    }
    if (!linear_read(cpu, descriptor.linear + 8, &descriptor.high, 8, Privilege::Implicit)) return false;
    if ((descriptor.high >> 40) & 0x1F) return raise(cpu, Vector::GP, selector_error(selector));
    return true;
}

bool set_accessed(Cpu& cpu, Descriptor& descriptor) noexcept {
    if (descriptor.low & bit(40)) return true;
    descriptor.low |= bit(40);
    auto type = static_cast<uint8_t>(descriptor.low >> 40);
    return linear_write(cpu, descriptor.linear + 5, &type, 1, Privilege::Implicit);
}

Segment make_segment(uint16_t selector, Descriptor const& descriptor) noexcept {
    return {.selector = selector,
            .attributes = descriptor.attributes(),
            .limit = descriptor.limit(),
            .base = descriptor.base()};
}

Segment null_stack_segment(uint16_t selector, unsigned cpl) noexcept {
    return {.selector = selector, .attributes = static_cast<uint16_t>(0x13 | cpl << 5), .limit = 0, .base = 0};
}

void set_segment(Cpu& cpu, SegmentName name, Segment const& segment) noexcept {
    cpu.segment(name) = segment;
    if (name == SegmentName::Fs) cpu.thread_bases[0] = segment.base;
    if (name == SegmentName::Gs) cpu.thread_bases[1] = segment.base;
}

bool prepare_stack_segment(Cpu& cpu, uint16_t selector, unsigned cpl, Vector vector, Segment& segment) noexcept {
    uint32_t const error = selector_error(selector);
    if (is_null(selector)) return raise(cpu, vector, error);
    Descriptor descriptor;
    if (!read_descriptor(cpu, selector, descriptor, vector)) return false;
    if (selector_rpl(selector) != cpl || descriptor.dpl() != cpl || !descriptor.writable_data()) {
        return raise(cpu, vector, error);
    }
    if (!descriptor.present()) return raise(cpu, Vector::SS, error);
    if (!set_accessed(cpu, descriptor)) return false;
    segment = make_segment(selector, descriptor);
    return true;
}

bool load_segment(Cpu& cpu, SegmentName name, uint16_t selector) noexcept {
    if (!cpu.mode.protected_mode) {
        Segment segment = cpu.segment(name);
        segment.selector = selector;
        segment.base = uint64_t{selector} << 4;
        set_segment(cpu, name, segment);
        return true;
    }

    if (name == SegmentName::Ss) {
        if (is_null(selector)) {
            bool const allowed = cpu.mode.code_bits == 64 && cpu.mode.cpl < 3 && selector_rpl(selector) == cpu.mode.cpl;
            if (!allowed) return raise(cpu, Vector::GP, 0);
            set_segment(cpu, name, null_stack_segment(selector, cpu.mode.cpl));
            return true;
        }
        Segment segment;
        if (!prepare_stack_segment(cpu, selector, cpu.mode.cpl, Vector::GP, segment)) return false;
        set_segment(cpu, name, segment);
        return true;
    }

    if (is_null(selector)) {
        set_segment(cpu, name, {.selector = selector});
        return true;
    }
    Descriptor descriptor;
    if (!read_descriptor(cpu, selector, descriptor)) return false;
    uint32_t const error = selector_error(selector);
    if (!descriptor.readable()) return raise(cpu, Vector::GP, error);
    bool const privileged = selector_rpl(selector) > descriptor.dpl() || cpu.mode.cpl > descriptor.dpl();
    if (!descriptor.conforming() && privileged) return raise(cpu, Vector::GP, error);
    if (!descriptor.present()) return raise(cpu, Vector::NP, error);
    if (!set_accessed(cpu, descriptor)) return false;
    set_segment(cpu, name, make_segment(selector, descriptor));
    return true;
}

void drop_inner_segments(Cpu& cpu, unsigned cpl) noexcept {
    for (SegmentName name : {SegmentName::Es, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs}) {
        Segment const& segment = cpu.segment(name);
        bool const conforming =
            (segment.attributes & (k_segment_code | k_segment_conforming)) == (k_segment_code | k_segment_conforming);
        if (is_null(segment.selector)) continue;
        if (!conforming && segment_dpl(segment.attributes) < cpl) set_segment(cpu, name, {});
    }
}

bool load_ldtr(Cpu& cpu, uint16_t selector) noexcept {
    if (is_null(selector)) {
        cpu.ldtr = {.selector = selector};
        return true;
    }
    uint32_t const error = selector_error(selector);
    if (selector & 4) return raise(cpu, Vector::GP, error);
    Descriptor descriptor;
    if (!read_descriptor(cpu, selector, descriptor)) return false;
    if (!descriptor.system() || descriptor.type() != k_type_ldt) return raise(cpu, Vector::GP, error);
    if (!descriptor.present()) return raise(cpu, Vector::NP, error);
    if (cpu.mode.long_mode && !read_upper_half(cpu, selector, descriptor)) return false;
    cpu.ldtr = make_segment(selector, descriptor);
    return true;
}

bool load_task_register(Cpu& cpu, uint16_t selector) noexcept {
    uint32_t const error = selector_error(selector);
    if (is_null(selector) || (selector & 4)) return raise(cpu, Vector::GP, error);
    Descriptor descriptor;
    if (!read_descriptor(cpu, selector, descriptor)) return false;
    bool const available =
        descriptor.system() && (descriptor.type() == k_type_tss_available ||
                                (descriptor.type() == k_type_tss16_available && !cpu.mode.long_mode));
    if (!available) return raise(cpu, Vector::GP, error);
    if (!descriptor.present()) return raise(cpu, Vector::NP, error);
    if (cpu.mode.long_mode && !read_upper_half(cpu, selector, descriptor)) return false;
    descriptor.low |= bit(41); // busy
    auto type = static_cast<uint8_t>(descriptor.low >> 40);
    if (!linear_write(cpu, descriptor.linear + 5, &type, 1, Privilege::Implicit)) return false;
    cpu.tr = make_segment(selector, descriptor);
    return true;
}

bool check_segment(Cpu& cpu, Segment const& segment, bool stack, uint64_t offset, size_t size, Access access,
                   uint32_t error, uint64_t& linear) noexcept {
    Vector const vector = stack ? Vector::SS : Vector::GP;
    uint16_t const attributes = segment.attributes;
    bool const code = attributes & k_segment_code;
    if (cpu.mode.protected_mode) {
        if (!(attributes & k_segment_present)) return raise(cpu, vector, error);
        if (access == Access::Write && (code || !(attributes & k_segment_writable))) return raise(cpu, vector, error);
        if (access == Access::Read && code && !(attributes & k_segment_readable)) return raise(cpu, vector, error);
    }
    uint64_t const last = offset + (size ? size - 1 : 0);
    if (!code && (attributes & k_segment_expand_down)) {
        uint64_t const top = (attributes & k_segment_db) ? 0xFFFFFFFF : 0xFFFF;
        if (offset <= segment.limit || last > top) return raise(cpu, vector, error);
    } else if (last > segment.limit) {
        return raise(cpu, vector, error);
    }
    linear = (segment.base + offset) & 0xFFFFFFFF;
    return true;
}

bool segment_to_linear(Cpu& cpu, SegmentName name, uint64_t offset, size_t size, Access access,
                       uint64_t& linear) noexcept {
    Segment const& segment = cpu.segment(name);
    if (cpu.mode.code_bits == 64) {
        linear = offset;
        if (name == SegmentName::Fs || name == SegmentName::Gs) linear += segment.base;
        return true;
    }
    return check_segment(cpu, segment, name == SegmentName::Ss, offset, size, access, 0, linear);
}

} // namespace coffer::vmm::soft
