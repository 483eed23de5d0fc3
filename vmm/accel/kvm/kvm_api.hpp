// Descriptors of /dev/kvm and typed calls on them (Linux Documentation/virt/kvm/api.rst, "api.rst" below).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.hpp"
#include "base/file.hpp"
#include "base/result.hpp"
#include "vmm/accel/kvm/kvm_abi.hpp"

namespace coffer::vmm::kvm {

struct Request {
    unsigned long number;
    std::string_view name;
};
#define COFFER_KVM(name) (::coffer::vmm::kvm::Request{name, #name})

// The system, one VM or one vCPU. Calls are thread-safe as far as KVM's are: those on a vCPU wait for its KVM_RUN.
class Handle {
public:
    Handle() = default;
    Handle(UniqueFd fd, std::string name) : m_fd(std::move(fd)), m_name(std::move(name)) {}

    int fd() const noexcept { return m_fd.get(); }
    // What ioctl(2) returns; retries EINTR. The error names the request and the object.
    Result<int> call(Request request, void const* argument) const { return call_word(request, argument); }
    Result<int> call(Request request, unsigned long argument) const {
        return call_word(request, reinterpret_cast<void const*>(argument)); // SAFETY: an integer argument, not followed
    }
    Result<int> call(Request request) const { return call_word(request, nullptr); }
    // The same without a message: 0 and above, or -errno.
    int try_call(Request request, void const* argument) const noexcept;
    int try_call(Request request, unsigned long argument) const noexcept;

private:
    Result<int> call_word(Request request, void const* argument) const;

    UniqueFd m_fd;
    std::string m_name;
};

// KVM's structures that end in an array, held in 8-byte units.
template <class Header, class Entry>
class Table {
public:
    explicit Table(size_t count) : m_words((sizeof(Header) + count * sizeof(Entry) + 7) / 8), m_count(count) {}
    // SAFETY: the buffer is 8-aligned, large enough for the header, and zero-initialised.
    Header* header() noexcept { return reinterpret_cast<Header*>(m_words.data()); }
    Header const* header() const noexcept { return reinterpret_cast<Header const*>(m_words.data()); }
    // SAFETY: the entries follow the header in the same buffer; m_count of them fit.
    Entry* entries() noexcept { return reinterpret_cast<Entry*>(header() + 1); }
    Entry const* entries() const noexcept { return reinterpret_cast<Entry const*>(header() + 1); }
    size_t capacity() const noexcept { return m_count; }

private:
    std::vector<uint64_t> m_words;
    size_t m_count;
};

// /dev/kvm, checked to be complete enough for this program.
class System {
public:
    // Unsupported or Permission with a line that says what is missing and what to do.
    static Result<System> open(std::string const& path = "/dev/kvm");

    Handle const& handle() const noexcept { return m_handle; }
    // KVM_CHECK_EXTENSION: 0 is absent.
    int extension(unsigned capability) const noexcept;
    Result<Handle> create_vm() const;
    // Bytes of each vCPU's shared kvm_run area.
    Result<size_t> run_area_size() const;
    Result<std::vector<kvm_cpuid_entry2>> supported_cpuid() const;
    // Indices KVM saves, and those that describe the host's features.
    Result<std::vector<uint32_t>> msr_indices() const { return msr_list(COFFER_KVM(KVM_GET_MSR_INDEX_LIST)); }
    Result<std::vector<uint32_t>> feature_msr_indices() const {
        return msr_list(COFFER_KVM(KVM_GET_MSR_FEATURE_INDEX_LIST));
    }

private:
    explicit System(Handle handle) : m_handle(std::move(handle)) {}
    Result<std::vector<uint32_t>> msr_list(Request request) const;

    Handle m_handle;
};

} // namespace coffer::vmm::kvm
