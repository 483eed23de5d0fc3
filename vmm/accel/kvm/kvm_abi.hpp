// <linux/kvm.h> as C lays it out.
#pragma once

#include <linux/stddef.h>
// Linux 6.1's headers put an empty struct before each flexible array; in C++ that has a size, which changes the layout
// and, with it, the number of every request that carries one.
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(type, name) type name[]

#include <linux/kvm.h>

static_assert(sizeof(kvm_cpuid2) == 8 && sizeof(kvm_msrs) == 8 && sizeof(kvm_msr_list) == 4 &&
              sizeof(kvm_irq_routing) == 8);
