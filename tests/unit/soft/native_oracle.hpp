// The host CPU itself as the judge: runs untouched guest instructions with all sixteen registers as given.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

namespace coffer::tests {

struct OracleState {
    std::array<uint64_t, 16> gpr{};
    uint64_t rflags = 2;
    alignas(16) std::array<uint8_t, 512> fxsave{};
};

struct OracleFault {
    unsigned vector;
    size_t offset; // of the instruction within the code
};

// Memory operands must lie in host memory; RSP, too, where the code uses the stack. The code is plain and stack
// instructions and jumps within it. Not thread-safe, one object at a time.
class NativeOracle {
public:
    // `gs_base`: of the thread, for the life of the object (the C library uses FS alone).
    explicit NativeOracle(uint64_t gs_base = 0);
    ~NativeOracle();
    NativeOracle(NativeOracle const&) = delete;
    NativeOracle& operator=(NativeOracle const&) = delete;
    // Where run() will put the code; below 2 GiB.
    uint64_t code_address() const;
    // The fault is the host's exception, with the state that it met.
    std::optional<OracleFault> run(std::span<uint8_t const> code, OracleState& state);

private:
    uint8_t* m_page;
    size_t m_prologue = 0;
    void* m_signal_stack;
};

} // namespace coffer::tests
