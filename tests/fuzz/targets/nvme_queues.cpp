// An NVMe controller and a guest that does anything to its registers and queues; pci_fuzz.hpp has the input's form.
#include "base/log.hpp"
#include "devices/storage/nvme.hpp"
#include "tests/fuzz/targets/pci_fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    using namespace coffer;
    using namespace coffer::tests;
    log::set_level(log::Level::Error);
    FakeMemory memory(PciFuzzer::k_memory);
    ManualScheduler scheduler;
    FakeBlock disk(64 * 1024);
    devices::NvmeController nvme({.unit = "nvme.0", .serial = "FUZZ", .nguid = {std::byte{1}}}, disk, memory,
                                 scheduler);
    PciFuzzer fuzzer(nvme, nvme, devices::nvme::k_registers_size, memory, [&] {
        nvme.drain();
        scheduler.run_tasks();
        nvme.drain();
    });
    fuzzer.run(std::as_bytes(std::span(data, size)));
    return 0;
}
