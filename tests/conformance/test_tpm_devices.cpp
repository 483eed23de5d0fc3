// The TPM's register interfaces, in front of a fake TPM: libtpms allows one in a process, and these checks want two
// machines at a time.
#include "devices/tpm/crb.hpp"
#include "devices/tpm/ppi.hpp"
#include "devices/tpm/tis.hpp"
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
    std::vector<Window> windows() override { return {Window::of(*crb, devices::crb::k_window_size)}; }
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

template <devices::tis::Generation generation>
struct TisSubject : Subject {
    ManualScheduler scheduler;
    FakeTpm tpm;
    FakeIrqSink irqs;
    std::unique_ptr<devices::TpmTis> tis =
        std::move(devices::TpmTis::create(tpm, scheduler, devices::IrqLine(irqs, 10), generation).value());

    devices::Device& device() override { return *tis; }
    std::vector<Window> windows() override { return {Window::of(*tis, devices::tis::k_window_size)}; }
    template <class T>
    void write(uint64_t offset, T value) {
        (void)tis->mmio_write(offset, object_bytes(value));
        tis->wait_after_write();
    }
    // Locality 1 takes the TPM from 0, 2 asks, and a command's response is half read.
    void disturb() override {
        write<uint8_t>(0x0000, 0x02);
        write<uint32_t>(0x0008, 0x8000'0087);
        write<uint8_t>(0x000C, 0x05);
        write<uint8_t>(0x1000, 0x08);
        write<uint8_t>(0x2000, 0x02);
        write<uint32_t>(0x1008, 0x8000'0083);
        write<uint8_t>(0x1018, 0x40);
        for (uint32_t i = 0; i < 10; ++i) write<uint8_t>(0x1024, i == 5 ? 10 : 0);
        write<uint8_t>(0x1018, 0x20);
        (void)tis->save(); // lets the command end
        std::array<std::byte, 4> read{};
        (void)tis->mmio_read(0x1024, read);
    }
    void settle() override { scheduler.advance(k_ns_per_ms); }
};
using PtpFifoSubject = TisSubject<devices::tis::Generation::Ptp>;
COFFER_CONFORMANCE(TpmTis, PtpFifoSubject);
using Tis13Subject = TisSubject<devices::tis::Generation::Tis13>;
COFFER_CONFORMANCE(TpmTis13, Tis13Subject);

struct PpiSubject : Subject {
    devices::TpmPpi page;

    devices::Device& device() override { return page; }
    std::vector<Window> windows() override { return {Window::of(page, devices::ppi::k_page_size)}; }
    void disturb() override { (void)page.mmio_write(0x15A, object_bytes(uint8_t{1})); }
};
COFFER_CONFORMANCE(TpmPpi, PpiSubject);

} // namespace
} // namespace coffer::tests
