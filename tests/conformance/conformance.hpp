// What every device has to keep to, as tests that any device can be put through.
//
// A test source describes how to build the device and how to bring it out of its reset state, and names it:
//
//     struct PitSubject : coffer::tests::Subject {
//         ManualScheduler scheduler;
//         devices::Pit pit{scheduler, ...};
//         devices::Device& device() override { return pit; }
//         std::vector<Window> windows() override { return {Window::of(pit.ports(), 4)}; }
//         void disturb() override { ... guest-like writes that change every saved field ... }
//     };
//     COFFER_CONFORMANCE(Pit, PitSubject);
//
// The checks are plain functions which give the first violation as text (empty: none), so that they are tested
// themselves (test_conformance.cpp).
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/bytes.hpp"
#include "devices/core/device.hpp"

namespace coffer::tests {

// One attached range of a device.
struct Window {
    devices::MmioDevice* mmio = nullptr;
    devices::PioDevice* pio = nullptr;
    uint64_t size = 0; // bytes

    static Window of(devices::MmioDevice& device, uint64_t size) { return {&device, nullptr, size}; }
    static Window of(devices::PioDevice& device, uint64_t size) { return {nullptr, &device, size}; }

    devices::IoStatus read(uint64_t offset, MutBytes to) const {
        return mmio ? mmio->mmio_read(offset, to) : pio->pio_read(static_cast<uint16_t>(offset), to);
    }
    devices::IoStatus write(uint64_t offset, Bytes from) const {
        return mmio ? mmio->mmio_write(offset, from) : pio->pio_write(static_cast<uint16_t>(offset), from);
    }
};

// A device with the fakes it is built on. Each one constructed is a machine of its own, and all are alike.
class Subject {
public:
    virtual ~Subject() = default;
    virtual devices::Device& device() = 0;
    virtual std::vector<Window> windows() { return {}; }
    // Moves the device out of its reset state, by the means a guest and the host have.
    virtual void disturb() = 0;
    // Called between hostile accesses: lets timers and tasks run.
    virtual void settle() {}
};

namespace detail {

constexpr size_t k_max_access = 16;

// All offsets of a window up to 32 KiB; of a larger one, both ends, the neighbourhood of 4 KiB bounds and a sample.
inline std::vector<uint64_t> hostile_offsets(uint64_t size) {
    constexpr uint64_t k_all = 0x8000;
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < size && i < k_all; ++i) offsets.push_back(i);
    for (uint64_t page = k_all; page < size; page += 0x1000 * ((size >> 22) + 1))
        for (uint64_t i = page - k_max_access; i < page + k_max_access && i < size; ++i) offsets.push_back(i);
    for (uint64_t i = size > k_all + k_max_access ? size - k_max_access : size; i < size; ++i) offsets.push_back(i);
    return offsets;
}

// One read: the status is a known one, no byte outside of the span changes, and Ok means that all of it was filled.
inline std::string checked_read(Window const& window, uint64_t offset, size_t size) {
    using devices::IoStatus;
    std::array<std::array<std::byte, k_max_access + 16>, 2> buffers;
    std::array<IoStatus, 2> status{};
    for (size_t round = 0; round < 2; ++round) {
        buffers[round].fill(round == 0 ? std::byte{0xA5} : std::byte{0x5A});
        status[round] = window.read(offset, MutBytes(buffers[round]).subspan(8, size));
        if (status[round] > IoStatus::Unaligned)
            return fmt::format("read of {} at {:#x}: unknown status {}", size, offset, static_cast<int>(status[round]));
        for (size_t i = 0; i < buffers[round].size(); ++i)
            if ((i < 8 || i >= 8 + size) && buffers[round][i] != (round == 0 ? std::byte{0xA5} : std::byte{0x5A}))
                return fmt::format("read of {} at {:#x} wrote outside of its buffer", size, offset);
    }
    if (status[0] == IoStatus::Ok && status[1] == IoStatus::Ok)
        for (size_t i = 8; i < 8 + size; ++i)
            if (buffers[0][i] == std::byte{0xA5} && buffers[1][i] == std::byte{0x5A})
                return fmt::format("read of {} at {:#x} is Ok and left byte {} unset", size, offset, i - 8);
    return {};
}

inline std::string saved(Subject& subject, ByteVector& to) {
    auto state = subject.device().save();
    if (!state) return fmt::format("save failed: {}", state.error().message());
    to = std::move(*state);
    return {};
}

#define COFFER_CONFORM(expression)                                                                                     \
    do {                                                                                                               \
        if (std::string violation = (expression); !violation.empty()) return violation;                                \
    } while (false)

// Whether a restore of `state` is refused without a trace, or leaves the device consistent.
inline std::string restore_or_refuse(Subject& subject, Bytes state, std::string_view what) {
    // From a state that differs from the one offered, so that a restore which stops half way shows.
    subject.device().reset(devices::ResetKind::Cold);
    ByteVector before;
    COFFER_CONFORM(saved(subject, before));
    auto restored = subject.device().restore(state);
    ByteVector after;
    COFFER_CONFORM(saved(subject, after));
    if (!restored) {
        if (restored.error().message().empty()) return fmt::format("{}: refused without a message", what);
        return before == after ? std::string() : fmt::format("{}: refused, and the device changed", what);
    }
    if (auto again = subject.device().restore(after); !again)
        return fmt::format("{}: accepted, and what was then saved is refused: {}", what, again.error().message());
    ByteVector third;
    COFFER_CONFORM(saved(subject, third));
    if (third != after) return fmt::format("{}: accepted, and save, restore, save differ", what);
    // Whatever was accepted must bear the guest's accesses and time.
    for (auto const& window : subject.windows())
        for (uint64_t offset = 0; offset < window.size && offset < 64; ++offset)
            COFFER_CONFORM(checked_read(window, offset, window.size - offset < 4 ? 1 : 4));
    subject.settle();
    return {};
}

} // namespace detail

// A cold reset gives the same state whatever was before, and disturb() does change the state.
template <class S>
std::string check_reset() {
    S fresh;
    ByteVector pristine;
    fresh.device().reset(devices::ResetKind::Cold);
    COFFER_CONFORM(detail::saved(fresh, pristine));
    S used;
    used.device().reset(devices::ResetKind::Cold);
    used.disturb();
    ByteVector disturbed;
    COFFER_CONFORM(detail::saved(used, disturbed));
    if (disturbed == pristine) return "disturb() changed nothing that is saved";
    used.device().reset(devices::ResetKind::Warm);
    used.disturb();
    used.device().reset(devices::ResetKind::Cold);
    ByteVector again;
    COFFER_CONFORM(detail::saved(used, again));
    if (again != pristine) return "state after a cold reset depends on what was before";
    if (used.device().unit_name().empty()) return "the unit has no name";
    return {};
}

// What was saved comes back, in the same object and in a new one.
template <class S>
std::string check_save_restore() {
    S subject;
    subject.device().reset(devices::ResetKind::Cold);
    subject.disturb();
    ByteVector state;
    COFFER_CONFORM(detail::saved(subject, state));
    S other;
    other.device().reset(devices::ResetKind::Cold);
    subject.device().reset(devices::ResetKind::Cold);
    for (S* target : {&subject, &other}) {
        if (auto restored = target->device().restore(state); !restored)
            return fmt::format("restore refused what was saved: {}", restored.error().message());
        ByteVector after;
        COFFER_CONFORM(detail::saved(*target, after));
        if (after != state) return "restored state differs from what was saved";
    }
    return {};
}

// Every truncation of a state, and every changed byte, is refused without a trace or leaves a consistent device. States
// beyond some KiB are sampled.
template <class S>
std::string check_malformed_state() {
    S source;
    source.device().reset(devices::ResetKind::Cold);
    source.disturb();
    ByteVector state;
    COFFER_CONFORM(detail::saved(source, state));
    size_t step = state.size() / 2048 + 1;
    S target;
    for (size_t length = 0; length < state.size(); length += step) {
        ByteVector cut(state.begin(), state.begin() + static_cast<std::ptrdiff_t>(length));
        COFFER_CONFORM(detail::restore_or_refuse(target, cut, fmt::format("state cut to {} bytes", length)));
    }
    for (size_t at = 0; at < state.size(); at += step)
        for (unsigned flip : {0x01U, 0x80U, 0xFFU}) {
            ByteVector changed = state;
            changed[at] ^= static_cast<std::byte>(flip);
            COFFER_CONFORM(
                detail::restore_or_refuse(target, changed, fmt::format("state with byte {} ^ {:#x}", at, flip)));
        }
    ByteVector longer = state;
    longer.push_back(std::byte{0});
    COFFER_CONFORM(detail::restore_or_refuse(target, longer, "state with a byte more"));
    return {};
}

// Every size from 0 to 16 at every offset, read and written with several patterns; the device lives, and can be saved,
// restored and reset.
template <class S>
std::string check_hostile_accesses() {
    S subject;
    subject.device().reset(devices::ResetKind::Cold);
    std::array<std::byte, detail::k_max_access> pattern{};
    for (auto const& window : subject.windows())
        for (uint64_t offset : detail::hostile_offsets(window.size))
            for (size_t size = 0; size <= detail::k_max_access && size <= window.size - offset; ++size) {
                COFFER_CONFORM(detail::checked_read(window, offset, size));
                for (unsigned fill : {0x00U, 0xFFU, 0xA6U, static_cast<unsigned>(offset * 7 + size)}) {
                    pattern.fill(static_cast<std::byte>(fill));
                    if (window.write(offset, Bytes(pattern).first(size)) > devices::IoStatus::Unaligned)
                        return fmt::format("write of {} at {:#x}: unknown status", size, offset);
                }
                if (offset % 64 == 0) subject.settle();
            }
    ByteVector state;
    COFFER_CONFORM(detail::saved(subject, state));
    if (auto restored = subject.device().restore(state); !restored)
        return fmt::format("restore refused what was saved after hostile accesses: {}", restored.error().message());
    subject.device().reset(devices::ResetKind::Cold);
    ByteVector reset_state;
    COFFER_CONFORM(detail::saved(subject, reset_state));
    S fresh;
    fresh.device().reset(devices::ResetKind::Cold);
    ByteVector pristine;
    COFFER_CONFORM(detail::saved(fresh, pristine));
    return reset_state == pristine ? std::string() : "hostile accesses outlive a cold reset";
}

#undef COFFER_CONFORM

template <class S>
class Conformance : public testing::Test {};

TYPED_TEST_SUITE_P(Conformance);
TYPED_TEST_P(Conformance, Reset) {
    EXPECT_EQ(check_reset<TypeParam>(), "");
}
TYPED_TEST_P(Conformance, SaveRestore) {
    EXPECT_EQ(check_save_restore<TypeParam>(), "");
}
TYPED_TEST_P(Conformance, MalformedState) {
    EXPECT_EQ(check_malformed_state<TypeParam>(), "");
}
TYPED_TEST_P(Conformance, HostileAccesses) {
    EXPECT_EQ(check_hostile_accesses<TypeParam>(), "");
}
REGISTER_TYPED_TEST_SUITE_P(Conformance, Reset, SaveRestore, MalformedState, HostileAccesses);

// Puts `SubjectType` through all checks, under the name `name`.
#define COFFER_CONFORMANCE(name, SubjectType)                                                                          \
    INSTANTIATE_TYPED_TEST_SUITE_P(name, Conformance, ::testing::Types<SubjectType>)

} // namespace coffer::tests
