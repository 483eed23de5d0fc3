// A virtio console and a guest that does anything to its registers, rings and control messages; pci_fuzz.hpp has the
// input's form. What the guest is sent never is more than it has room for.
#include "base/log.hpp"
#include "devices/virtio/virtio_console.hpp"
#include "tests/fuzz/targets/pci_fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    using namespace coffer;
    using namespace coffer::tests;
    log::set_level(log::Level::Error);
    // Counts what comes and keeps none of it.
    struct Counter final : devices::ByteSink {
        void write(Bytes bytes) noexcept override { total += bytes.size(); }
        uint64_t total = 0;
    } sink;
    FakeMemory memory(PciFuzzer::k_memory);
    ManualScheduler scheduler;
    devices::VirtioConsole console(
        {.port_name = "org.coffer.agent.0", .sink = sink, .on_guest_open = {}, .on_writable = {}}, memory, scheduler);
    PciFuzzer fuzzer(console, console, devices::VirtioPci::k_region_size, memory, [&] {
        ByteVector text(3000, std::byte{'x'});
        size_t sent = console.send(text);
        COFFER_ASSERT(sent <= text.size());
        // Once: a driver that keeps its ring full would have this go on for ever, and the device lock is let go
        // between.
        scheduler.run_tasks_once();
    });
    fuzzer.run(std::as_bytes(std::span(data, size)));
    return 0;
}
