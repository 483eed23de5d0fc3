// An overlay's file from anyone, below a disk that is written, merged and read: it may garble content, and no more.
#include <algorithm>
#include <cstdlib>

#include "tests/support/volatile_disk.hpp"
#include "vmm/disk/layered_file.hpp"

namespace {

using namespace coffer;
using namespace coffer::vmm;
namespace spec = overlay_spec;

void require(bool holds) {
    if (!holds) std::abort();
}

constexpr uint64_t k_size = 3 * spec::k_cluster_size + 512;
constexpr size_t k_head = 64; // of the input: what the header begins with

// Input: a byte of flags, the beginning of the header, 8 bytes of the table, then operations of four bytes.
void run(Bytes input) {
    Uuid const id({std::byte{7}});
    spec::Layout const layout{k_size};
    tests::VolatileDisk::State base;
    base.current.assign(k_size, std::byte{0xB5});
    tests::VolatileDisk::State file;
    file.current.resize(layout.file_size());
    auto const flags = std::to_integer<unsigned>(input[0]);
    input = input.subspan(1);
    std::copy_n(input.begin(), std::min(input.size(), k_head), file.current.begin());
    input = input.subspan(std::min(input.size(), k_head));
    if ((flags & 1U) != 0) {
        // Past the header's check.
        std::ranges::fill(MutBytes(file.current).first(spec::k_header_size), std::byte{0});
        std::ranges::copy(std::as_bytes(std::span(spec::k_magic)), file.current.begin());
        store_le<uint32_t>(file.current, spec::k_version_at, spec::k_version);
        store_le<uint32_t>(file.current, spec::k_cluster_size_at, static_cast<uint32_t>(spec::k_cluster_size));
        store_le<uint64_t>(file.current, spec::k_content_size_at, k_size);
        std::ranges::copy(id.bytes(), file.current.begin() + spec::k_id_at);
    }
    std::copy_n(input.begin(), std::min<size_t>(input.size(), 8), file.current.begin() + spec::k_table_at);
    input = input.subspan(std::min<size_t>(input.size(), 8));
    auto overlay = OverlayFile::open(std::make_unique<tests::VolatileDisk>(file), "overlay", {id, k_size});
    if (!overlay) {
        require(overlay.error().code() == ErrorCode::Integrity);
        return;
    }
    LayeredFile disk(std::make_unique<tests::VolatileDisk>(base), "disk");
    disk.push(std::move(*overlay));
    ByteVector model(k_size);
    require(disk.read(0, model).has_value());
    for (; input.size() >= 4; input = input.subspan(4)) {
        uint64_t const sectors = k_size / 512;
        uint64_t const first = load_le<uint16_t>(input) % sectors;
        uint64_t const count = std::min<uint64_t>(1 + std::to_integer<uint64_t>(input[2]), sectors - first);
        auto const part = MutBytes(model).subspan(first * 512, count * 512);
        auto const value = input[3];
        std::ranges::fill(part, value);
        require((value == std::byte{0} ? disk.write_zeroes(first * 512, part.size()) : disk.write(first * 512, part))
                    .has_value());
        if (value == std::byte{0xFF}) require(disk.flush().has_value());
    }
    ByteVector now(k_size);
    require(disk.read(0, now).has_value() && now == model);
    require(disk.merge(id, [] { return Result<void>(); }, {}).has_value());
    require(disk.read(0, now).has_value() && now == model && base.current == model);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    if (size == 0) return 0;
    run(std::as_bytes(std::span(data, size)));
    return 0;
}
