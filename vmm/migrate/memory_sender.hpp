// The source's RAM, sent while the guest writes it: all pages once, then what was written meanwhile, round by round,
// and the rest with the guest stopped.
//
//   auto sender = TRY(MemorySender::create(machine.ram(), *machine.partition().dirty_log(), send, options));
//   while (decide_precopy(goals, history).next == PrecopyNext::Round) history.push_back(TRY(sender->send_round()));
//   machine.while_paused([&] { state = machine.save_state(); sender->send_rest(); ... });   // in this order: saving
//                                                         // finishes I/O, which may still write RAM
//
// RAM must be whole before: a lazy restore ends first (LazyMemory::finish()).
#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "base/clock.hpp"
#include "crypto/mac.hpp"
#include "vmm/migrate/memory_batch.hpp"
#include "vmm/migrate/memory_pages.hpp"

namespace coffer::vmm {

struct RoundReport {
    uint32_t round = 0;      // from 1
    uint64_t pages = 0;      // sent with content
    uint64_t zero_pages = 0; // sent as zeros
    uint64_t bytes = 0;      // of batches
    uint64_t remaining = 0;  // pages written since they were sent
    Nanoseconds duration = 0;
};

struct SendProgress {
    uint32_t round = 0;
    uint64_t done = 0;  // pages of this round
    uint64_t total = 0; // pages of this round
    uint64_t bytes = 0; // of batches, in all rounds
};

class MemorySender {
public:
    // Takes one batch (memory_batch.hpp) of at most k_max_memory_batch bytes, which are valid within the call; on the
    // thread that sends. Its error ends the round.
    using SendBatch = std::function<Result<void>(Bytes batch)>;

    struct Options {
        bool compress = false;                // zstd, batch by batch, where it makes them smaller
        unsigned threads = 1;                 // that look for zeros, copy and compress; the sending one is one of them
        std::function<bool()> cancelled = {}; // asked between batches
        std::function<void(SendProgress const&)> progress = {}; // after each batch
        // Waits until the other end has taken what was sent; at the end of send_round(), whose duration has it. Its
        // error is the round's.
        std::function<Result<void>()> settle = {};
    };

    // Starts the dirty log. All references outlive this.
    static Result<std::unique_ptr<MemorySender>> create(GuestRam& ram, DirtyLog& log, SendBatch send, Options options);
    // Stops the dirty log: the guest runs as before.
    ~MemorySender();
    MemorySender(MemorySender const&) = delete;
    MemorySender& operator=(MemorySender const&) = delete;

    // While the guest runs, on any one thread: all pages first, later what `remaining` of the last round counted.
    // Cancelled, or an error of `send`: nothing more can be sent.
    Result<RoundReport> send_round();
    // With the vCPUs stopped and devices drained: whatever was written since. `remaining` is 0 after.
    Result<RoundReport> send_rest();

    // Pages that the next round would send; all at first.
    uint64_t dirty_pages() const noexcept { return m_pending.count(); }
    uint64_t ram_pages() const noexcept { return m_numbers.count(); }
    // Over all batches so far, in their order: d = SHA-256(d before, batch), from zeros. MemoryReceiver's is the same
    // where it took the same.
    crypto::Digest const& digest() const noexcept { return m_digest; }

private:
    class Packer;
    class Pool;
    struct Packed;

    MemorySender(GuestRam& ram, DirtyLog& log, SendBatch send, Options options);
    Result<RoundReport> send_pending();
    Result<void> send_packed(Packed& packed, RoundReport& report);
    Result<void> send_zeros(RoundReport& report);
    Result<void> send_batch(Bytes batch, RoundReport& report);
    std::vector<uint64_t> next_chunk(uint64_t& from) const;

    GuestRam& m_ram;
    DirtyLog& m_log;
    SendBatch m_send;
    Options m_options;
    RamPages m_numbers;
    PageSet m_pending;
    std::vector<PageRun> m_zeros; // of this round, not sent yet
    crypto::Digest m_digest{};
    uint32_t m_rounds = 0;
    uint64_t m_bytes = 0;
    bool m_broken = false;
};

} // namespace coffer::vmm
