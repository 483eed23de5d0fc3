// Stand-ins for what devices need of the machine, for unit, conformance and fuzz tests. Time is moved by hand.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "devices/core/backends.hpp"
#include "devices/core/guest_memory.hpp"
#include "devices/core/irq.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::tests {

// Virtual time that moves only in advance(); timers fire in deadline order. Single-threaded, but for post().
class ManualScheduler final : public devices::Scheduler {
public:
    Nanoseconds now() const noexcept override { return m_now; }
    std::unique_ptr<devices::Timer> make_timer(std::function<void()> callback) override {
        return std::make_unique<ManualTimer>(*this, std::move(callback));
    }
    void post(std::function<void()> task) override {
        std::lock_guard lock(m_tasks_mutex);
        m_tasks.push_back(std::move(task));
    }
    void watch_readable(int fd, std::function<void()> callback) override { m_watches[fd] = std::move(callback); }
    void unwatch(int fd) override { m_watches.erase(fd); }

    void advance(Nanoseconds by) {
        Nanoseconds until = m_now + by;
        for (;;) {
            ManualTimer* next = nullptr;
            for (auto* timer : m_timers)
                if (timer->armed && timer->deadline <= until && (!next || timer->deadline < next->deadline)) next = timer;
            if (!next) break;
            m_now = std::max(m_now, next->deadline);
            next->armed = false;
            next->callback();
        }
        m_now = until;
        run_tasks();
    }
    // Until there are none, those included that tasks post.
    void run_tasks() {
        while (run_tasks_once()) {}
    }
    // Those that are posted now. False: there was none.
    bool run_tasks_once() {
        std::vector<std::function<void()>> tasks;
        {
            std::lock_guard lock(m_tasks_mutex);
            tasks.swap(m_tasks);
        }
        for (auto& task : tasks) task();
        return !tasks.empty();
    }
    void make_readable(int fd) {
        if (auto watch = m_watches.find(fd); watch != m_watches.end()) watch->second();
    }

private:
    struct ManualTimer final : devices::Timer {
        ManualTimer(ManualScheduler& scheduler, std::function<void()> action)
            : owner(scheduler), callback(std::move(action)) {
            owner.m_timers.push_back(this);
        }
        ~ManualTimer() override { std::erase(owner.m_timers, this); }
        ManualTimer(ManualTimer const&) = delete;
        ManualTimer& operator=(ManualTimer const&) = delete;
        void arm(Nanoseconds when) noexcept override {
            deadline = when;
            armed = true;
        }
        void disarm() noexcept override { armed = false; }

        ManualScheduler& owner;
        std::function<void()> callback;
        Nanoseconds deadline = 0;
        bool armed = false;
    };

    Nanoseconds m_now = 0;
    std::vector<ManualTimer*> m_timers;
    std::mutex m_tasks_mutex;
    std::vector<std::function<void()>> m_tasks;
    std::map<int, std::function<void()>> m_watches;
};

// RAM from address 0.
class FakeMemory final : public devices::GuestMemory {
public:
    explicit FakeMemory(size_t size) : m_ram(size) {}
    bool read(GuestPhysAddr from, MutBytes to) const noexcept override {
        if (!fits(from, to.size())) return false;
        std::memcpy(to.data(), m_ram.data() + from.value(), to.size());
        return true;
    }
    bool write(GuestPhysAddr to, Bytes from) noexcept override {
        if (!fits(to, from.size())) return false;
        std::memcpy(m_ram.data() + to.value(), from.data(), from.size());
        return true;
    }
    MutBytes span(GuestPhysAddr first, size_t size) noexcept override {
        if (!fits(first, size)) return {};
        return MutBytes(m_ram).subspan(first.value(), size);
    }
    void written(GuestPhysAddr, size_t) noexcept override {}
    MutBytes ram() noexcept { return m_ram; }

private:
    bool fits(GuestPhysAddr first, size_t size) const noexcept {
        return first.value() <= m_ram.size() && size <= m_ram.size() - first.value();
    }
    ByteVector m_ram;
};

class FakeIrqSink final : public devices::IrqSink {
public:
    void set_line(unsigned gsi, bool asserted) noexcept override {
        if (asserted && !levels[gsi]) ++rises[gsi];
        levels[gsi] = asserted;
    }
    std::map<unsigned, bool> levels;
    std::map<unsigned, unsigned> rises;
};

class FakeMsiSink final : public devices::MsiSink {
public:
    void signal_msi(uint64_t address, uint32_t data) noexcept override { messages.emplace_back(address, data); }
    std::vector<std::pair<uint64_t, uint32_t>> messages;
};

class FakeByteSink final : public devices::ByteSink {
public:
    void write(Bytes bytes) noexcept override { append(content, bytes); }
    ByteVector content;
};

class FakeBlock final : public devices::BlockBackend {
public:
    explicit FakeBlock(size_t size) : content(size) {}
    uint64_t size() const noexcept override { return content.size(); }
    bool read_only() const noexcept override { return is_read_only; }
    Result<void> read(uint64_t offset, MutBytes to) override {
        if (fail) return Error(ErrorCode::Io, "fake block error");
        std::memcpy(to.data(), content.data() + offset, to.size());
        return {};
    }
    Result<void> write(uint64_t offset, Bytes from) override {
        if (fail) return Error(ErrorCode::Io, "fake block error");
        std::memcpy(content.data() + offset, from.data(), from.size());
        return {};
    }
    Result<void> flush() override {
        ++flushes;
        if (fail) return Error(ErrorCode::Io, "fake block error");
        return {};
    }
    ByteVector content;
    unsigned flushes = 0;
    bool is_read_only = false;
    bool fail = false;
};

class FakeMachineControl final : public devices::MachineControl {
public:
    void request_power_off() noexcept override { ++power_offs; }
    void request_reset() noexcept override { ++resets; }
    unsigned power_offs = 0;
    unsigned resets = 0;
};

class FakeNvStore final : public devices::NvStore {
public:
    Result<void> commit(Bytes bytes) override {
        if (fail) return Error(ErrorCode::NoSpace, "fake store is full");
        content.assign(bytes.begin(), bytes.end());
        ++commits;
        return {};
    }
    ByteVector content;
    unsigned commits = 0;
    bool fail = false;
};

}  // namespace coffer::tests
