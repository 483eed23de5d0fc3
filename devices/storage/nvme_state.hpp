// What is saved of an NVMe controller. Tags are never reused. Drained before: no command is at the disk.
#pragma once

#include <array>
#include <vector>

#include "devices/pci/pci_state.hpp"

namespace coffer::devices {

struct NvmeSubmissionQueueState {
    uint16_t id = 0;
    uint16_t size = 0;
    uint16_t head = 0;
    uint16_t tail = 0;
    uint16_t cq = 0;
    uint64_t base = 0;
    template <class V>
    void fields(V& v) {
        v.required(1, id);
        v.required(2, size);
        v.required(3, head);
        v.required(4, tail);
        v.required(5, cq);
        v.required(6, base);
    }
};

struct NvmeCompletionQueueState {
    uint16_t id = 0;
    uint16_t size = 0;
    uint16_t head = 0;
    uint16_t tail = 0;
    uint16_t vector = 0;
    bool interrupts = false;
    bool phase = true;
    uint64_t base = 0;
    ByteVector waiting; // completions of 16 bytes for which the queue had no room
    template <class V>
    void fields(V& v) {
        v.required(1, id);
        v.required(2, size);
        v.required(3, head);
        v.required(4, tail);
        v.required(5, vector);
        v.required(6, interrupts);
        v.required(7, phase);
        v.required(8, base);
        v.required(9, waiting);
    }
};

struct NvmeState {
    PciState pci;
    uint32_t intms = 0;
    uint32_t cc = 0;
    uint32_t csts = 0;
    uint32_t aqa = 0;
    uint64_t asq = 0;
    uint64_t acq = 0;
    std::array<uint32_t, 16> features{};
    std::array<uint32_t, 17> vector_configuration{};
    std::vector<NvmeSubmissionQueueState> submission;
    std::vector<NvmeCompletionQueueState> completion;
    std::vector<uint16_t> events;       // command ids of the asynchronous event requests held
    uint8_t events_pending = 0;         // bit n: ErrorEvent n waits for a request
    bool events_masked = false;         // until the error log is read
    std::array<uint64_t, 4> counters{}; // read blocks, written blocks, read commands, write commands
    uint64_t media_errors = 0;
    uint64_t error_count = 0;
    std::array<uint8_t, 64> last_error{};
    template <class V>
    void fields(V& v) {
        v.required(1, pci);
        v.required(2, intms);
        v.required(3, cc);
        v.required(4, csts);
        v.required(5, aqa);
        v.required(6, asq);
        v.required(7, acq);
        v.required(8, features);
        v.required(9, vector_configuration);
        v.required(10, submission);
        v.required(11, completion);
        v.required(12, events);
        v.required(13, events_pending);
        v.required(14, events_masked);
        v.required(15, counters);
        v.required(16, media_errors);
        v.required(17, error_count);
        v.required(18, last_error);
    }
};

} // namespace coffer::devices
