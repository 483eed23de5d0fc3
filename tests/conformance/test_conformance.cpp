// The checks of conformance.hpp find what they are there to find: a sound device passes, and each planted fault fails.
#include "tests/conformance/conformance.hpp"

#include "base/tagged.hpp"

namespace coffer::tests {
namespace {

enum class Fault { None, StickyReset, ForgetsField, HalfRestore, LeavesReadUnset, WritesPastRead };

struct ToyState {
    uint8_t first = 0;
    uint8_t second = 0;
    template <class V>
    void fields(V& v) {
        v.required(1, first);
        v.required(2, second);
    }
};

// Two byte registers; `second` must not be 0xFF in saved state.
template <Fault fault>
class Toy final : public devices::Device, public devices::PioDevice {
public:
    std::string_view unit_name() const noexcept override { return "toy"; }
    void reset(devices::ResetKind) noexcept override {
        m_state.first = 0;
        if (fault != Fault::StickyReset) m_state.second = 0;
    }
    Result<ByteVector> save() const override { return encode_fields(m_state); }
    Result<void> restore(Bytes bytes) override {
        ToyState state;
        TRY(decode_fields(bytes, state));
        if (fault == Fault::HalfRestore) m_state.first = state.first;
        if (state.second == 0xFF) return Error(ErrorCode::Corrupt, "second is out of range");
        if (fault == Fault::ForgetsField) state.second = 0;
        m_state = state;
        return {};
    }
    devices::IoStatus pio_read(uint16_t offset, MutBytes to) override {
        if (to.size() != 1) return devices::IoStatus::BadSize;
        if (fault == Fault::LeavesReadUnset) return devices::IoStatus::Ok;
        to[0] = static_cast<std::byte>(offset == 0 ? m_state.first : m_state.second);
        if (fault == Fault::WritesPastRead) to.data()[1] = std::byte{1};
        return devices::IoStatus::Ok;
    }
    devices::IoStatus pio_write(uint16_t offset, Bytes from) override {
        if (from.size() != 1) return devices::IoStatus::BadSize;
        auto value = static_cast<uint8_t>(static_cast<uint8_t>(from[0]) & 0x7F);
        (offset == 0 ? m_state.first : m_state.second) = value;
        return devices::IoStatus::Ok;
    }

private:
    ToyState m_state;
};

template <Fault fault>
struct ToySubject : Subject {
    Toy<fault> toy;
    devices::Device& device() override { return toy; }
    std::vector<Window> windows() override { return {Window::of(toy, 2)}; }
    void disturb() override {
        for (uint16_t offset = 0; offset < 2; ++offset) (void)toy.pio_write(offset, Bytes(std::array{std::byte{0x7F}}));
    }
};

COFFER_CONFORMANCE(Toy, ToySubject<Fault::None>);

TEST(ConformanceChecks, FindWhatAResetForgets) {
    EXPECT_NE(check_reset<ToySubject<Fault::StickyReset>>(), "");
}
TEST(ConformanceChecks, FindAFieldThatIsNotRestored) {
    EXPECT_NE(check_save_restore<ToySubject<Fault::ForgetsField>>(), "");
}
TEST(ConformanceChecks, FindARestoreThatStopsHalfWay) {
    EXPECT_NE(check_malformed_state<ToySubject<Fault::HalfRestore>>(), "");
}
TEST(ConformanceChecks, FindAReadThatIsNotAnswered) {
    EXPECT_NE(check_hostile_accesses<ToySubject<Fault::LeavesReadUnset>>(), "");
}
TEST(ConformanceChecks, FindAReadPastItsBuffer) {
    EXPECT_NE(check_hostile_accesses<ToySubject<Fault::WritesPastRead>>(), "");
}

} // namespace
} // namespace coffer::tests
