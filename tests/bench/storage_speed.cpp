// Speed of what lies at rest, in the processor and on the disk. Usage:
//   storage_speed crypto            files of a home and clusters of machine images, against the bound that their
//                                   primitives give
//   storage_speed disk FOLDER MIB   an encrypted disk of so many MiB in FOLDER against a raw file there
// Prints a JSON array. `crypto` counts the processor time of its thread, so that other work on the machine matters
// less.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "base/file.hpp"
#include "crypto/gmac.hpp"
#include "crypto/mac.hpp"
#include "crypto/random.hpp"
#include "crypto/xts.hpp"
#include "devices/storage/raw_disk.hpp"
#include "tests/bench/measure.hpp"
#include "vmm/disk/disk_files.hpp"
#include "vmm/home/data_file_memory.hpp"
#include "vmm/snapshot/image_cipher.hpp"
#include "vmm/snapshot/image_spec.hpp"

namespace coffer::bench {
namespace {

using namespace coffer::vmm;

// The best of several rounds of at least 50 ms each, in bytes a second. What `prepare` takes is not counted.
double rate(
    uint64_t bytes, std::function<void()> const& work, std::function<void()> const& prepare = [] {}) {
    constexpr int k_rounds = 9;
    constexpr double k_least = 0.05;
    double best = 0;
    for (int round = 0; round < k_rounds; ++round) {
        uint64_t times = 0;
        double passed = 0;
        while (passed < k_least) {
            prepare();
            double const start = seconds(CLOCK_THREAD_CPUTIME_ID);
            work();
            passed += seconds(CLOCK_THREAD_CPUTIME_ID) - start;
            ++times;
        }
        best = std::max(best, static_cast<double>(bytes * times) / passed);
    }
    return best;
}

// Both passes over the same bytes, one behind the other, on one core.
double bound_of(double cipher, double tags) {
    return 1 / (1 / cipher + 1 / tags);
}

void print_row(bool& first, std::string_view what, size_t size, double cipher, double tags, double seal, double open) {
    double const bound = bound_of(cipher, tags);
    fmt::print("{}\n {{\"what\": \"{}\", \"bytes\": {}, \"cipher\": {:.0f}, \"tags\": {:.0f}, \"bound\": {:.0f}, "
               "\"seal\": {:.0f}, \"open\": {:.0f}, \"seal share\": {:.2f}, \"open share\": {:.2f}}}",
               first ? "[" : ",", what, size, cipher / 1e6, tags / 1e6, bound / 1e6, seal / 1e6, open / 1e6,
               seal / bound, open / bound);
    std::fflush(stdout);
    first = false;
}

// A home that is written to again and again: memory of the last writing is used again, as EncryptedHome does.
void file_speed(bool& first, size_t size, crypto::XtsCipher& cipher, crypto::DataEncryptionKey const& dek) {
    constexpr size_t k_unit = crypto::k_xts_unit_size;
    ByteVector content(size);
    ByteVector ciphertext(size);
    must(crypto::random_bytes(MutBytes(content).first(4096)));
    double const xts = rate(size, [&] {
        for (size_t at = 0; at + k_unit <= size; at += k_unit)
            must(cipher.encrypt_unit(at / k_unit, Bytes(content).subspan(at, k_unit),
                                     MutBytes(ciphertext).subspan(at, k_unit)));
    });
    double const sha = rate(size, [&] { (void)must(crypto::sha256({ciphertext})); });
    DataFileHeader header;
    header.name = "nvram";
    header.generation = 1;
    header.epoch = 1;
    header.file = must(crypto::random_uuid());
    header.vm = must(crypto::random_uuid());
    ByteVector file;
    double const seal = rate(size, [&] { must(seal_data_file_into(file, header, &dek, content)); });
    ByteVector copy;
    double const open = rate(
        size,
        [&] {
            copy = must(open_data_file_in_place(std::move(copy), {header.vm, header.name}, &dek, "nvram")).content;
        },
        [&] { copy.assign(file.begin(), file.end()); });
    print_row(first, "file", size, xts, sha, seal, open);
}

void image_speed(bool& first, size_t size) {
    constexpr size_t k_cluster = image_spec::k_cluster;
    ImageKeys const keys{must(crypto::XtsKey::random()), must(crypto::AeadKey::random())};
    auto xts_alone = must(crypto::XtsCipher::create(keys.cipher));
    auto gmac = must(crypto::Gmac::create(keys.units));
    auto cipher = must(ClusterCipher::create(&keys));
    ByteVector content(size);
    must(crypto::random_bytes(MutBytes(content).first(4096)));
    ByteVector stored(k_cluster);
    double const xts = rate(size, [&] {
        for (size_t at = 0; at < size; at += k_cluster)
            must(xts_alone.encrypt_unit(at / k_cluster, Bytes(content).subspan(at, k_cluster), stored));
    });
    double const tags = rate(size, [&] { (void)must(gmac.compute(1, content)); });
    std::vector<ClusterCipher::Tag> table(size / k_cluster);
    double const seal = rate(size, [&] {
        for (size_t at = 0; at < size; at += k_cluster)
            table[at / k_cluster] = must(cipher.seal(at / k_cluster, Bytes(content).subspan(at, k_cluster), stored));
    });
    for (size_t at = 0; at < size; at += k_cluster) {
        auto const place = MutBytes(content).subspan(at, k_cluster);
        table[at / k_cluster] = must(cipher.seal(at / k_cluster, place, place));
    }
    // In place, as into a guest's memory; what is opened has to be sealed again, uncounted.
    double const open = rate(
        size,
        [&] {
            for (size_t at = 0; at < size; at += k_cluster)
                if (!must(cipher.open(at / k_cluster, table[at / k_cluster], MutBytes(content).subspan(at, k_cluster))))
                    must<void>(make_error(ErrorCode::Integrity, "a cluster does not open"));
        },
        [&, sealed = content] { content = sealed; });
    print_row(first, "image", size, xts, tags, seal, open);
}

void crypto_speed() {
    auto key = must(crypto::XtsKey::random());
    auto dek = must(crypto::DataEncryptionKey::random());
    auto cipher = must(crypto::XtsCipher::create(key));
    bool first = true;
    for (size_t size : {size_t{540672}, size_t{1} << 20, size_t{16} << 20, size_t{64} << 20})
        file_speed(first, size, cipher, dek);
    for (size_t size : {size_t{16} << 20, size_t{256} << 20}) image_speed(first, size);
    fmt::print("\n]\n");
}

struct Pattern {
    char const* name;
    uint64_t size;
    bool random;
    bool writes;
};
constexpr Pattern k_patterns[] = {
    {"sequential write 1M", 1 << 20, false, true},   {"sequential read 1M", 1 << 20, false, false},
    {"sequential write 64k", 64 << 10, false, true}, {"sequential read 64k", 64 << 10, false, false},
    {"sequential write 4k", 4096, false, true},      {"sequential read 4k", 4096, false, false},
    {"random write 4k", 4096, true, true},           {"random read 4k", 4096, true, false},
};

// Bytes a second of wall time, the flush at the end of writes included.
double run(devices::BlockBackend& disk, Pattern const& pattern) {
    ByteVector buffer(pattern.size);
    must(crypto::random_bytes(MutBytes(buffer).first(4096)));
    std::mt19937_64 random(1);
    uint64_t const blocks = disk.size() / pattern.size;
    // Random accesses to a quarter as many places.
    uint64_t const count = pattern.random ? blocks / 4 : blocks;
    double const start = seconds(CLOCK_MONOTONIC);
    for (uint64_t i = 0; i < count; ++i) {
        uint64_t const at = (pattern.random ? random() % blocks : i) * pattern.size;
        must(pattern.writes ? disk.write(at, buffer) : disk.read(at, buffer));
    }
    if (pattern.writes) must(disk.flush());
    return static_cast<double>(count * pattern.size) / (seconds(CLOCK_MONOTONIC) - start);
}

void disk_speed(std::filesystem::path const& folder, uint64_t size) {
    auto vm = must(crypto::random_uuid());
    std::vector<std::pair<std::string, std::unique_ptr<devices::BlockBackend>>> disks;
    auto raw_path = folder / "storage-speed.raw";
    {
        auto fd = must(open_file(raw_path, O_RDWR | O_CREAT | O_TRUNC));
        if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) must<void>(errno_error(errno, "ftruncate"));
    }
    disks.emplace_back("raw", must(devices::RawDisk::open(raw_path, {})));
    std::vector<std::filesystem::path> files{raw_path};
    for (auto protection : {DiskProtection::Unauthenticated, DiskProtection::Authenticated}) {
        auto path = folder / fmt::format("storage-speed.{}", to_string(protection));
        std::filesystem::remove(path);
        auto secret = must(DiskSecret::random());
        must(create_disk(path, secret, {vm, protection, size}));
        disks.emplace_back(to_string(protection), must(open_disk(path, secret, {vm, protection})));
        files.push_back(path);
    }
    // Once over everything first, so that all files are there and in the cache alike; then the three in turn.
    for (auto& [name, disk] : disks) (void)run(*disk, k_patterns[0]);
    constexpr int k_rounds = 3;
    fmt::print("[");
    for (auto const& pattern : k_patterns) {
        std::vector<std::vector<double>> rates(disks.size());
        for (int round = 0; round < k_rounds; ++round)
            for (size_t i = 0; i < disks.size(); ++i) rates[i].push_back(run(*disks[i].second, pattern));
        for (size_t i = 0; i < disks.size(); ++i) {
            std::ranges::sort(rates[i]);
            fmt::print("{}\n {{\"pattern\": \"{}\", \"disk\": \"{}\", \"rates\": [{:.0f}, {:.0f}, {:.0f}]}}",
                       &pattern == k_patterns && i == 0 ? "" : ",", pattern.name, disks[i].first, rates[i][0] / 1e6,
                       rates[i][1] / 1e6, rates[i][2] / 1e6);
        }
        std::fflush(stdout);
    }
    fmt::print("\n]\n");
    disks.clear();
    for (auto const& file : files) std::filesystem::remove(file);
}

} // namespace
} // namespace coffer::bench

int main(int argc, char** argv) {
    if (argc == 2 && std::string_view(argv[1]) == "crypto") {
        coffer::bench::crypto_speed();
        return 0;
    }
    if (argc == 4 && std::string_view(argv[1]) == "disk") {
        uint64_t const mib = std::strtoull(argv[3], nullptr, 10);
        if (mib >= 16 && mib <= 65536) {
            coffer::bench::disk_speed(argv[2], mib << 20);
            return 0;
        }
    }
    fmt::print(stderr, "usage: storage_speed crypto | disk FOLDER MIB\n");
    return 2;
}
