#include "vmm/accel/kvm/kvm_api.hpp"

#include <array>
#include <cerrno>
#include <fcntl.h>
#include <sys/ioctl.h>

namespace coffer::vmm::kvm {

namespace {

struct RequiredExtension {
    unsigned number;
    std::string_view name;
};

// All of these are in Linux 4.13 and later.
constexpr std::array k_required{
    RequiredExtension{KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    RequiredExtension{KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    RequiredExtension{KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"},
    RequiredExtension{KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR"},
    RequiredExtension{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    RequiredExtension{KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
    RequiredExtension{KVM_CAP_DESTROY_MEMORY_REGION_WORKS, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"},
    RequiredExtension{KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
    RequiredExtension{KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
    RequiredExtension{KVM_CAP_PIT2, "KVM_CAP_PIT2"},
    RequiredExtension{KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"},
    RequiredExtension{KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
    RequiredExtension{KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    RequiredExtension{KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
    RequiredExtension{KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
    RequiredExtension{KVM_CAP_XCRS, "KVM_CAP_XCRS"},
    RequiredExtension{KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
    RequiredExtension{KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM"},
    RequiredExtension{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
};

} // namespace

int Handle::try_call(Request request, void const* argument) const noexcept {
    for (;;) {
        // SAFETY: each request is paired with its argument's type at the call site, as api.rst lists them.
        int result = ::ioctl(m_fd.get(), request.number, argument);
        if (result >= 0) return result;
        if (errno != EINTR) return -errno;
    }
}

int Handle::try_call(Request request, unsigned long argument) const noexcept {
    return try_call(request, reinterpret_cast<void const*>(argument)); // SAFETY: an integer argument, not followed
}

Result<int> Handle::call_word(Request request, void const* argument) const {
    int result = try_call(request, argument);
    if (result < 0) return errno_error(-result, fmt::format("{} failed on the {}", request.name, m_name));
    return result;
}

Result<System> System::open(std::string const& path) {
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!fd.valid()) {
        int reason = errno;
        if (reason == ENOENT || reason == ENODEV || reason == ENXIO)
            return make_error(ErrorCode::Unsupported,
                              "{} is absent: this host offers no KVM (enable virtualization in its firmware set-up and "
                              "load kvm_intel or kvm_amd), or use --accel soft",
                              path);
        if (reason == EACCES || reason == EPERM)
            return make_error(ErrorCode::Permission,
                              "no permission to open {}: add this user to the group that owns it (mostly 'kvm') and "
                              "log in again, or use --accel soft",
                              path);
        return errno_error(reason, fmt::format("cannot open {}", path));
    }
    System system(Handle(std::move(fd), "KVM system"));
    int version = system.m_handle.try_call(COFFER_KVM(KVM_GET_API_VERSION), 0UL);
    if (version < 0)
        return make_error(ErrorCode::Unsupported, "{} does not answer as KVM does: is it the right device?", path);
    if (version != KVM_API_VERSION)
        return make_error(ErrorCode::Unsupported, "{} has KVM API version {}; {} is needed: update the host's kernel",
                          path, version, KVM_API_VERSION);
    for (auto const& required : k_required) {
        if (system.extension(required.number) <= 0)
            return make_error(ErrorCode::Unsupported,
                              "the host's KVM lacks {}: update its kernel (4.13 is the oldest that can do), or use "
                              "--accel soft",
                              required.name);
    }
    return system;
}

int System::extension(unsigned capability) const noexcept {
    int result = m_handle.try_call(COFFER_KVM(KVM_CHECK_EXTENSION), static_cast<unsigned long>(capability));
    return result < 0 ? 0 : result;
}

Result<Handle> System::create_vm() const {
    int fd = TRY(m_handle.call(COFFER_KVM(KVM_CREATE_VM), 0UL));
    return Handle(UniqueFd(fd), "VM");
}

Result<size_t> System::run_area_size() const {
    int size = TRY(m_handle.call(COFFER_KVM(KVM_GET_VCPU_MMAP_SIZE), 0UL));
    if (static_cast<size_t>(size) < sizeof(kvm_run))
        return make_error(ErrorCode::Unsupported, "the host's KVM shares only {} bytes of vCPU state", size);
    return static_cast<size_t>(size);
}

Result<std::vector<kvm_cpuid_entry2>> System::supported_cpuid() const {
    // KVM has no call for the count: grow until it stops answering E2BIG (4.46).
    for (uint32_t count = 128; count <= 4096; count *= 2) {
        Table<kvm_cpuid2, kvm_cpuid_entry2> table(count);
        table.header()->nent = count;
        int result = m_handle.try_call(COFFER_KVM(KVM_GET_SUPPORTED_CPUID), table.header());
        if (result == -E2BIG) continue;
        if (result < 0) return errno_error(-result, "KVM_GET_SUPPORTED_CPUID failed");
        return std::vector(table.entries(), table.entries() + table.header()->nent);
    }
    return make_error(ErrorCode::Unsupported, "the host's KVM reports more than 4096 CPUID leaves");
}

Result<std::vector<uint32_t>> System::msr_list(Request request) const {
    Table<kvm_msr_list, uint32_t> probe(0);
    int result = m_handle.try_call(request, probe.header()); // E2BIG fills in the count
    if (result < 0 && result != -E2BIG) return errno_error(-result, fmt::format("{} failed", request.name));
    Table<kvm_msr_list, uint32_t> table(probe.header()->nmsrs);
    table.header()->nmsrs = probe.header()->nmsrs;
    TRY(m_handle.call(request, table.header()));
    return std::vector(table.entries(), table.entries() + table.header()->nmsrs);
}

} // namespace coffer::vmm::kvm
