// Memory for emitted code, mapped twice: executable and not writable, and writable and not executable (W^X). Both
// mappings have guard pages around them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.hpp"

namespace coffer::vmm::soft {

class CodeMemory {
public:
    // `size` is a multiple of the page size. Fails with Unsupported where the host forbids executable mappings.
    static Result<CodeMemory> create(size_t size);
    CodeMemory(CodeMemory&& other) noexcept;
    CodeMemory& operator=(CodeMemory&&) = delete;
    ~CodeMemory();

    uint8_t const* executable() const noexcept { return m_executable; }
    uint8_t* writable() const noexcept { return m_writable; }
    size_t size() const noexcept { return m_size; }
    bool contains(uintptr_t address) const noexcept {
        return address - reinterpret_cast<uintptr_t>(m_executable) < m_size; // SAFETY: compared, not followed
    }

private:
    CodeMemory() = default;

    uint8_t* m_executable = nullptr;
    uint8_t* m_writable = nullptr;
    size_t m_size = 0;
};

// A mapping of zeroed memory with guard pages around it: the state behind the state pointer and the stack below it.
class GuardedMemory {
public:
    static Result<GuardedMemory> create(size_t size);
    GuardedMemory(GuardedMemory&& other) noexcept;
    GuardedMemory& operator=(GuardedMemory&&) = delete;
    ~GuardedMemory();

    std::byte* data() const noexcept { return m_data; }
    size_t size() const noexcept { return m_size; }

private:
    GuardedMemory() = default;

    std::byte* m_data = nullptr;
    size_t m_size = 0;
};

} // namespace coffer::vmm::soft
