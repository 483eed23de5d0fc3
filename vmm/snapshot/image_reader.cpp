#include <algorithm>
#include <bit>

#include <fcntl.h>
#include <zstd.h>

#include "crypto/secret.hpp"
#include "vmm/snapshot/image_cipher.hpp"
#include "vmm/snapshot/machine_image.hpp"

namespace coffer::vmm {

namespace {

namespace spec = image_spec;

Error changed(std::filesystem::path const& path, std::string_view what) {
    return make_error(ErrorCode::Integrity,
                      "{}: {}: the file was changed, or is damaged. Put an intact copy of the whole home back, or drop "
                      "the saved machine",
                      path.native(), what);
}

uint64_t clusters_for(uint64_t size) noexcept {
    return (size + spec::k_cluster - 1) / spec::k_cluster;
}

ImageEntry decode_entry(Bytes bytes) {
    ImageEntry entry;
    entry.offset = load_le<uint64_t>(bytes, spec::k_entry_offset_at);
    entry.size = load_le<uint32_t>(bytes, spec::k_entry_size_at);
    entry.pages = load_le<uint16_t>(bytes, spec::k_entry_pages_at);
    entry.flags = load_le<uint16_t>(bytes, spec::k_entry_flags_at);
    std::copy_n(bytes.begin() + spec::k_entry_tag_at, entry.tag.size(), entry.tag.begin());
    return entry;
}

bool is_sound(ImageEntry const& entry, uint64_t end) noexcept {
    if (entry.pages == 0) return true;
    size_t packed = static_cast<size_t>(std::popcount(entry.pages)) * spec::k_page;
    bool compressed = entry.flags & spec::k_flag_zstd;
    constexpr uint16_t k_known = spec::k_flag_zstd | spec::k_max_writing << spec::k_writing_shift;
    return !(entry.flags & ~k_known) && entry.size >= 16 && entry.size <= packed &&
           (compressed || entry.size == packed) && entry.offset >= home_spec::data::k_header_size &&
           entry.offset <= end && entry.size <= end - entry.offset;
}

} // namespace

Result<ImageTable> read_image_table(int fd, OpenedImage const& image) {
    auto const& path = image.path;
    Bytes own = image.root.own;
    if (own.size() < spec::k_own_size || !std::equal(spec::k_magic.begin(), spec::k_magic.end(), own.begin()))
        return changed(path, "it is no saved machine");
    if (auto version = load_le<uint32_t>(own, spec::k_version_at); version != spec::k_version)
        return make_error(ErrorCode::Unsupported,
                          "{}: the saved machine has format version {}, and this coffer knows version {}",
                          path.native(), version, spec::k_version);
    ImageTable table;
    table.state_size = load_le<uint64_t>(own, spec::k_state_size_at);
    table.memory_size = load_le<uint64_t>(own, spec::k_memory_size_at);
    table.at = load_le<uint64_t>(own, spec::k_table_at);
    auto count = load_le<uint64_t>(own, spec::k_cluster_count_at);
    uint64_t const file_size = home_spec::data::k_header_size + image.header.content_size;
    uint64_t const most = clusters_for(spec::k_max_state) + clusters_for(spec::k_max_memory);
    if (load_le<uint32_t>(own, spec::k_cluster_size_at) != spec::k_cluster || table.state_size > spec::k_max_state ||
        table.memory_size > spec::k_max_memory || count > most ||
        count < clusters_for(table.state_size) + clusters_for(table.memory_size) ||
        count > clusters_for(spec::k_max_state) + clusters_for(table.memory_size) ||
        table.at < home_spec::data::k_header_size || table.at > file_size ||
        file_size - table.at != count * spec::k_entry)
        return changed(path, "its header is malformed");
    table.state_clusters = count - clusters_for(table.memory_size);
    // Read while the table is, and most likely in front: advice only.
    ::posix_fadvise(fd, home_spec::data::k_header_size,
                    static_cast<off_t>(table.state_size + size_t{16} * spec::k_cluster), POSIX_FADV_WILLNEED);
    ByteVector bytes(count * spec::k_entry);
    auto read = pread_all(fd, bytes, table.at, path);
    if (!read && read.error().code() == ErrorCode::Corrupt) return changed(path, "it is too short");
    TRY(std::move(read));
    if (!crypto::equal_in_constant_time(TRY(crypto::sha256({bytes})), image.root.digest))
        return changed(path, "its table fails authentication");
    table.entries.resize(count);
    for (uint64_t i = 0; i < count; ++i) {
        table.entries[i] = decode_entry(Bytes(bytes).subspan(i * spec::k_entry, spec::k_entry));
        if (!is_sound(table.entries[i], table.at)) return changed(path, "its table is malformed");
    }
    return table;
}

ByteVector encode_image_table(std::vector<ImageEntry> const& entries) {
    ByteVector bytes(entries.size() * spec::k_entry);
    for (size_t i = 0; i < entries.size(); ++i) {
        MutBytes to = MutBytes(bytes).subspan(i * spec::k_entry, spec::k_entry);
        auto const& entry = entries[i];
        store_le<uint64_t>(to, spec::k_entry_offset_at, entry.offset);
        store_le<uint32_t>(to, spec::k_entry_size_at, entry.size);
        store_le<uint16_t>(to, spec::k_entry_pages_at, entry.pages);
        store_le<uint16_t>(to, spec::k_entry_flags_at, entry.flags);
        std::copy(entry.tag.begin(), entry.tag.end(), to.begin() + spec::k_entry_tag_at);
    }
    return bytes;
}

Result<std::unique_ptr<ImageReader>> ImageReader::open(OpenedImage image) {
    std::unique_ptr<ImageReader> reader(new ImageReader);
    reader->m_fd = TRY(open_file(image.path, O_RDONLY));
    reader->m_table = TRY(read_image_table(reader->m_fd.get(), image));
    reader->m_image = std::move(image);
    return reader;
}

bool ImageReader::is_zero(uint64_t memory_cluster) const noexcept {
    return m_table.entries[m_table.state_clusters + memory_cluster].pages == 0;
}

Result<ByteVector> ImageReader::read_state() {
    auto worker = TRY(Worker::create(*this));
    ByteVector state(m_table.state_size);
    for (uint64_t cluster = 0; cluster < clusters_for(m_table.state_size); ++cluster) {
        auto content = TRY(worker.read_any(cluster));
        auto to = MutBytes(state).subspan(cluster * spec::k_cluster);
        if (!content.empty()) std::copy_n(content.begin(), std::min(content.size(), to.size()), to.begin());
    }
    return state;
}

struct ImageReader::Worker::Parts {
    ImageReader const& image;
    ClusterCipher cipher;
    ByteVector stored = ByteVector(spec::k_cluster);
    ByteVector packed = ByteVector(spec::k_cluster);
    ByteVector content = ByteVector(spec::k_cluster);
};

ImageReader::Worker::Worker() = default;
ImageReader::Worker::Worker(Worker&&) noexcept = default;
ImageReader::Worker::~Worker() {
    if (!m_parts) return;
    for (auto* buffer : {&m_parts->stored, &m_parts->packed, &m_parts->content}) crypto::wipe_bytes(*buffer);
}

Result<ImageReader::Worker> ImageReader::Worker::create(ImageReader const& image) {
    auto const& keys = image.m_image.keys;
    Worker worker;
    worker.m_parts.reset(new Parts{image, TRY(ClusterCipher::create(keys ? &*keys : nullptr))});
    return worker;
}

Result<Bytes> ImageReader::Worker::read(uint64_t memory_cluster) {
    COFFER_ASSERT(memory_cluster < m_parts->image.memory_clusters());
    return read_any(m_parts->image.m_table.state_clusters + memory_cluster);
}

Result<Bytes> ImageReader::Worker::read_any(uint64_t cluster) {
    auto& parts = *m_parts;
    auto const& image = parts.image;
    auto const& entry = image.m_table.entries[cluster];
    if (entry.pages == 0) return Bytes{};
    MutBytes plain = MutBytes(parts.stored).first(entry.size);
    auto read = pread_all(image.m_fd.get(), plain, entry.offset, image.m_image.path);
    if (!read && read.error().code() == ErrorCode::Corrupt) return changed(image.m_image.path, "it is too short");
    TRY(std::move(read));
    if (!TRY(parts.cipher.open(entry.unit_of(cluster), entry.tag, plain)))
        return changed(image.m_image.path, fmt::format("its cluster {} fails authentication", cluster));
    size_t packed = static_cast<size_t>(std::popcount(entry.pages)) * spec::k_page;
    if (entry.flags & spec::k_flag_zstd) {
        size_t size = ZSTD_decompress(parts.packed.data(), packed, plain.data(), plain.size());
        if (ZSTD_isError(size) || size != packed)
            return changed(image.m_image.path, fmt::format("its cluster {} cannot be decompressed", cluster));
        plain = MutBytes(parts.packed).first(packed);
    }
    if (entry.pages == 0xFFFF) return Bytes(plain);
    size_t from = 0;
    for (size_t page = 0; page < spec::k_pages_in_cluster; ++page) {
        auto to = parts.content.begin() + static_cast<std::ptrdiff_t>(page * spec::k_page);
        if (entry.pages >> page & 1) {
            std::copy_n(plain.begin() + static_cast<std::ptrdiff_t>(from), spec::k_page, to);
            from += spec::k_page;
        } else {
            std::fill_n(to, spec::k_page, std::byte{0});
        }
    }
    return Bytes(parts.content);
}

} // namespace coffer::vmm
