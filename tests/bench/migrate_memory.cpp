// How fast the memory engine of migration is by itself: 1 GiB of zeros, of text and of noise, from a sender to a
// receiver without a network between them. Rates are of CPU time, of all threads, so that other work on the machine
// matters little.
//
//   ninja -C build tests/bench/migrate_memory && build/tests/bench/migrate_memory [MIB]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>

#include "vmm/migrate/memory_receiver.hpp"
#include "vmm/migrate/memory_sender.hpp"

namespace {

using namespace coffer;
using namespace coffer::vmm;

Nanoseconds cpu_time() {
    timespec now{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<Nanoseconds>(now.tv_sec) * k_ns_per_s + now.tv_nsec;
}

class NoLog final : public DirtyLog {
    Result<void> start() override { return {}; }
    Result<void> stop() override { return {}; }
    Result<std::vector<uint64_t>> harvest(GuestPhysAddr gpa) override {
        size_t const pages = gpa.value() == 0 ? 0xA0 : (size_t{1} << 40) / k_ram_page / 64;
        return std::vector<uint64_t>(pages);
    }
};

enum class Content { Zeros, Text, Noise };

Result<void> measure(char const* name, uint64_t size, Content content, MemorySender::Options const& options) {
    auto source = TRY(GuestRam::create(size));
    auto target = TRY(GuestRam::create(size));
    std::mt19937_64 random(1);
    for (auto part : source.parts())
        for (size_t at = 0; content != Content::Zeros && at < part.size(); at += 8)
            store_le<uint64_t>(part, at, content == Content::Noise ? random() : 0x2020'6574'7962'2061 + at / 64);
    NoLog log;
    auto receiver = TRY(MemoryReceiver::create(target.parts()));
    Nanoseconds taking = 0;
    auto sender = TRY(MemorySender::create(
        source, log,
        [&](Bytes batch) -> Result<void> {
            auto const begun = cpu_time();
            TRY(receiver->take(batch));
            taking += cpu_time() - begun;
            return {};
        },
        options));
    auto const begun = cpu_time();
    auto const report = TRY(sender->send_round());
    auto const all = cpu_time() - begun;
    TRY(receiver->finish(sender->digest()));
    auto rate = [&](Nanoseconds time) { return static_cast<double>(size) / static_cast<double>(time) * 1e9 / 1048576; };
    std::printf("%-28s sent by %6.0f MiB/s, taken by %6.0f MiB/s, %6.1f MiB of batches\n", name, rate(all - taking),
                rate(taking), static_cast<double>(report.bytes) / 1048576);
    return {};
}

} // namespace

int main(int argc, char** argv) {
    uint64_t const size = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1024) << 20;
    struct Case {
        char const* name;
        Content content;
        MemorySender::Options options;
    };
    for (auto const& one : {Case{"zeros", Content::Zeros, {}}, Case{"text", Content::Text, {}},
                            Case{"noise", Content::Noise, {}}, Case{"text, zstd", Content::Text, {.compress = true}},
                            Case{"noise, zstd", Content::Noise, {.compress = true}}})
        if (auto done = measure(one.name, size, one.content, one.options); !done) {
            std::fprintf(stderr, "%s: %s\n", one.name, done.error().message().c_str());
            return 1;
        }
    return 0;
}
