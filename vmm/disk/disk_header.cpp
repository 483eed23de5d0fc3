#include "vmm/disk/disk_header.hpp"

#include <algorithm>

#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace spec = disk_spec;

namespace {

constexpr uint8_t k_cipher_xts_aes_256 = 1;
constexpr uint8_t k_mac_hmac_sha_256 = 1;

Uuid load_uuid(Bytes from, size_t offset) {
    Uuid::Storage bytes;
    std::memcpy(bytes.data(), from.subspan(offset, bytes.size()).data(), bytes.size());
    return Uuid(bytes);
}

bool possible(DiskHeader const& header) noexcept {
    auto const& layout = header.layout;
    if (layout.content_size == 0 || layout.content_size % spec::k_sector_size != 0 || header.epoch == 0) return false;
    if (header.protection == DiskProtection::Unauthenticated)
        return layout.journal_size == 0 && layout.content_size <= spec::k_max_content;
    return header.protection == DiskProtection::Authenticated && header.generation != 0 &&
           layout.content_size <= spec::k_max_authenticated_content &&
           layout.journal_size >= spec::journal::k_min_size && layout.journal_size <= spec::journal::k_max_size &&
           layout.journal_size % spec::k_unit_size == 0;
}

} // namespace

Result<DiskHeader> parse_disk_header(Bytes bytes, std::filesystem::path const& path) {
    if (bytes.size() < spec::k_header_size) return damaged(path, "the image is shorter than its header");
    if (!std::equal(spec::k_magic.begin(), spec::k_magic.end(), bytes.begin()))
        return damaged(path, "the image does not begin as an encrypted disk does");
    if (auto version = load_le<uint32_t>(bytes, spec::k_version_at); version != spec::k_version)
        return make_error(ErrorCode::Integrity,
                          "{}: the image says that it has format version {}, and this coffer knows version {}: it was "
                          "changed, or a newer coffer wrote it. Nothing was overwritten",
                          path.native(), version, spec::k_version);
    DiskHeader header;
    header.protection = static_cast<DiskProtection>(load_le<uint8_t>(bytes, spec::k_protection_at));
    header.layout.content_size = load_le<uint64_t>(bytes, spec::k_content_size_at);
    header.layout.journal_size = load_le<uint64_t>(bytes, spec::k_journal_size_at);
    header.epoch = load_le<uint64_t>(bytes, spec::k_epoch_at);
    header.generation = load_le<uint64_t>(bytes, spec::k_generation_at);
    header.disk = load_uuid(bytes, spec::k_disk_uuid_at);
    header.vm = load_uuid(bytes, spec::k_vm_uuid_at);
    header.created = static_cast<int64_t>(load_le<uint64_t>(bytes, spec::k_created_at));
    std::copy_n(bytes.begin() + spec::k_root_at, header.root.size(), header.root.begin());
    if (load_le<uint32_t>(bytes, spec::k_header_size_at) != spec::k_header_size ||
        load_le<uint8_t>(bytes, spec::k_cipher_at) != k_cipher_xts_aes_256 ||
        load_le<uint8_t>(bytes, spec::k_mac_at) != k_mac_hmac_sha_256 ||
        load_le<uint32_t>(bytes, spec::k_unit_size_at) != spec::k_unit_size || !possible(header))
        return damaged(path, "the image's header is malformed");
    return header;
}

Result<DiskHeader> open_disk_header(Bytes bytes, DiskSeal& seal, std::filesystem::path const& path) {
    auto header = TRY(parse_disk_header(bytes, path));
    auto mac = TRY(seal.mac(spec::MacDomain::Header, bytes.first(spec::k_mac_value_at)));
    if (!crypto::equal_in_constant_time(mac, bytes.subspan(spec::k_mac_value_at, mac.size())))
        return damaged(path, "the image's header fails authentication");
    return header;
}

Result<ByteVector> seal_disk_header(DiskHeader const& header, DiskSeal& seal) {
    COFFER_ASSERT(possible(header));
    ByteVector bytes(spec::k_header_size);
    std::ranges::copy(spec::k_magic, bytes.begin());
    store_le<uint32_t>(bytes, spec::k_version_at, spec::k_version);
    store_le<uint32_t>(bytes, spec::k_header_size_at, spec::k_header_size);
    store_le<uint8_t>(bytes, spec::k_protection_at, static_cast<uint8_t>(header.protection));
    store_le<uint8_t>(bytes, spec::k_cipher_at, k_cipher_xts_aes_256);
    store_le<uint8_t>(bytes, spec::k_mac_at, k_mac_hmac_sha_256);
    store_le<uint32_t>(bytes, spec::k_unit_size_at, spec::k_unit_size);
    store_le<uint64_t>(bytes, spec::k_content_size_at, header.layout.content_size);
    store_le<uint64_t>(bytes, spec::k_epoch_at, header.epoch);
    store_le<uint64_t>(bytes, spec::k_journal_size_at, header.layout.journal_size);
    store_le<uint64_t>(bytes, spec::k_created_at, static_cast<uint64_t>(header.created));
    store_le<uint64_t>(bytes, spec::k_generation_at, header.generation);
    std::ranges::copy(header.disk.bytes(), bytes.begin() + spec::k_disk_uuid_at);
    std::ranges::copy(header.vm.bytes(), bytes.begin() + spec::k_vm_uuid_at);
    std::ranges::copy(header.root, bytes.begin() + spec::k_root_at);
    auto mac = TRY(seal.mac(spec::MacDomain::Header, Bytes(bytes).first(spec::k_mac_value_at)));
    std::ranges::copy(mac, bytes.begin() + spec::k_mac_value_at);
    return bytes;
}

} // namespace coffer::vmm
