#include "vmm/machine/event_log_request.hpp"

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "vmm/eventlog/memory_log.hpp"

namespace coffer::vmm {

namespace {

using Pcrs = std::map<uint16_t, std::vector<ByteVector>>;

// Shared with the task that fills it, which may never run: the machine may end first.
struct Slot {
    std::mutex mutex;
    std::condition_variable filled;
    std::optional<Result<Pcrs>> pcrs;
};

Result<Pcrs> read_pcrs(Machine& machine, control::Conversation& with) {
    constexpr std::chrono::milliseconds k_look{100};
    auto const slot = std::make_shared<Slot>();
    machine.while_paused([&machine, slot] {
        auto pcrs = machine.platform().read_pcrs();
        std::lock_guard lock(slot->mutex);
        slot->pcrs = std::move(pcrs);
        slot->filled.notify_all();
    });
    std::unique_lock lock(slot->mutex);
    while (!slot->filled.wait_for(lock, k_look, [&] { return slot->pcrs.has_value(); }))
        if (with.cancelled()) return make_error(ErrorCode::Cancelled, "the VM ended before its PCRs were read");
    return std::move(*slot->pcrs);
}

} // namespace

Result<control::EventLogAnswer> answer_event_log(Machine& machine, control::Conversation& with) {
    auto const file = with.take_descriptor();
    auto pcrs = TRY(read_pcrs(machine, with));
    std::vector<MemorySpan> memory;
    for (auto const& region : machine.ram().regions())
        memory.push_back({region.gpa.value(), Bytes(region.host, region.size)});
    TRY(collect_log_pieces(memory, file.get(), "the client's file", [&] { return with.cancelled(); }));
    control::EventLogAnswer answer;
    for (auto& [algorithm, values] : pcrs) answer.banks.push_back({algorithm, std::move(values)});
    return answer;
}

} // namespace coffer::vmm
