#include "vmm/snapshot/machine_image.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <mutex>
#include <numeric>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>
#include <zstd.h>

#include "crypto/mac.hpp"
#include "crypto/secret.hpp"
#include "vmm/snapshot/direct_file.hpp"
#include "vmm/snapshot/image_cipher.hpp"

namespace coffer::vmm {

namespace {

namespace spec = image_spec;

constexpr size_t k_batch = 8;                  // clusters that a thread takes at once
constexpr unsigned k_waiting_for_the_disk = 4; // threads, besides those that encrypt

uint64_t clusters_for(uint64_t size) noexcept {
    return (size + spec::k_cluster - 1) / spec::k_cluster;
}

// Which of a cluster's pages are not all zeros.
uint16_t pages_in_use(Bytes content) noexcept {
    uint16_t pages = 0;
    for (size_t page = 0; page * spec::k_page < content.size(); ++page) {
        auto bytes = content.subspan(page * spec::k_page, std::min(spec::k_page, content.size() - page * spec::k_page));
        // The first byte is zero and each equals the one before: memcmp is faster than any loop of ours.
        bool zero = bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
        if (!zero) pages = static_cast<uint16_t>(pages | 1U << page);
    }
    return pages;
}

} // namespace

// Some clusters, written once by all threads.
class ImageWriter::Pass {
public:
    Pass(ImageWriter& image, Bytes state, bool changing) : m_image(image), m_state(state), m_changing(changing) {}

    void add(uint64_t number) {
        m_numbers.push_back(number);
        m_size += content(number).size();
    }
    // Of the image, by its number in the table.
    Bytes content(uint64_t number) const noexcept {
        if (number >= m_image.m_state_clusters) return m_image.memory_cluster(number - m_image.m_state_clusters);
        uint64_t const at = number * spec::k_cluster;
        return m_state.subspan(at, std::min<uint64_t>(spec::k_cluster, m_state.size() - at));
    }
    // Some that nobody else takes; empty: there are no more.
    std::span<uint64_t const> take() noexcept {
        uint64_t const first = m_next.fetch_add(k_batch);
        if (first >= m_numbers.size()) return {};
        return std::span(m_numbers).subspan(first, std::min<uint64_t>(k_batch, m_numbers.size() - first));
    }
    void fail(Error reason) {
        std::lock_guard lock(m_mutex);
        if (!m_error) m_error = std::move(reason);
        stop = true;
    }

    ImageWriter& image() noexcept { return m_image; }
    bool changing() const noexcept { return m_changing; }
    uint64_t size() const noexcept { return m_size; }
    std::optional<Error>& error() noexcept { return m_error; }

    std::atomic<uint64_t> done{0};
    std::atomic<bool> stop{false};

private:
    ImageWriter& m_image;
    Bytes m_state;
    bool m_changing; // the content, while it is written
    std::vector<uint64_t> m_numbers;
    uint64_t m_size = 0;
    std::atomic<uint64_t> m_next{0};
    std::mutex m_mutex;
    std::optional<Error> m_error;
};

class ImageWriter::Packer {
public:
    Packer(Pass& pass, ImageOptions const& options, ClusterCipher cipher)
        : m_pass(pass), m_image(pass.image()), m_options(options), m_cipher(std::move(cipher)) {}
    ~Packer() {
        crypto::wipe_bytes(m_copy);
        crypto::wipe_bytes(m_packed);
        crypto::wipe_bytes(m_compressed);
    }
    Packer(Packer const&) = delete;
    Packer& operator=(Packer const&) = delete;

    Result<void> run(std::function<void()> const& after_batch) {
        while (!m_pass.stop) {
            auto const numbers = m_pass.take();
            if (numbers.empty()) return write_out();
            for (uint64_t number : numbers) TRY(pack(number));
            m_pass.done += numbers.size() * spec::k_cluster;
            if (after_batch) after_batch();
        }
        return {};
    }

private:
    Result<void> pack(uint64_t number) {
        Bytes content = m_pass.content(number);
        if (m_pass.changing()) {
            m_copy.assign(content.begin(), content.end());
            content = m_copy;
        }
        auto& entry = m_image.m_table[number];
        entry = {};
        uint16_t pages = pages_in_use(content);
        if (pages == 0) return {};
        uint16_t flags = 0;
        Bytes plain = choose_form(content, pages, flags);
        if (!m_out.has_room(plain.size())) TRY(write_out());
        m_placed.push_back({number, m_out.size()});
        auto const unit = ImageEntry::unit(number, m_image.m_writing);
        auto tag = TRY(m_cipher.seal(unit, plain, m_out.add(plain.size())));
        flags = static_cast<uint16_t>(flags | m_image.m_writing << spec::k_writing_shift);
        entry = {0, static_cast<uint32_t>(plain.size()), pages, flags, tag};
        return {};
    }

    Result<void> write_out() {
        if (m_out.empty()) return {};
        Bytes bytes = m_out.padded();
        uint64_t const at = m_image.m_file->place(bytes.size());
        for (auto const& one : m_placed) m_image.m_table[one.cluster].offset = at + one.at;
        TRY(m_image.m_file->write(bytes, at));
        m_placed.clear();
        m_out.clear();
        return {};
    }

    // The pages in use one behind the other, compressed where that is wanted and makes them smaller.
    Bytes choose_form(Bytes content, uint16_t pages, uint16_t& flags) {
        Bytes plain = content;
        bool whole = content.size() == spec::k_cluster && pages == 0xFFFF;
        if (!whole) {
            m_packed.assign(static_cast<size_t>(std::popcount(pages)) * spec::k_page, std::byte{0});
            size_t to = 0;
            for (size_t page = 0; page < spec::k_pages_in_cluster; ++page) {
                if (!(pages >> page & 1)) continue;
                auto bytes = content.subspan(page * spec::k_page);
                bytes = bytes.first(std::min(bytes.size(), spec::k_page));
                std::memcpy(m_packed.data() + to, bytes.data(), bytes.size());
                to += spec::k_page;
            }
            plain = m_packed;
        }
        if (!m_options.compress) return plain;
        m_compressed.resize(ZSTD_compressBound(plain.size()));
        size_t size = ZSTD_compress(m_compressed.data(), m_compressed.size(), plain.data(), plain.size(), 1);
        constexpr size_t k_least = 16; // of an XTS data unit
        if (ZSTD_isError(size) || size < k_least || size >= plain.size()) return plain;
        flags |= spec::k_flag_zstd;
        return Bytes(m_compressed).first(size);
    }

    Pass& m_pass;
    ImageWriter& m_image;
    ImageOptions const& m_options;
    ClusterCipher m_cipher;
    ByteVector m_copy;
    ByteVector m_packed;
    ByteVector m_compressed;
    WriteBuffer m_out;
    struct Placed {
        uint64_t cluster;
        size_t at; // in m_out
    };
    std::vector<Placed> m_placed;
};

namespace {

unsigned thread_count(ImageOptions const& options) {
    if (options.threads != 0) return options.threads;
    return std::clamp(std::thread::hardware_concurrency(), 1U, 4U) + k_waiting_for_the_disk;
}

} // namespace

Result<void> ImageWriter::write(Pass& pass, ImageOptions const& options) {
    COFFER_ASSERT(m_writing <= spec::k_max_writing);
    auto watch = [&] {
        if (options.progress) options.progress(std::min(pass.done.load(), pass.size()), pass.size());
        if (options.cancelled && options.cancelled()) pass.stop = true;
    };
    auto pack = [&](std::function<void()> const& after_batch) {
        auto cipher = ClusterCipher::create(m_to.keys ? &*m_to.keys : nullptr);
        auto packed = cipher ? Packer(pass, options, *std::move(cipher)).run(after_batch)
                             : Result<void>(std::move(cipher).error());
        if (!packed) pass.fail(std::move(packed).error());
    };
    std::vector<std::thread> threads;
    for (unsigned i = 1; i < thread_count(options); ++i) threads.emplace_back([&] { pack({}); });
    pack(watch);
    for (auto& thread : threads) thread.join();
    ++m_writing;
    if (pass.error()) return *std::move(pass.error());
    if (pass.stop) return make_error(ErrorCode::Cancelled, "saving the machine was given up");
    return {};
}

Result<std::unique_ptr<ImageWriter>> ImageWriter::create(ImageWriting const& to, uint64_t state_room,
                                                         std::vector<Bytes> memory) {
    std::unique_ptr<ImageWriter> image(new ImageWriter(to));
    for (Bytes part : memory) {
        COFFER_ASSERT(image->m_memory_size % spec::k_cluster == 0);
        image->m_memory_size += part.size();
    }
    image->m_memory = std::move(memory);
    if (state_room > spec::k_max_state || image->m_memory_size > spec::k_max_memory)
        return make_error(ErrorCode::Unsupported, "a machine with {} bytes of state and {} of memory cannot be saved",
                          state_room, image->m_memory_size);
    image->m_state_clusters = clusters_for(state_room);
    image->m_table.resize(image->m_state_clusters + clusters_for(image->m_memory_size));
    image->m_file = TRY(DirectFile::create(to.path, home_spec::data::k_header_size));
    return image;
}

ImageWriter::~ImageWriter() = default;

Bytes ImageWriter::memory_cluster(uint64_t number) const noexcept {
    uint64_t at = number * spec::k_cluster;
    for (Bytes part : m_memory) {
        if (at < part.size()) return part.subspan(at, std::min<uint64_t>(spec::k_cluster, part.size() - at));
        at -= part.size();
    }
    return {};
}

Result<void> ImageWriter::write_ahead(std::span<uint64_t const> clusters, ImageOptions const& options) {
    Pass pass(*this, {}, true);
    for (uint64_t cluster : clusters) pass.add(m_state_clusters + cluster);
    return write(pass, options);
}

Result<ImageRoot> ImageWriter::finish(Bytes state, std::span<uint64_t const> clusters, ImageOptions const& options) {
    if (clusters_for(state.size()) > m_state_clusters)
        return make_error(ErrorCode::Unsupported, "a machine with {} bytes of state cannot be saved", state.size());
    Pass pass(*this, state, false);
    for (uint64_t cluster = 0; cluster < clusters_for(state.size()); ++cluster) pass.add(cluster);
    for (uint64_t cluster : clusters) pass.add(m_state_clusters + cluster);
    TRY(write(pass, options));
    auto table = encode_image_table(m_table);
    uint64_t const table_at = TRY(m_file->finish(table));

    ImageRoot root;
    root.digest = TRY(crypto::sha256({table}));
    root.own.resize(spec::k_own_size);
    std::copy(spec::k_magic.begin(), spec::k_magic.end(), root.own.begin());
    store_le<uint32_t>(root.own, spec::k_version_at, spec::k_version);
    store_le<uint32_t>(root.own, spec::k_cluster_size_at, spec::k_cluster);
    store_le<uint64_t>(root.own, spec::k_state_size_at, state.size());
    store_le<uint64_t>(root.own, spec::k_memory_size_at, m_memory_size);
    store_le<uint64_t>(root.own, spec::k_table_at, table_at);
    store_le<uint64_t>(root.own, spec::k_cluster_count_at, m_table.size());
    return root;
}

Result<ImageRoot> write_machine_image(ImageWriting const& to, Bytes state, std::span<Bytes const> memory,
                                      ImageOptions const& options) {
    auto image = TRY(ImageWriter::create(to, state.size(), {memory.begin(), memory.end()}));
    uint64_t size = 0;
    for (Bytes part : memory) size += part.size();
    std::vector<uint64_t> all(clusters_for(size));
    std::iota(all.begin(), all.end(), uint64_t{0});
    return image->finish(state, all, options);
}

} // namespace coffer::vmm
