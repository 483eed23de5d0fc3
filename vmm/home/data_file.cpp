#include "vmm/home/data_file.hpp"

#include <algorithm>
#include <optional>

#include <sys/mman.h>

#include "crypto/kdf.hpp"
#include "vmm/home/data_file_memory.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace {

namespace spec = home_spec::data;
using crypto::Digest;

constexpr uint64_t units_for(uint64_t content_size) noexcept {
    return (content_size + spec::k_unit_size - 1) / spec::k_unit_size;
}

uint64_t unit_count(DataFileHeader const& header) noexcept {
    return header.layout == spec::Layout::WholeRewrite ? units_for(header.content_size) : 0;
}

constexpr uint64_t max_content(uint8_t layout) noexcept {
    return layout == static_cast<uint8_t>(spec::Layout::Image) ? spec::k_max_image : spec::k_max_content;
}

constexpr uint64_t file_size_for(uint64_t content_size) noexcept {
    return spec::k_header_size + units_for(content_size) * (spec::k_unit_size + spec::k_tag_size);
}

Uuid load_uuid(Bytes from, size_t offset) {
    Uuid::Storage bytes;
    std::memcpy(bytes.data(), from.subspan(offset, bytes.size()).data(), bytes.size());
    return Uuid(bytes);
}

void store_bytes(MutBytes to, size_t offset, Bytes from) {
    COFFER_ASSERT(offset <= to.size() && to.size() - offset >= from.size());
    if (!from.empty()) std::memcpy(to.data() + offset, from.data(), from.size());
}

// Room for `size` bytes, in large pages where the host has them: a page fault for every 4 KiB takes about as long as
// encrypting them.
void reserve_room(ByteVector& bytes, size_t size) {
    constexpr uintptr_t k_large_page = uintptr_t{2} << 20;
    if (bytes.capacity() >= size) return;
    bytes.reserve(size);
    // SAFETY: the address is looked at as a number only; advice changes no content.
    auto const start = align_up(reinterpret_cast<uintptr_t>(bytes.data()), k_large_page);
    auto const end = align_down(reinterpret_cast<uintptr_t>(bytes.data()) + size, k_large_page);
    if (end > start) ::madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
}

bool all_zero(Bytes bytes) noexcept {
    return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

// A file's own keys at work: the cipher of its units and the MAC of units, tags and header. Without a DEK there is no
// cipher, and plain SHA-256 stands where the MAC would, which finds damage and proves nothing.
class FileSeal {
public:
    static Result<FileSeal> create(crypto::DataEncryptionKey const* dek, Uuid const& file) {
        FileSeal seal;
        if (dek) {
            auto cipher_key = TRY(crypto::derive_key<crypto::XtsKey>(dek->expose(), file.bytes(), spec::k_cipher_info));
            auto mac_key = TRY(crypto::derive_key<crypto::MacKey>(dek->expose(), file.bytes(), spec::k_mac_info));
            seal.m_cipher = TRY(crypto::XtsCipher::create(cipher_key));
            seal.m_mac = TRY(crypto::HmacSha256::create(mac_key));
        }
        return seal;
    }

    Result<void> encrypt(uint64_t unit, Bytes from, MutBytes to) {
        if (m_cipher) return m_cipher->encrypt_unit(unit, from, to);
        std::memmove(to.data(), from.data(), to.size()); // the two may be the same
        return {};
    }
    Result<void> decrypt(uint64_t unit, Bytes from, MutBytes to) {
        if (m_cipher) return m_cipher->decrypt_unit(unit, from, to);
        std::memcpy(to.data(), from.data(), to.size());
        return {};
    }

    Result<Digest> unit_tag(DataFileHeader const& header, uint64_t unit, Bytes ciphertext) {
        // In one piece: calls of OpenSSL for so little would take longer than what they do.
        std::array<std::byte, 1 + Uuid::k_size + 16> start;
        start[0] = static_cast<std::byte>(spec::MacDomain::Unit);
        std::ranges::copy(header.file.bytes(), start.begin() + 1);
        store_le<uint64_t>(start, 1 + Uuid::k_size, header.generation);
        store_le<uint64_t>(start, 1 + Uuid::k_size + 8, unit);
        return digest({start, ciphertext});
    }
    Result<Digest> root(Bytes tags) { return tag(spec::MacDomain::Root, tags); }
    Result<Digest> header_mac(Bytes header, spec::MacDomain domain = spec::MacDomain::Header) {
        return tag(domain, header.first(spec::k_mac_value_at));
    }

private:
    FileSeal() = default;

    Result<Digest> tag(spec::MacDomain domain, Bytes content) {
        auto const byte = static_cast<std::byte>(domain);
        return digest({object_bytes(byte), content});
    }
    Result<Digest> digest(std::initializer_list<Bytes> parts) {
        return m_mac ? m_mac->compute(parts) : crypto::sha256(parts);
    }

    std::optional<crypto::XtsCipher> m_cipher;
    std::optional<crypto::HmacSha256> m_mac;
};

void write_header(MutBytes to, DataFileHeader const& header, Digest const& root) {
    auto mac = header.cipher == spec::Cipher::None ? spec::Mac::Sha256 : spec::Mac::HmacSha256;
    store_bytes(to, 0, spec::k_magic);
    store_le<uint32_t>(to, spec::k_version_at, home_spec::k_version);
    store_le<uint32_t>(to, spec::k_header_size_at, spec::k_header_size);
    store_le<uint8_t>(to, spec::k_layout_at, static_cast<uint8_t>(header.layout));
    store_le<uint8_t>(to, spec::k_cipher_at, static_cast<uint8_t>(header.cipher));
    store_le<uint8_t>(to, spec::k_mac_at, static_cast<uint8_t>(mac));
    store_le<uint32_t>(to, spec::k_unit_size_at, spec::k_unit_size);
    store_le<uint64_t>(to, spec::k_content_size_at, header.content_size);
    store_le<uint64_t>(to, spec::k_generation_at, header.generation);
    store_le<uint32_t>(to, spec::k_epoch_at, header.epoch);
    store_bytes(to, spec::k_file_uuid_at, header.file.bytes());
    store_bytes(to, spec::k_vm_uuid_at, header.vm.bytes());
    store_le<uint64_t>(to, spec::k_unit_count_at, unit_count(header));
    store_le<uint64_t>(to, spec::k_written_at, static_cast<uint64_t>(header.written));
    store_bytes(to, spec::k_root_at, root);
    store_le<uint8_t>(to, spec::k_name_size_at, static_cast<uint8_t>(header.name.size()));
    store_bytes(to, spec::k_name_at, as_bytes(header.name));
}

} // namespace

namespace {

// What is checked of every header before anything in it is believed; `head` is its 4096 bytes.
Result<void> check_header(FileSeal& seal, DataFileHeader const& header, Bytes head, ExpectedFile const& expected,
                          crypto::DataEncryptionKey const* dek, spec::Layout layout,
                          std::filesystem::path const& path) {
    auto const domain = layout == spec::Layout::Image ? spec::MacDomain::ImageHeader : spec::MacDomain::Header;
    auto const reserved_at =
        layout == spec::Layout::Image ? spec::k_image_own_at + spec::k_image_own_size : spec::k_reserved_at;
    if ((header.cipher == spec::Cipher::None) != (dek == nullptr))
        return damaged(path, dek ? "the file is not encrypted, as this home's files are"
                                 : "the file is encrypted, but the home has no keys file");
    if (!crypto::equal_in_constant_time(TRY(seal.header_mac(head, domain)),
                                        head.subspan(spec::k_mac_value_at, spec::k_tag_size)))
        return damaged(path, "the file's header fails authentication");
    if (header.layout != layout || !all_zero(head.subspan(reserved_at, spec::k_mac_value_at - reserved_at)))
        return damaged(path, "the file's header is malformed");
    if (header.vm != expected.vm)
        return damaged(path, fmt::format("the file belongs to another VM ({})", header.vm.to_string()));
    if (header.name != expected.name)
        return damaged(path, fmt::format("the file is another file of the home ({})", header.name));
    return {};
}

} // namespace

Result<DataFileHeader> parse_data_header(Bytes file, std::filesystem::path const& path) {
    if (file.size() < spec::k_header_size) return damaged(path, "the file is shorter than its header");
    if (!std::equal(spec::k_magic.begin(), spec::k_magic.end(), file.begin()))
        return damaged(path, "the file does not begin as a file of a home does");
    if (auto version = load_le<uint32_t>(file, spec::k_version_at); version != home_spec::k_version)
        return make_error(ErrorCode::Integrity,
                          "{}: the file says that it has format version {}, and this coffer knows version {}: it was "
                          "changed, or a newer coffer wrote it. Nothing was overwritten",
                          path.native(), version, home_spec::k_version);
    auto layout = load_le<uint8_t>(file, spec::k_layout_at);
    auto cipher = load_le<uint8_t>(file, spec::k_cipher_at);
    auto mac = load_le<uint8_t>(file, spec::k_mac_at);
    bool known_kind =
        cipher == static_cast<uint8_t>(spec::Cipher::XtsAes256)
            ? mac == static_cast<uint8_t>(spec::Mac::HmacSha256)
            : cipher == static_cast<uint8_t>(spec::Cipher::None) && mac == static_cast<uint8_t>(spec::Mac::Sha256);
    DataFileHeader header;
    bool const known_layout = layout == static_cast<uint8_t>(spec::Layout::WholeRewrite) ||
                              layout == static_cast<uint8_t>(spec::Layout::Image);
    header.layout = static_cast<spec::Layout>(layout);
    header.cipher = static_cast<spec::Cipher>(cipher);
    header.content_size = load_le<uint64_t>(file, spec::k_content_size_at);
    auto name_size = load_le<uint8_t>(file, spec::k_name_size_at);
    if (load_le<uint32_t>(file, spec::k_header_size_at) != spec::k_header_size || !known_layout || !known_kind ||
        load_le<uint32_t>(file, spec::k_unit_size_at) != spec::k_unit_size ||
        header.content_size > max_content(layout) ||
        load_le<uint64_t>(file, spec::k_unit_count_at) != unit_count(header) || name_size > home_spec::k_max_file_name)
        return damaged(path, "the file's header is malformed");
    header.generation = load_le<uint64_t>(file, spec::k_generation_at);
    header.epoch = load_le<uint32_t>(file, spec::k_epoch_at);
    header.file = load_uuid(file, spec::k_file_uuid_at);
    header.vm = load_uuid(file, spec::k_vm_uuid_at);
    header.written = static_cast<int64_t>(load_le<uint64_t>(file, spec::k_written_at));
    for (std::byte b : file.subspan(spec::k_name_at, name_size)) header.name += static_cast<char>(b);
    return header;
}

Result<DataFileHeader> authenticate_head(Bytes head, uint64_t file_size, ExpectedFile const& expected,
                                         crypto::DataEncryptionKey const* dek, std::filesystem::path const& path) {
    auto header = TRY(parse_data_header(head, path));
    auto seal = TRY(FileSeal::create(dek, header.file));
    TRY(check_header(seal, header, head.first(spec::k_header_size), expected, dek, header.layout, path));
    uint64_t const due = header.layout == spec::Layout::Image ? spec::k_header_size + header.content_size
                                                              : file_size_for(header.content_size);
    if (file_size != due) return damaged(path, fmt::format("the file has {} bytes where {} are due", file_size, due));
    return header;
}

Result<ByteVector> seal_data_file(DataFileHeader header, crypto::DataEncryptionKey const* dek, Bytes content) {
    ByteVector file;
    TRY(seal_data_file_into(file, std::move(header), dek, content));
    return file;
}

Result<void> seal_data_file_into(ByteVector& file, DataFileHeader header, crypto::DataEncryptionKey const* dek,
                                 Bytes content) {
    COFFER_ASSERT(!header.name.empty() && header.name.size() <= home_spec::k_max_file_name);
    if (content.size() > spec::k_max_content)
        return make_error(ErrorCode::InvalidArgument, "file {} of a home cannot hold {} bytes; at most {} fit",
                          header.name, content.size(), spec::k_max_content);
    header.content_size = content.size();
    header.layout = spec::Layout::WholeRewrite;
    header.cipher = dek ? spec::Cipher::XtsAes256 : spec::Cipher::None;
    auto seal = TRY(FileSeal::create(dek, header.file));

    uint64_t const count = units_for(content.size());
    reserve_room(file, file_size_for(content.size()));
    file.resize(file_size_for(content.size()));
    std::fill_n(file.begin(), spec::k_header_size, std::byte{0});
    MutBytes const tags = MutBytes(file).last(count * spec::k_tag_size);
    for (uint64_t unit = 0; unit < count; ++unit) {
        Bytes plain = content.subspan(unit * spec::k_unit_size);
        MutBytes const ciphertext =
            MutBytes(file).subspan(spec::k_header_size + unit * spec::k_unit_size, spec::k_unit_size);
        if (plain.size() < spec::k_unit_size) {
            // The last unit is filled up with zeros, and encrypted where it lies.
            std::ranges::fill(ciphertext, std::byte{0});
            store_bytes(ciphertext, 0, plain);
            plain = ciphertext;
        }
        TRY(seal.encrypt(unit, plain.first(spec::k_unit_size), ciphertext));
        store_bytes(tags, unit * spec::k_tag_size, TRY(seal.unit_tag(header, unit, ciphertext)));
    }
    MutBytes const head = MutBytes(file).first(spec::k_header_size);
    write_header(head, header, TRY(seal.root(tags)));
    store_bytes(head, spec::k_mac_value_at, TRY(seal.header_mac(head)));
    return {};
}

Result<OpenedDataFile> open_data_file(Bytes file, ExpectedFile const& expected, crypto::DataEncryptionKey const* dek,
                                      std::filesystem::path const& path) {
    return open_data_file_in_place(ByteVector(file.begin(), file.end()), expected, dek, path);
}

Result<OpenedDataFile> open_data_file_in_place(ByteVector file, ExpectedFile const& expected,
                                               crypto::DataEncryptionKey const* dek,
                                               std::filesystem::path const& path) {
    OpenedDataFile opened;
    opened.header = TRY(parse_data_header(file, path));
    auto const& header = opened.header;
    if (header.layout == spec::Layout::WholeRewrite && file.size() != file_size_for(header.content_size))
        return damaged(path, fmt::format("the file has {} bytes where {} are due", file.size(),
                                         file_size_for(header.content_size)));
    auto seal = TRY(FileSeal::create(dek, header.file));
    Bytes const head = Bytes(file).first(spec::k_header_size);
    TRY(check_header(seal, header, head, expected, dek, spec::Layout::WholeRewrite, path));

    uint64_t const count = units_for(header.content_size);
    Bytes const tags = Bytes(file).last(count * spec::k_tag_size);
    if (!crypto::equal_in_constant_time(TRY(seal.root(tags)), head.subspan(spec::k_root_at, spec::k_tag_size)))
        return damaged(path, "the file's table of tags fails authentication");

    // Each unit goes where the one before it, and first of all the header, was.
    static_assert(spec::k_header_size == spec::k_unit_size);
    auto open_unit = [&](uint64_t unit) -> Result<void> {
        auto const place = MutBytes(file).subspan(unit * spec::k_unit_size);
        Bytes const ciphertext = place.subspan(spec::k_unit_size, spec::k_unit_size);
        // Authenticate before decrypting.
        if (!crypto::equal_in_constant_time(TRY(seal.unit_tag(header, unit, ciphertext)),
                                            tags.subspan(unit * spec::k_tag_size, spec::k_tag_size)))
            return damaged(path, fmt::format("data unit {} of the file fails authentication", unit));
        return seal.decrypt(unit, ciphertext, place.first(spec::k_unit_size));
    };
    for (uint64_t unit = 0; unit < count; ++unit)
        if (auto done = open_unit(unit); !done) {
            crypto::wipe_bytes(MutBytes(file).first(unit * spec::k_unit_size));
            return std::move(done).error();
        }
    file.resize(header.content_size);
    opened.content = std::move(file);
    return opened;
}

Result<ImageKeys> derive_image_keys(crypto::DataEncryptionKey const& dek, Uuid const& file) {
    auto cipher = TRY(crypto::derive_key<crypto::XtsKey>(dek.expose(), file.bytes(), spec::k_cipher_info));
    auto units = TRY(crypto::derive_key<crypto::AeadKey>(dek.expose(), file.bytes(), spec::k_image_units_info));
    return ImageKeys{std::move(cipher), std::move(units)};
}

Result<ByteVector> seal_image_header(DataFileHeader header, ImageRoot const& root,
                                     crypto::DataEncryptionKey const* dek) {
    COFFER_ASSERT(!header.name.empty() && header.name.size() <= home_spec::k_max_file_name);
    if (header.content_size > spec::k_max_image || root.own.size() > spec::k_image_own_size)
        return make_error(ErrorCode::InvalidArgument, "image {} is too large: {} bytes, and {} in its header",
                          header.name, header.content_size, root.own.size());
    header.layout = spec::Layout::Image;
    header.cipher = dek ? spec::Cipher::XtsAes256 : spec::Cipher::None;
    auto seal = TRY(FileSeal::create(dek, header.file));
    ByteVector head(spec::k_header_size);
    write_header(head, header, root.digest);
    store_bytes(head, spec::k_image_own_at, root.own);
    store_bytes(head, spec::k_mac_value_at, TRY(seal.header_mac(head, spec::MacDomain::ImageHeader)));
    return head;
}

Result<OpenedImageHeader> open_image_header(Bytes head, ExpectedFile const& expected,
                                            crypto::DataEncryptionKey const* dek, std::filesystem::path const& path) {
    OpenedImageHeader opened;
    opened.header = TRY(parse_data_header(head, path));
    head = head.first(spec::k_header_size);
    auto seal = TRY(FileSeal::create(dek, opened.header.file));
    TRY(check_header(seal, opened.header, head, expected, dek, spec::Layout::Image, path));
    auto const digest = head.subspan(spec::k_root_at, opened.root.digest.size());
    std::memcpy(opened.root.digest.data(), digest.data(), digest.size());
    auto const own = head.subspan(spec::k_image_own_at, spec::k_image_own_size);
    opened.root.own.assign(own.begin(), own.end());
    return opened;
}

} // namespace coffer::vmm
