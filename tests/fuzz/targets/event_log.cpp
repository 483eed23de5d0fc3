// Event logs, as a guest can write them into its memory or a file: whatever they say, taking them apart stays inside of
// the bytes and is bounded, what is decoded is printable, and a log that was chosen is a log.
#include <algorithm>

#include "vmm/eventlog/event_text.hpp"
#include "vmm/eventlog/memory_log.hpp"
#include "vmm/eventlog/pcr_text.hpp"

using namespace coffer;
using namespace coffer::vmm;

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    auto const bytes = std::as_bytes(std::span(data, size));
    if (auto log = parse_event_log(bytes)) {
        COFFER_ASSERT(log->size <= bytes.size() && log->events.size() <= k_max_events);
        size_t in_events = 0;
        for (auto const& event : log->events) {
            COFFER_ASSERT(event.pcr < devices::k_pcr_count && event.digests.size() == log->algorithms.size());
            COFFER_ASSERT(event.data.data() >= bytes.data() &&
                          event.data.data() + event.data.size() <= bytes.data() + bytes.size());
            in_events += event.whole.size();
            auto const text = event_text(event);
            COFFER_ASSERT(text.size() <= 65536);
            COFFER_ASSERT(std::ranges::all_of(text, [](char c) {
                return static_cast<unsigned char>(c) >= 0x20 && static_cast<unsigned char>(c) != 0x7F;
            }));
        }
        COFFER_ASSERT(in_events < log->size);
        auto const replayed = replay(*log);
        COFFER_ASSERT(replayed.has_value());
    }
    if (auto chosen = choose_log(bytes, {})) {
        auto const log = parse_event_log(*chosen);
        COFFER_ASSERT(log && log->size == chosen->size());
    }
    std::string text;
    for (size_t i = 0; i < size; ++i) text += static_cast<char>(data[i]);
    if (auto banks = parse_pcr_text(text)) COFFER_ASSERT(banks->size() <= devices::k_pcr_banks.size());
    return 0;
}
