#include "vmm/accel/soft/translate/code_memory.hpp"

#include <cerrno>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

#include "base/file.hpp"

namespace coffer::vmm::soft {

namespace {

constexpr size_t k_guard = 64 * 1024;

// An inaccessible range with `size` bytes in the middle for MAP_FIXED.
Result<std::byte*> reserve(size_t size) {
    void* range = mmap(nullptr, size + 2 * k_guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return errno_error(errno, "cannot reserve address space for the software CPU");
    return static_cast<std::byte*>(range) + k_guard;
}

void release(void* data, size_t size) {
    if (data) munmap(static_cast<std::byte*>(data) - k_guard, size + 2 * k_guard);
}

} // namespace

Result<CodeMemory> CodeMemory::create(size_t size) {
    CodeMemory memory;
    memory.m_size = size;
    UniqueFd fd(memfd_create("coffer-code", MFD_CLOEXEC));
    if (!fd.valid()) return errno_error(errno, "cannot create memory for translated code");
    if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
        return errno_error(errno, "cannot size memory for translated code");
    auto map = [&](int protection) -> Result<uint8_t*> {
        std::byte* range = TRY(reserve(size));
        if (mmap(range, size, protection, MAP_SHARED | MAP_FIXED, fd.get(), 0) == MAP_FAILED) {
            int error = errno;
            release(range, size);
            return make_error(ErrorCode::Unsupported,
                              "the software CPU needs executable memory, and this host refuses it (mmap: errno {}): "
                              "look for noexec rules of SELinux or a sandbox",
                              error);
        }
        return reinterpret_cast<uint8_t*>(range); // SAFETY: bytes of the mapping just made
    };
    memory.m_writable = TRY(map(PROT_READ | PROT_WRITE));
    memory.m_executable = TRY(map(PROT_READ | PROT_EXEC));
    return memory;
}

CodeMemory::CodeMemory(CodeMemory&& other) noexcept
    : m_executable(std::exchange(other.m_executable, nullptr)), m_writable(std::exchange(other.m_writable, nullptr)),
      m_size(other.m_size) {}

CodeMemory::~CodeMemory() {
    release(m_executable, m_size);
    release(m_writable, m_size);
}

Result<GuardedMemory> GuardedMemory::create(size_t size) {
    GuardedMemory memory;
    memory.m_size = size;
    std::byte* range = TRY(reserve(size));
    if (mprotect(range, size, PROT_READ | PROT_WRITE) != 0) {
        int error = errno;
        release(range, size);
        return errno_error(error, "cannot allocate the software CPU's state");
    }
    memory.m_data = range;
    return memory;
}

GuardedMemory::GuardedMemory(GuardedMemory&& other) noexcept
    : m_data(std::exchange(other.m_data, nullptr)), m_size(other.m_size) {}

GuardedMemory::~GuardedMemory() {
    release(m_data, m_size);
}

} // namespace coffer::vmm::soft
