// Writing a machine image, and what bounds it. Usage: image_speed FOLDER MIB [ROUNDS]
//
// Of MIB of random bytes, each round in turn:
//   cipher  AES-256-XTS and AES-256-GMAC by clusters, as an image has them, on all CPUs, nothing written
//   cache   the same bytes written by write(2), and fsync
//   direct  the same bytes written past the page cache, and fsync: the faster of the two is the disk's bound
//   image   write_machine_image() and fsync
// Prints a JSON array of rounds: MB/s of wall time, and the image's seconds of processor time.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "crypto/random.hpp"
#include "tests/bench/measure.hpp"
#include "vmm/snapshot/image_cipher.hpp"
#include "vmm/snapshot/machine_image.hpp"

namespace coffer::bench {
namespace {

using namespace coffer::vmm;

constexpr size_t k_write = size_t{1} << 20;

// MB/s of wall time.
double rate(size_t size, std::function<void()> const& work) {
    double const begun = seconds(CLOCK_MONOTONIC);
    work();
    return static_cast<double>(size) / 1e6 / (seconds(CLOCK_MONOTONIC) - begun);
}

void on_threads(unsigned count, std::function<void()> const& work) {
    std::vector<std::thread> threads;
    for (unsigned i = 1; i < count; ++i) threads.emplace_back(work);
    work();
    for (auto& thread : threads) thread.join();
}

void seal_all(Bytes memory, ImageKeys const& keys) {
    std::atomic<size_t> next{0};
    on_threads(std::max(1U, std::thread::hardware_concurrency()), [&] {
        constexpr size_t k_cluster = image_spec::k_cluster;
        auto cipher = must(ClusterCipher::create(&keys));
        ByteVector stored(k_cluster);
        for (size_t at = 0; (at = next.fetch_add(k_write)) < memory.size();)
            for (size_t piece = at; piece < at + k_write; piece += k_cluster)
                (void)must(cipher.seal(piece / k_cluster, memory.subspan(piece, k_cluster), stored));
    });
}

void sync(int fd) {
    if (::fsync(fd) != 0) must<void>(errno_error(errno, "fsync"));
}

void write_all_of(Bytes memory, std::filesystem::path const& path, int flags, unsigned threads) {
    auto file = must(open_file(path, O_WRONLY | O_CREAT | O_TRUNC | flags));
    std::atomic<size_t> next{0};
    on_threads(threads, [&] {
        for (size_t at = 0; (at = next.fetch_add(k_write)) < memory.size();)
            must(pwrite_all(file.get(), memory.subspan(at, k_write), at, path));
    });
    sync(file.get());
}

void measure(std::filesystem::path const& folder, size_t size, int rounds) {
    void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) must<void>(errno_error(errno, "mmap"));
    MutBytes memory(static_cast<std::byte*>(mapped), size);
    for (size_t at = 0; at < size; at += k_write) must(crypto::random_bytes(memory.subspan(at, k_write)));
    auto const path = folder / "image-speed";
    ImageWriting writing;
    writing.path = path;
    writing.keys = ImageKeys{must(crypto::XtsKey::random()), must(crypto::AeadKey::random())};
    for (int round = 0; round < rounds; ++round) {
        double const cipher = rate(size, [&] { seal_all(memory, *writing.keys); });
        double const cache = rate(size, [&] { write_all_of(memory, path, 0, 1); });
        std::filesystem::remove(path);
        double const direct = rate(size, [&] { write_all_of(memory, path, O_DIRECT, 4); });
        std::filesystem::remove(path);
        double const used = seconds(CLOCK_PROCESS_CPUTIME_ID);
        double const image = rate(size, [&] {
            std::array<Bytes, 1> parts{memory};
            (void)must(write_machine_image(writing, {}, parts, {}));
            sync(must(open_file(path, O_WRONLY)).get());
        });
        double const took = seconds(CLOCK_PROCESS_CPUTIME_ID) - used;
        std::filesystem::remove(path);
        fmt::print("{} {{\"cipher\": {:.0f}, \"cache\": {:.0f}, \"direct\": {:.0f}, \"image\": {:.0f}, \"image CPU\": "
                   "{:.3f}}}",
                   round == 0 ? "[" : ",\n", cipher, cache, direct, image, took);
        std::fflush(stdout);
    }
    fmt::print("]\n");
}

} // namespace
} // namespace coffer::bench

int main(int argc, char** argv) {
    uint64_t const mib = argc >= 3 ? std::strtoull(argv[2], nullptr, 10) : 0;
    int const rounds = argc == 4 ? std::atoi(argv[3]) : 3;
    if (argc > 4 || mib < 1 || mib > 65536 || rounds < 1) {
        fmt::print(stderr, "usage: image_speed FOLDER MIB [ROUNDS]\n");
        return 2;
    }
    coffer::bench::measure(argv[1], mib << 20, rounds);
    return 0;
}
