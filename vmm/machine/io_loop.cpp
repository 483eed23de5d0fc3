#include "vmm/machine/io_loop.hpp"

#include <array>
#include <cerrno>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

namespace coffer::vmm {

class IoLoop::LoopTimer final : public devices::Timer {
public:
    LoopTimer(IoLoop& loop, std::function<void()> action) : callback(std::move(action)), m_loop(loop) {}
    ~LoopTimer() override { disarm(); }
    LoopTimer(LoopTimer const&) = delete;
    LoopTimer& operator=(LoopTimer const&) = delete;

    void arm(Nanoseconds deadline) noexcept override {
        std::lock_guard lock(m_loop.m_mutex);
        if (m_is_armed) m_loop.m_armed.erase({m_deadline, this});
        m_deadline = deadline;
        m_is_armed = true;
        auto [position, inserted] = m_loop.m_armed.insert({deadline, this});
        if (inserted && position == m_loop.m_armed.begin()) m_loop.set_timer_fd(deadline);
    }
    void disarm() noexcept override {
        std::lock_guard lock(m_loop.m_mutex);
        // The descriptor may still fire once for nothing: cheaper than a system call for every cancelled timer.
        if (m_is_armed) m_loop.m_armed.erase({m_deadline, this});
        m_is_armed = false;
    }

    std::function<void()> callback;

private:
    friend class IoLoop;
    IoLoop& m_loop;
    Nanoseconds m_deadline = 0;
    bool m_is_armed = false;
};

namespace {

Result<void> add_to_epoll(int epoll, int fd) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) return errno_error(errno, "cannot watch a descriptor");
    return {};
}

// The device lock, when time does not stand still: what the loop would do to devices and RAM while a machine is saved
// would be in one part of it and not in another.
std::unique_lock<std::mutex> lock_when_time_goes_on(std::mutex& mutex, std::atomic<Nanoseconds> const& frozen_at,
                                                    Nanoseconds not_frozen) {
    for (;;) {
        std::unique_lock lock(mutex);
        Nanoseconds frozen = frozen_at.load();
        if (frozen == not_frozen) return lock;
        lock.unlock();
        frozen_at.wait(frozen);
    }
}

void drain(int fd) noexcept {
    uint64_t count = 0;
    // Non-blocking; an empty counter is fine.
    [[maybe_unused]] auto got = ::read(fd, &count, sizeof count);
}

} // namespace

Result<std::unique_ptr<IoLoop>> IoLoop::create() {
    UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
    if (!epoll.valid()) return errno_error(errno, "cannot make an epoll set");
    UniqueFd timer(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    if (!timer.valid()) return errno_error(errno, "cannot make a timer");
    UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake.valid()) return errno_error(errno, "cannot make an eventfd");
    TRY(add_to_epoll(epoll.get(), timer.get()));
    TRY(add_to_epoll(epoll.get(), wake.get()));
    return std::unique_ptr<IoLoop>(new IoLoop(std::move(epoll), std::move(timer), std::move(wake)));
}

IoLoop::IoLoop(UniqueFd epoll, UniqueFd timer, UniqueFd wake)
    : m_epoll(std::move(epoll)), m_timer(std::move(timer)), m_wake(std::move(wake)), m_origin(monotonic_now()) {}

IoLoop::~IoLoop() {
    stop();
}

void IoLoop::start() {
    m_stopping = false;
    m_thread = std::thread([this] { run(); });
}

void IoLoop::stop() noexcept {
    if (!m_thread.joinable()) return;
    m_stopping = true;
    m_frozen_at.store(k_not_frozen);
    m_frozen_at.notify_all();
    uint64_t one = 1;
    [[maybe_unused]] auto written = ::write(m_wake.get(), &one, sizeof one);
    m_thread.join();
}

Nanoseconds IoLoop::now() const noexcept {
    Nanoseconds frozen = m_frozen_at.load();
    return frozen != k_not_frozen ? frozen : monotonic_now() - m_origin.load();
}

void IoLoop::freeze() noexcept {
    m_frozen_at.store(now());
}

void IoLoop::thaw(Nanoseconds step) noexcept {
    std::lock_guard lock(m_mutex);
    m_origin.store(m_origin.load() - step);
    m_frozen_at.store(k_not_frozen);
    m_frozen_at.notify_all();
    if (!m_armed.empty()) set_timer_fd(m_armed.begin()->first);
}

std::unique_ptr<devices::Timer> IoLoop::make_timer(std::function<void()> callback) {
    return std::make_unique<LoopTimer>(*this, std::move(callback));
}

void IoLoop::post(std::function<void()> task) {
    {
        std::lock_guard lock(m_mutex);
        m_tasks.push_back(std::move(task));
    }
    uint64_t one = 1;
    [[maybe_unused]] auto written = ::write(m_wake.get(), &one, sizeof one);
}

void IoLoop::watch_readable(int fd, std::function<void()> callback) {
    std::lock_guard lock(m_mutex);
    bool is_new = !m_watches.contains(fd);
    m_watches[fd] = std::make_shared<std::function<void()>>(std::move(callback));
    if (!is_new) return;
    // A regular file cannot be polled and is always readable: devices never watch one.
    if (auto added = add_to_epoll(m_epoll.get(), fd); !added) m_watches.erase(fd);
}

void IoLoop::unwatch(int fd) {
    std::lock_guard lock(m_mutex);
    if (m_watches.erase(fd) > 0) ::epoll_ctl(m_epoll.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void IoLoop::set_timer_fd(Nanoseconds deadline) noexcept {
    Nanoseconds host = std::max<Nanoseconds>(deadline + m_origin.load(), 1);
    itimerspec spec{};
    spec.it_value.tv_sec = host / k_ns_per_s;
    spec.it_value.tv_nsec = host % k_ns_per_s;
    ::timerfd_settime(m_timer.get(), TFD_TIMER_ABSTIME, &spec, nullptr);
}

void IoLoop::run() noexcept {
    std::array<epoll_event, 16> events{};
    while (!m_stopping) {
        int count = ::epoll_wait(m_epoll.get(), events.data(), static_cast<int>(events.size()), -1);
        if (count < 0 && errno != EINTR) abort_with("epoll_wait failed in the I/O thread");
        for (int i = 0; i < count && !m_stopping; ++i) {
            int fd = events[static_cast<size_t>(i)].data.fd;
            if (fd == m_timer.get()) {
                drain(fd);
                fire_timers();
            } else if (fd == m_wake.get()) {
                drain(fd);
                run_tasks();
            } else {
                auto device_lock = lock_when_time_goes_on(m_device_lock, m_frozen_at, k_not_frozen);
                std::shared_ptr<std::function<void()>> callback;
                {
                    std::lock_guard lock(m_mutex);
                    if (auto watch = m_watches.find(fd); watch != m_watches.end()) callback = watch->second;
                }
                if (callback) (*callback)();
            }
        }
    }
}

void IoLoop::fire_timers() noexcept {
    auto device_lock = lock_when_time_goes_on(m_device_lock, m_frozen_at, k_not_frozen);
    for (;;) {
        LoopTimer* due = nullptr;
        {
            std::lock_guard lock(m_mutex);
            if (m_armed.empty()) return;
            auto [deadline, timer] = *m_armed.begin();
            if (deadline > now()) {
                set_timer_fd(deadline);
                return;
            }
            m_armed.erase(m_armed.begin());
            timer->m_is_armed = false;
            due = timer;
        }
        // A device destroys its timers under the device lock only, so `due` is alive.
        due->callback();
    }
}

void IoLoop::run_tasks() noexcept {
    std::vector<std::function<void()>> tasks;
    {
        std::lock_guard lock(m_mutex);
        tasks.swap(m_tasks);
    }
    auto device_lock = lock_when_time_goes_on(m_device_lock, m_frozen_at, k_not_frozen);
    for (auto& task : tasks) task();
}

} // namespace coffer::vmm
