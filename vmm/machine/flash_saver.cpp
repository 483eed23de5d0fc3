#include "vmm/machine/flash_saver.hpp"

#include "base/log.hpp"

namespace coffer::vmm {

FlashSaver::FlashSaver(devices::Scheduler& scheduler, std::mutex& device_lock, devices::NvStore& store, Bytes flash)
    : m_device_lock(device_lock), m_store(store), m_flash(flash), m_scheduler(scheduler) {
    m_timer = scheduler.make_timer([this] {
        std::lock_guard lock(m_mutex);
        m_requested = true;
        m_wake.notify_one();
    });
    m_thread = std::thread([this] { run(); });
}

FlashSaver::~FlashSaver() {
    {
        std::lock_guard lock(m_mutex);
        m_closing = true;
    }
    m_wake.notify_one();
    m_thread.join();
    std::lock_guard device_lock(m_device_lock);
    m_timer.reset();
}

void FlashSaver::changed() noexcept {
    m_dirty = true;
    m_timer->arm(m_scheduler.now() + k_quiet);
}

Result<void> FlashSaver::flush() {
    return commit_now();
}

Result<void> FlashSaver::commit_now() {
    std::lock_guard commit_lock(m_commit_mutex);
    ByteVector content;
    {
        std::lock_guard device_lock(m_device_lock);
        if (!m_dirty) return {};
        m_dirty = false;
        content.assign(m_flash.begin(), m_flash.end());
    }
    auto committed = m_store.commit(content);
    if (!committed) {
        std::lock_guard device_lock(m_device_lock);
        m_dirty = true;
    }
    return committed;
}

void FlashSaver::run() noexcept {
    std::unique_lock lock(m_mutex);
    for (;;) {
        m_wake.wait(lock, [this] { return m_requested || m_closing; });
        if (m_closing) return;
        m_requested = false;
        lock.unlock();
        if (auto committed = commit_now(); !committed) {
            log::error("UEFI variables are not saved yet: {}", committed.error().message());
            std::lock_guard device_lock(m_device_lock);
            m_timer->arm(m_scheduler.now() + k_ns_per_s);
        }
        lock.lock();
    }
}

} // namespace coffer::vmm
