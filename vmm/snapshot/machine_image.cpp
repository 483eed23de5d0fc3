#include "vmm/snapshot/machine_image.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <mutex>
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

struct Job {
    Bytes state;
    std::span<Bytes const> memory;
    ImageWriting const& to;
    ImageOptions const& options;
    DirectFile& file;
    uint64_t clusters;
    uint64_t content_size;

    // Of cluster `number`, of the state or of memory.
    Bytes content(uint64_t number) const noexcept {
        auto piece = [](Bytes part, uint64_t at) {
            return part.subspan(at, std::min<uint64_t>(spec::k_cluster, part.size() - at));
        };
        uint64_t in_state = clusters_for(state.size());
        if (number < in_state) return piece(state, number * spec::k_cluster);
        uint64_t at = (number - in_state) * spec::k_cluster;
        for (Bytes part : memory) {
            if (at < part.size()) return piece(part, at);
            at -= part.size();
        }
        return {};
    }

    std::atomic<uint64_t> next{0};
    std::atomic<uint64_t> done{0};
    std::atomic<bool> stop{false};
    std::vector<ImageEntry> table{};
    std::mutex mutex{};
    std::optional<Error> error{};

    void fail(Error reason) {
        std::lock_guard lock(mutex);
        if (!error) error = std::move(reason);
        stop = true;
    }
};

class Packer {
public:
    Packer(Job& job, ClusterCipher cipher) : m_job(job), m_cipher(std::move(cipher)) {}
    ~Packer() {
        crypto::wipe_bytes(m_packed);
        crypto::wipe_bytes(m_compressed);
    }
    Packer(Packer const&) = delete;
    Packer& operator=(Packer const&) = delete;

    Result<void> run(std::function<void()> const& after_batch) {
        while (!m_job.stop) {
            uint64_t first = m_job.next.fetch_add(k_batch);
            if (first >= m_job.clusters) return write_out();
            uint64_t last = std::min(first + k_batch, m_job.clusters);
            for (uint64_t number = first; number < last; ++number) TRY(pack(number));
            m_job.done += (last - first) * spec::k_cluster;
            if (after_batch) after_batch();
        }
        return {};
    }

private:
    Result<void> pack(uint64_t number) {
        Bytes content = m_job.content(number);
        uint16_t pages = pages_in_use(content);
        if (pages == 0) return {};
        uint16_t flags = 0;
        Bytes plain = choose_form(content, pages, flags);
        if (!m_out.has_room(plain.size())) TRY(write_out());
        m_placed.push_back({number, m_out.size()});
        auto tag = TRY(m_cipher.seal(number, plain, m_out.add(plain.size())));
        m_job.table[number] = {0, static_cast<uint32_t>(plain.size()), pages, flags, tag};
        return {};
    }

    Result<void> write_out() {
        if (m_out.empty()) return {};
        Bytes bytes = m_out.padded();
        uint64_t const at = m_job.file.place(bytes.size());
        for (auto const& one : m_placed) m_job.table[one.cluster].offset = at + one.at;
        TRY(m_job.file.write(bytes, at));
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
        if (!m_job.options.compress) return plain;
        m_compressed.resize(ZSTD_compressBound(plain.size()));
        size_t size = ZSTD_compress(m_compressed.data(), m_compressed.size(), plain.data(), plain.size(), 1);
        constexpr size_t k_least = 16; // of an XTS data unit
        if (ZSTD_isError(size) || size < k_least || size >= plain.size()) return plain;
        flags |= spec::k_flag_zstd;
        return Bytes(m_compressed).first(size);
    }

    Job& m_job;
    ClusterCipher m_cipher;
    ByteVector m_packed;
    ByteVector m_compressed;
    WriteBuffer m_out;
    struct Placed {
        uint64_t cluster;
        size_t at; // in m_out
    };
    std::vector<Placed> m_placed;
};

unsigned thread_count(ImageOptions const& options) {
    if (options.threads != 0) return options.threads;
    return std::clamp(std::thread::hardware_concurrency(), 1U, 4U) + k_waiting_for_the_disk;
}

Result<void> pack_all(Job& job) {
    auto const& options = job.options;
    auto watch = [&] {
        if (options.progress) options.progress(std::min(job.done.load(), job.content_size), job.content_size);
        if (options.cancelled && options.cancelled()) job.stop = true;
    };
    std::vector<std::thread> threads;
    for (unsigned i = 1; i < thread_count(options); ++i)
        threads.emplace_back([&job] {
            auto cipher = ClusterCipher::create(job.to.keys ? &*job.to.keys : nullptr);
            auto packed = cipher ? Packer(job, *std::move(cipher)).run({}) : Result<void>(std::move(cipher).error());
            if (!packed) job.fail(std::move(packed).error());
        });
    auto cipher = ClusterCipher::create(job.to.keys ? &*job.to.keys : nullptr);
    auto packed = cipher ? Packer(job, *std::move(cipher)).run(watch) : Result<void>(std::move(cipher).error());
    if (!packed) job.fail(std::move(packed).error());
    for (auto& thread : threads) thread.join();
    if (job.error) return *std::move(job.error);
    if (job.stop) return make_error(ErrorCode::Cancelled, "saving the machine was given up");
    return {};
}

} // namespace

Result<ImageRoot> write_machine_image(ImageWriting const& to, Bytes state, std::span<Bytes const> memory,
                                      ImageOptions const& options) {
    uint64_t memory_size = 0;
    for (Bytes part : memory) {
        COFFER_ASSERT(memory_size % spec::k_cluster == 0);
        memory_size += part.size();
    }
    if (state.size() > spec::k_max_state || memory_size > spec::k_max_memory)
        return make_error(ErrorCode::Unsupported, "a machine with {} bytes of state and {} of memory cannot be saved",
                          state.size(), memory_size);
    auto file = TRY(DirectFile::create(to.path, home_spec::data::k_header_size));
    Job job{.state = state,
            .memory = memory,
            .to = to,
            .options = options,
            .file = *file,
            .clusters = clusters_for(state.size()) + clusters_for(memory_size),
            .content_size = state.size() + memory_size};
    job.table.resize(job.clusters);
    TRY(pack_all(job));
    auto table = encode_image_table(job.table);
    uint64_t const table_at = TRY(file->finish(table));

    ImageRoot root;
    root.digest = TRY(crypto::sha256({table}));
    root.own.resize(spec::k_own_size);
    std::copy(spec::k_magic.begin(), spec::k_magic.end(), root.own.begin());
    store_le<uint32_t>(root.own, spec::k_version_at, spec::k_version);
    store_le<uint32_t>(root.own, spec::k_cluster_size_at, spec::k_cluster);
    store_le<uint64_t>(root.own, spec::k_state_size_at, state.size());
    store_le<uint64_t>(root.own, spec::k_memory_size_at, memory_size);
    store_le<uint64_t>(root.own, spec::k_table_at, table_at);
    store_le<uint64_t>(root.own, spec::k_cluster_count_at, job.clusters);
    return root;
}

} // namespace coffer::vmm
