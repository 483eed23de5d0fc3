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

// Memory operands must lie in host memory. Nothing where the host raised an exception. Not thread-safe; the code must
// be plain instructions only, and must not transfer control.
class NativeOracle {
public:
    NativeOracle();
    ~NativeOracle();
    NativeOracle(NativeOracle const&) = delete;
    NativeOracle& operator=(NativeOracle const&) = delete;
    bool run(std::span<uint8_t const> code, OracleState& state);

private:
    uint8_t* m_page;
    void* m_signal_stack;
};

} // namespace coffer::tests
