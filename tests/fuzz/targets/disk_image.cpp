// Encrypted disk images: header, journal and list of keys, as bytes, and as an image whose MACs are made right, so that
// what lies behind authentication is reached too.
#include <algorithm>
#include <cstdlib>

#include "base/log.hpp"
#include "tests/support/volatile_disk.hpp"
#include "vmm/disk/disk_journal.hpp"
#include "vmm/disk/encrypted_disk.hpp"

namespace {

using namespace coffer;
using namespace coffer::vmm;
namespace spec = disk_spec;

void require(bool holds) {
    if (!holds) std::abort();
}

DiskSecret make_secret() {
    crypto::SecretBytes key(DiskKey::k_size);
    for (size_t i = 0; i < key.size(); ++i) key.expose_mutable()[i] = static_cast<std::byte>(i);
    return {Uuid({std::byte{1}}), std::move(*DiskKey::adopt(std::move(key))), 0};
}

void run_image(Bytes input) {
    if (input.size() < spec::k_header_size) return;
    auto secret = make_secret();
    auto seal = std::move(*DiskSeal::create(secret.key, secret.disk));
    ByteVector head(input.begin(), input.begin() + spec::k_header_size);
    std::ranges::copy(secret.disk.bytes(), head.begin() + spec::k_disk_uuid_at);
    auto header = parse_disk_header(head, "image");
    constexpr uint64_t k_most = uint64_t{4} << 20;
    if (!header || header->layout.file_size() > k_most) return;
    std::ranges::copy(*seal.mac(spec::MacDomain::Header, Bytes(head).first(spec::k_mac_value_at)),
                      head.begin() + spec::k_mac_value_at);

    tests::VolatileDisk::State state;
    state.current.resize(header->layout.file_size());
    std::ranges::copy(head, state.current.begin());
    auto const rest = input.subspan(spec::k_header_size);
    MutBytes const behind = MutBytes(state.current).subspan(header->layout.journal_at());
    std::copy_n(rest.begin(), std::min(rest.size(), behind.size()), behind.begin());
    if (auto size = journal_descriptor_size(behind); size && *size <= behind.size()) {
        auto count = load_le<uint32_t>(behind, spec::journal::k_count_at);
        auto mac = seal.mac(spec::MacDomain::Journal, crypto::Digest{}, behind.first(spec::journal::k_mac_value_at),
                            behind.subspan(spec::journal::k_entries_at, count * spec::journal::k_entry_size));
        std::ranges::copy(*mac, behind.begin() + spec::journal::k_mac_value_at);
    }
    state.durable = state.current;
    auto disk = open_encrypted_disk("image", std::make_unique<tests::VolatileDisk>(state), secret,
                                    {header->vm, header->protection});
    if (!disk) {
        require(disk.error().code() == ErrorCode::Integrity);
        return;
    }
    ByteVector unit(spec::k_sector_size);
    // What was forged reads as an error or as something, and can be written over.
    (void)(*disk)->read(0, unit);
    (void)(*disk)->write((*disk)->size() - unit.size(), unit);
    (void)(*disk)->close();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    if (size == 0) return 0;
    log::set_level(log::Level::Error);
    Bytes input = std::as_bytes(std::span(data, size)).subspan(1);
    switch (data[0] % 3) {
    case 0:
        if (auto secrets = DiskSecrets::decode(input)) require(std::ranges::equal(secrets->encode().expose(), input));
        break;
    case 1: {
        spec::Layout const layout{.content_size = uint64_t{100} << 20, .journal_size = spec::journal::k_min_size};
        if (auto transaction = parse_journal_descriptor(input, layout)) {
            require(transaction->descriptor_size() == input.size());
            for (auto const& entry : transaction->entries)
                require((entry.number & ~spec::journal::k_table_block) < layout.units());
        }
        break;
    }
    default: run_image(input);
    }
    return 0;
}
