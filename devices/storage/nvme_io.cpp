#include "devices/storage/nvme_io.hpp"

#include <array>
#include <cstdlib>
#include <utility>

#include "base/log.hpp"

namespace coffer::devices::nvme {

namespace {
void log_host_error(Error const& error) {
    static log::RateLimit limit;
    if (limit.allow()) log::error("nvme: {}", error.message());
}
} // namespace

void IoWorker::FreeDeleter::operator()(std::byte* memory) const noexcept {
    std::free(memory);
}

IoWorker::IoWorker(BlockBackend& backend, GuestMemory& memory, std::function<void()> notify)
    : m_backend(backend), m_memory(memory), m_notify(std::move(notify)), m_thread([this] { run(); }) {}

IoWorker::~IoWorker() {
    {
        std::lock_guard lock(m_mutex);
        m_stopping = true;
        m_queue.clear();
    }
    m_work.notify_all();
    m_thread.join();
}

void IoWorker::submit(IoRequest const& request) {
    {
        std::lock_guard lock(m_mutex);
        m_queue.push_back(request);
    }
    m_work.notify_one();
}

std::vector<IoResult> IoWorker::collect() {
    std::lock_guard lock(m_mutex);
    return std::exchange(m_results, {});
}

void IoWorker::cancel() {
    std::lock_guard lock(m_mutex);
    m_queue.clear();
    m_results.clear();
    m_cancelled = m_busy;
}

bool IoWorker::idle() const {
    std::lock_guard lock(m_mutex);
    return m_queue.empty() && !m_busy;
}

void IoWorker::wait_idle() {
    std::unique_lock lock(m_mutex);
    m_idle.wait(lock, [this] { return m_queue.empty() && !m_busy; });
}

void IoWorker::run() noexcept {
    std::unique_lock lock(m_mutex);
    for (;;) {
        m_work.wait(lock, [this] { return m_stopping || !m_queue.empty(); });
        if (m_stopping) return;
        IoRequest request = m_queue.front();
        m_queue.pop_front();
        m_busy = true;
        lock.unlock();
        Status status = execute(request);
        lock.lock();
        m_busy = false;
        if (!std::exchange(m_cancelled, false)) m_results.push_back({request, status});
        if (m_queue.empty()) m_idle.notify_all();
        lock.unlock();
        m_notify();
        lock.lock();
    }
}

Status IoWorker::execute(IoRequest const& request) {
    switch (request.kind) {
    case IoRequest::Kind::Read:
    case IoRequest::Kind::Write: return transfer(request);
    case IoRequest::Kind::Flush:
    case IoRequest::Kind::Shutdown: return flush();
    case IoRequest::Kind::WriteZeroes: {
        if (auto zeroed = m_backend.write_zeroes(request.first, request.size); !zeroed) {
            log_host_error(zeroed.error());
            return Status::WriteFault;
        }
        return request.durable ? flush() : Status::Success;
    }
    case IoRequest::Kind::Deallocate: return deallocate(request);
    }
    return Status::InternalError;
}

Status IoWorker::flush() {
    if (auto flushed = m_backend.flush(); !flushed) {
        log_host_error(flushed.error());
        return Status::WriteFault;
    }
    return Status::Success;
}

MutBytes IoWorker::bounce(size_t size) {
    if (!m_bounce) m_bounce.reset(static_cast<std::byte*>(std::aligned_alloc(k_page_size, k_max_transfer)));
    if (!m_bounce) return {};
    return {m_bounce.get(), size};
}

// One extent is handed to the backend as it lies in guest memory; scattered pages go through one bounce buffer, which
// costs a copy and saves a system call a page.
Status IoWorker::transfer(IoRequest const& request) {
    Status status = resolve_prps(m_memory, request.prp1, request.prp2, request.size, m_extents);
    if (status != Status::Success) return status;
    bool reading = request.kind == IoRequest::Kind::Read;
    MutBytes direct = m_extents.size() == 1 ? m_memory.span(m_extents[0].first, m_extents[0].size) : MutBytes{};
    MutBytes buffer = direct.empty() ? bounce(request.size) : direct;
    if (buffer.empty()) return Status::InternalError;
    if (!reading && direct.empty() && !copy_from_guest(m_memory, m_extents, buffer)) return Status::DataTransferError;
    auto done = reading ? m_backend.read(request.first, buffer) : m_backend.write(request.first, buffer);
    // A failed read into guest memory may have changed part of it.
    if (reading && !direct.empty()) m_memory.written(m_extents[0].first, m_extents[0].size);
    if (!done) {
        log_host_error(done.error());
        return reading ? Status::UnrecoveredReadError : Status::WriteFault;
    }
    if (reading && direct.empty() && !copy_to_guest(m_memory, m_extents, buffer)) return Status::DataTransferError;
    return request.durable ? flush() : Status::Success;
}

Status IoWorker::deallocate(IoRequest const& request) {
    std::array<DatasetRange, k_dsm_max_ranges> ranges;
    MutBytes raw = std::as_writable_bytes(std::span(ranges)).first(request.ranges * sizeof(DatasetRange));
    Status status = resolve_prps(m_memory, request.prp1, request.prp2, raw.size(), m_extents);
    if (status != Status::Success) return status;
    if (!copy_from_guest(m_memory, m_extents, raw)) return Status::DataTransferError;
    uint64_t blocks = m_backend.size() >> k_lba_shift;
    for (unsigned i = 0; i < request.ranges; ++i)
        if (ranges[i].first > blocks || ranges[i].blocks > blocks - ranges[i].first) return Status::LbaOutOfRange;
    for (unsigned i = 0; i < request.ranges; ++i) {
        if (ranges[i].blocks == 0) continue;
        auto done = m_backend.discard(ranges[i].first << k_lba_shift, uint64_t{ranges[i].blocks} << k_lba_shift);
        if (!done) {
            log_host_error(done.error());
            return Status::WriteFault;
        }
    }
    return Status::Success;
}

} // namespace coffer::devices::nvme
