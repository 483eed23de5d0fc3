#include "vmm/migrate/memory_sender.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include <zstd.h>

#include "crypto/secret.hpp"

namespace coffer::vmm {

namespace {

bool is_zero(Bytes page) noexcept {
    // The first byte is zero and each equals the one before: memcmp is faster than any loop of ours.
    return page[0] == std::byte{0} && std::memcmp(page.data(), page.data() + 1, page.size() - 1) == 0;
}

void append_page(std::vector<PageRun>& runs, uint64_t page) {
    if (!runs.empty() && runs.back().first + runs.back().count == page && runs.back().count != UINT32_MAX)
        ++runs.back().count;
    else
        runs.push_back({page, 1});
}

} // namespace

// Some pages as they will be sent.
struct MemorySender::Packed {
    std::vector<uint64_t> pages; // in; ascending
    ByteVector batch;            // empty where all are zeros
    uint64_t content_pages = 0;
    std::vector<PageRun> zeros;
    std::optional<Error> error;
};

// One a thread.
class MemorySender::Packer {
public:
    Packer(RamPages const& numbers, bool compress) : m_numbers(numbers) {
        if (compress) m_zstd.reset(ZSTD_createCCtx());
    }
    ~Packer() { crypto::wipe_bytes(m_content); }
    Packer(Packer const&) = delete;
    Packer& operator=(Packer const&) = delete;

    void pack(Packed& packed) {
        // The guest may write meanwhile, also between the look at a page and its copy: then the log has the page again.
        m_runs.clear();
        for (uint64_t page : packed.pages) append_page(is_zero(m_numbers.page(page)) ? packed.zeros : m_runs, page);
        for (auto const& run : m_runs) packed.content_pages += run.count;
        if (m_runs.empty()) return;
        auto& batch = packed.batch;
        encode_batch_head(batch, batch_spec::k_content, 0, m_runs);
        size_t const head = batch.size();
        size_t const size = packed.content_pages * k_ram_page;
        if (m_zstd) {
            m_content.resize(size);
            copy_pages(m_content);
            if (!compress(batch, m_content)) batch.insert(batch.end(), m_content.begin(), m_content.end());
        } else {
            batch.resize(head + size);
            copy_pages(MutBytes(batch).subspan(head));
        }
    }

private:
    void copy_pages(MutBytes to) const {
        for (auto const& run : m_runs)
            for (uint64_t page = run.first; page < run.first + run.count; ++page) {
                std::memcpy(to.data(), m_numbers.page(page).data(), k_ram_page);
                to = to.subspan(k_ram_page);
            }
    }
    bool compress(ByteVector& batch, Bytes content) {
        size_t const head = batch.size();
        batch.resize(head + content.size());
        // A result that is not smaller does not fit, which is an error like any other: the content goes as it is.
        size_t const size =
            ZSTD_compressCCtx(m_zstd.get(), batch.data() + head, content.size() - 1, content.data(), content.size(), 1);
        bool const smaller = !ZSTD_isError(size);
        batch.resize(smaller ? head + size : head);
        if (smaller) store_le<uint8_t>(batch, batch_spec::k_flags_at, batch_spec::k_flag_zstd);
        return smaller;
    }

    struct FreeContext {
        void operator()(ZSTD_CCtx_s* context) const noexcept { ZSTD_freeCCtx(context); }
    };

    RamPages const& m_numbers;
    std::unique_ptr<ZSTD_CCtx_s, FreeContext> m_zstd;
    ByteVector m_content;
    std::vector<PageRun> m_runs;
};

// Threads that pack ahead of the one that sends.
class MemorySender::Pool {
public:
    Pool(RamPages const& numbers, bool compress, unsigned threads) : m_numbers(numbers), m_compress(compress) {
        for (unsigned i = 0; i < threads; ++i) m_threads.emplace_back([this] { work(); });
    }
    ~Pool() {
        {
            std::lock_guard lock(m_mutex);
            m_end = true;
        }
        m_changed.notify_all();
        for (auto& thread : m_threads) thread.join();
    }
    Pool(Pool const&) = delete;
    Pool& operator=(Pool const&) = delete;

    size_t room() const { return m_threads.size() * 2 - m_jobs.size(); } // by the sending thread
    bool empty() const { return m_jobs.empty(); }

    void push(std::vector<uint64_t> pages) {
        auto job = std::make_unique<Job>();
        job->packed.pages = std::move(pages);
        std::lock_guard lock(m_mutex);
        m_waiting.push_back(job.get());
        m_jobs.push_back(std::move(job));
        m_changed.notify_all();
    }

    // The oldest, when it is packed.
    Packed pop() {
        std::unique_lock lock(m_mutex);
        m_changed.wait(lock, [this] { return m_jobs.front()->done; });
        Packed packed = std::move(m_jobs.front()->packed);
        m_jobs.pop_front();
        return packed;
    }

private:
    struct Job {
        Packed packed;
        bool done = false;
    };

    void work() {
        Packer packer(m_numbers, m_compress);
        std::unique_lock lock(m_mutex);
        for (;;) {
            m_changed.wait(lock, [this] { return m_end || !m_waiting.empty(); });
            if (m_end) return;
            Job* job = m_waiting.front();
            m_waiting.pop_front();
            lock.unlock();
            packer.pack(job->packed);
            lock.lock();
            job->done = true;
            m_changed.notify_all();
        }
    }

    RamPages const& m_numbers;
    bool m_compress;
    std::mutex m_mutex;
    std::condition_variable m_changed;
    std::deque<std::unique_ptr<Job>> m_jobs; // oldest first; changed by the sending thread alone
    std::deque<Job*> m_waiting;
    bool m_end = false;
    std::vector<std::thread> m_threads;
};

Result<std::unique_ptr<MemorySender>> MemorySender::create(GuestRam& ram, DirtyLog& log, SendBatch send,
                                                           Options options) {
    TRY(log.start());
    return std::unique_ptr<MemorySender>(new MemorySender(ram, log, std::move(send), std::move(options)));
}

MemorySender::MemorySender(GuestRam& ram, DirtyLog& log, SendBatch send, Options options)
    : m_ram(ram), m_log(log), m_send(std::move(send)), m_options(std::move(options)), m_numbers(ram),
      m_pending(m_numbers.count()) {
    m_pending.add_all();
}

MemorySender::~MemorySender() {
    // A log that goes on costs speed, nothing else.
    if (auto stopped = m_log.stop(); !stopped) return;
}

Result<RoundReport> MemorySender::send_round() {
    auto const begun = monotonic_now();
    auto report = TRY(send_pending());
    if (m_options.settle) TRY(m_options.settle());
    TRY(harvest_dirty(m_log, m_ram, m_numbers, m_pending));
    report.remaining = m_pending.count();
    report.duration = monotonic_now() - begun;
    return report;
}

Result<RoundReport> MemorySender::send_rest() {
    auto const begun = monotonic_now();
    TRY(harvest_dirty(m_log, m_ram, m_numbers, m_pending));
    auto report = TRY(send_pending());
    report.duration = monotonic_now() - begun;
    return report;
}

std::vector<uint64_t> MemorySender::next_chunk(uint64_t& from) const {
    std::vector<uint64_t> pages;
    pages.reserve(batch_spec::k_max_pages);
    while (pages.size() < batch_spec::k_max_pages) {
        auto page = m_pending.next(from);
        if (!page) {
            from = m_pending.pages();
            break;
        }
        pages.push_back(*page);
        from = *page + 1;
    }
    return pages;
}

Result<RoundReport> MemorySender::send_pending() {
    COFFER_ASSERT(!m_broken);
    m_broken = true; // until all of it is sent
    RoundReport report;
    report.round = ++m_rounds;
    uint64_t const total = m_pending.count();
    uint64_t done = 0;
    uint64_t from = 0;
    m_zeros.clear();
    auto finish = [&](Packed&& packed) -> Result<void> {
        TRY(send_packed(packed, report));
        done += packed.pages.size();
        for (uint64_t page : packed.pages) m_pending.remove(page);
        crypto::wipe_bytes(packed.batch);
        if (m_options.progress) m_options.progress({report.round, done, total, m_bytes});
        if (m_options.cancelled && m_options.cancelled())
            return make_error(ErrorCode::Cancelled, "sending the VM's memory was given up");
        return {};
    };
    bool const alone = m_options.threads <= 1 || total <= 2 * batch_spec::k_max_pages;
    if (alone) {
        Packer packer(m_numbers, m_options.compress);
        for (;;) {
            Packed packed;
            packed.pages = next_chunk(from);
            if (packed.pages.empty()) break;
            packer.pack(packed);
            TRY(finish(std::move(packed)));
        }
    } else {
        Pool pool(m_numbers, m_options.compress, m_options.threads - 1);
        for (;;) {
            while (pool.room() > 0) {
                auto pages = next_chunk(from);
                if (pages.empty()) break;
                pool.push(std::move(pages));
            }
            if (pool.empty()) break;
            TRY(finish(pool.pop()));
        }
    }
    TRY(send_zeros(report));
    m_broken = false;
    return report;
}

Result<void> MemorySender::send_packed(Packed& packed, RoundReport& report) {
    if (packed.content_pages > 0) TRY(send_batch(packed.batch, report));
    report.pages += packed.content_pages;
    for (auto const& run : packed.zeros) {
        report.zero_pages += run.count;
        if (!m_zeros.empty() && m_zeros.back().first + m_zeros.back().count == run.first &&
            run.count <= UINT32_MAX - m_zeros.back().count)
            m_zeros.back().count += run.count;
        else
            m_zeros.push_back(run);
        if (m_zeros.size() == batch_spec::k_max_runs) TRY(send_zeros(report));
    }
    return {};
}

Result<void> MemorySender::send_zeros(RoundReport& report) {
    if (m_zeros.empty()) return {};
    ByteVector batch;
    encode_batch_head(batch, batch_spec::k_zeros, 0, m_zeros);
    m_zeros.clear();
    return send_batch(batch, report);
}

Result<void> MemorySender::send_batch(Bytes batch, RoundReport& report) {
    m_digest = TRY(crypto::sha256({m_digest, batch}));
    TRY(m_send(batch));
    report.bytes += batch.size();
    m_bytes += batch.size();
    return {};
}

} // namespace coffer::vmm
