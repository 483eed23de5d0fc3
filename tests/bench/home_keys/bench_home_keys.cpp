// How long a shallow rekey takes without its provider, and opening a home of 1 MiB with every file checked; each in
// turn with what the file system alone takes for it. Prints medians and all values.
//
//     bench_home_keys FOLDER [RUNS]        FOLDER: on the file system to be measured
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <fmt/format.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/random.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_open.hpp"

namespace coffer::vmm {
namespace {

constexpr size_t k_nvram = size_t{528} << 10; // OVMF's variable store of 4 MB builds
constexpr size_t k_tpm = (size_t{1} << 20) - k_nvram;

crypto::BundleKey copy_of(crypto::BundleKey const& key) {
    return std::move(*crypto::BundleKey::adopt(crypto::SecretBytes::copy_of(key.expose())));
}

class Series {
public:
    explicit Series(std::string name) : m_name(std::move(name)) {}
    template <class F>
    Result<void> measure(F&& work) {
        auto const begin = monotonic_now();
        TRY(work());
        m_ms.push_back(static_cast<double>(monotonic_now() - begin) / static_cast<double>(k_ns_per_ms));
        return {};
    }
    void print() {
        std::string all;
        for (double ms : m_ms) all += fmt::format(" {:.2f}", ms);
        std::sort(m_ms.begin(), m_ms.end());
        fmt::print("{:<44} median {:7.2f} ms, least {:7.2f} ms:{}\n", m_name, m_ms[m_ms.size() / 2], m_ms.front(), all);
    }

private:
    std::string m_name;
    std::vector<double> m_ms;
};

Result<ByteVector> random_content(size_t size) {
    ByteVector content(size);
    TRY(crypto::random_bytes(content));
    return content;
}

Result<void> run(std::filesystem::path const& folder, int runs) {
    HomeLocation const location{{folder / "root", folder / "state"}, "vm"};
    VmConfig config;
    config.name = location.name;
    config.uuid = TRY(crypto::random_uuid());
    config.tpm = TpmKind::Crb;
    config.firmware_code = "/firmware";
    config.firmware_variables = "/variables";
    auto const provider = TRY(crypto::random_uuid());
    crypto::BundleKey key = TRY(crypto::BundleKey::random());
    auto make_seal = [&]() -> Result<HomeSeal> {
        // As large as KWP makes it of a bundle key (RFC 5649, section 3).
        auto wrapped = TRY(random_content(40));
        auto const uuid = TRY(crypto::random_uuid());
        auto id = TRY(KeyId::parse("1/" + uuid.to_string()));
        return HomeSeal{provider, std::move(id), {std::move(wrapped)}, copy_of(key)};
    };
    auto const nvram = TRY(random_content(k_nvram));
    auto const tpm = TRY(random_content(k_tpm));
    auto first = TRY(make_seal());
    TRY(create_home(location, config, nvram, std::move(first), tpm));
    auto open = [&](HomeAccess access) {
        return open_home(location, access,
                         [&](BundleHeader const&) -> Result<crypto::BundleKey> { return copy_of(key); });
    };

    Series opening("open and check a home of 1 MiB");
    Series reading("read its files");
    for (int i = 0; i < runs; ++i) {
        auto open_once = [&]() -> Result<void> {
            auto home = open(HomeAccess::Writer);
            return home ? Result<void>() : std::move(home).error();
        };
        auto read_once = [&]() -> Result<void> {
            for (auto const* name : {"keys", "config", "nvram", "tpm"})
                TRY(read_file(location.folder() / name, size_t{1} << 30));
            return {};
        };
        TRY(opening.measure(open_once));
        TRY(reading.measure(read_once));
    }
    opening.print();
    reading.print();

    Series rekeying("shallow rekey");
    Series replacing("replace two files of its sizes");
    auto home = TRY(open(HomeAccess::Writer));
    for (int i = 0; i < runs; ++i) {
        key = TRY(crypto::BundleKey::random());
        auto seal = TRY(make_seal());
        auto rekey_once = [&] { return home->rekey(std::move(seal)); };
        TRY(rekeying.measure(rekey_once));
        auto const keys = TRY(read_file(location.folder() / "keys", size_t{1} << 20));
        auto const record = TRY(read_file(location.host_record(), size_t{1} << 20));
        auto replace_once = [&]() -> Result<void> {
            TRY(replace_file(folder / "keys", keys));
            return replace_file(folder / "record", record);
        };
        TRY(replacing.measure(replace_once));
    }
    rekeying.print();
    replacing.print();
    return {};
}

} // namespace
} // namespace coffer::vmm

int main(int argc, char** argv) {
    int const runs = argc > 2 ? std::atoi(argv[2]) : 25;
    if (argc < 2 || runs < 1) {
        std::fprintf(stderr, "usage: bench_home_keys FOLDER [RUNS]\n");
        return 2;
    }
    auto const folder = std::filesystem::path(argv[1]) / fmt::format("coffer-bench-{}", coffer::monotonic_now());
    auto done = coffer::make_folders(folder);
    if (done) done = coffer::vmm::run(folder, runs);
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
    if (done) return 0;
    std::fprintf(stderr, "%s\n", done.error().message().c_str());
    return 1;
}
