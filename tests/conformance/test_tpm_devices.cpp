// The TPM's register interfaces, in front of a fake TPM: libtpms allows one in a process, and these checks want two
// machines at a time.
#include "devices/tpm/crb.hpp"
#include "tests/conformance/conformance.hpp"
#include "tests/support/fake_tpm.hpp"
#include "tests/support/fakes.hpp"

namespace coffer::tests {
namespace {

struct CrbSubject : Subject {
    ManualScheduler scheduler;
    FakeTpm tpm;
    std::unique_ptr<devices::TpmCrb> crb =
        std::move(devices::TpmCrb::create(tpm, scheduler, GuestPhysAddr(0xFED4'0000)).value());

    devices::Device& device() override { return *crb; }
    std::vector<Window> windows() override { return {Window::of(*crb, devices::crb::k_block_size)}; }
    void write(uint64_t offset, uint32_t value) {
        (void)crb->mmio_write(offset, object_bytes(value));
        crb->wait_after_write();
    }
    // A whole command, then a cancel out of season.
    void disturb() override {
        write(0x08, 1);
        write(0x40, 1);
        for (uint32_t i = 0; i < devices::crb::k_buffer_size; i += 4) write(0x80 + i, 0x0102'0304 * i);
        write(0x4C, 1);
        (void)crb->save(); // lets the command end
        write(0x48, 1);
    }
    void settle() override { scheduler.advance(k_ns_per_ms); }
};
COFFER_CONFORMANCE(TpmCrb, CrbSubject);

} // namespace
} // namespace coffer::tests
