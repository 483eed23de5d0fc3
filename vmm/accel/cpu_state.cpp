#include "vmm/accel/cpu_state.hpp"

namespace coffer::vmm {

CpuState reset_cpu_state() {
    CpuState state;
    for (auto& segment : state.segments) segment = {.selector = 0, .attributes = 0x93, .limit = 0xFFFF, .base = 0};
    state.segment(SegmentName::Cs) = {.selector = 0xF000, .attributes = 0x9B, .limit = 0xFFFF, .base = 0xFFFF0000};
    state.ldtr = {.selector = 0, .attributes = 0x82, .limit = 0xFFFF, .base = 0};
    state.tr = {.selector = 0, .attributes = 0x8B, .limit = 0xFFFF, .base = 0};
    state.gdtr = {.base = 0, .limit = 0xFFFF};
    state.idtr = {.base = 0, .limit = 0xFFFF};
    state.fxsave[0] = 0x7F;  // FCW 0x037F
    state.fxsave[1] = 0x03;
    state.fxsave[24] = 0x80;  // MXCSR 0x1F80
    state.fxsave[25] = 0x1F;
    return state;
}

}  // namespace coffer::vmm
