// Sources: userfaultfd(2), ioctl_userfaultfd(2); Documentation/admin-guide/mm/userfaultfd.rst of Linux 6.1.
#include "vmm/snapshot/lazy_memory.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.hpp"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00) // Linux 6.1, uapi/linux/userfaultfd.h
#endif

namespace coffer::vmm {

namespace {

namespace spec = image_spec;

uint64_t address_of(MutBytes range) noexcept {
    // SAFETY: the address as a number, which is what the kernel's interface takes.
    return reinterpret_cast<uintptr_t>(range.data());
}

MutBytes cluster_of(std::span<MutBytes const> memory, uint64_t cluster) noexcept {
    uint64_t at = cluster * spec::k_cluster;
    for (MutBytes part : memory) {
        if (at < part.size()) return part.subspan(at, std::min<uint64_t>(spec::k_cluster, part.size() - at));
        at -= part.size();
    }
    return {};
}

Result<void> check_size(ImageReader const& image, std::span<MutBytes const> memory) {
    uint64_t size = 0;
    for (MutBytes part : memory) size += part.size();
    if (size == image.memory_size()) return {};
    return make_error(ErrorCode::Unsupported, "the saved machine has {} bytes of memory, and the VM {}",
                      image.memory_size(), size);
}

void block_signals() noexcept {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

} // namespace

Result<UniqueFd> open_userfaultfd() {
    int made = -1;
    if (auto device = open_file("/dev/userfaultfd", O_RDWR))
        // SAFETY: takes flags, gives a descriptor.
        made = ::ioctl(device->get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (made < 0) made = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    if (made < 0)
        return make_error(ErrorCode::Unsupported,
                          "this host does not permit userfaultfd to this user (give access to /dev/userfaultfd, or set "
                          "vm.unprivileged_userfaultfd)");
    UniqueFd fd(made);
    uffdio_api api{};
    api.api = UFFD_API;
    // SAFETY: reads and writes one uffdio_api.
    if (::ioctl(fd.get(), UFFDIO_API, &api) != 0)
        return make_error(ErrorCode::Unsupported, "this host's userfaultfd speaks another protocol");
    return fd;
}

Result<void> load_memory(ImageReader const& image, std::span<MutBytes const> memory, ImageOptions const& options) {
    TRY(check_size(image, memory));
    uint64_t const clusters = image.memory_clusters();
    std::atomic<uint64_t> next{0};
    std::atomic<bool> stop{false};
    std::mutex mutex;
    std::optional<Error> error;
    auto load = [&](std::function<void(uint64_t)> const& after_each) -> Result<void> {
        auto worker = TRY(ImageReader::Worker::create(image));
        for (uint64_t cluster = 0; !stop && (cluster = next.fetch_add(1)) < clusters;) {
            auto content = TRY(worker.read(cluster));
            auto to = cluster_of(memory, cluster);
            if (!content.empty()) std::memcpy(to.data(), content.data(), to.size());
            if (after_each && cluster % 64 == 0) after_each(cluster);
        }
        return {};
    };
    auto run = [&](std::function<void(uint64_t)> const& after_each) {
        auto loaded = load(after_each);
        if (loaded) return;
        std::lock_guard lock(mutex);
        if (!error) error = std::move(loaded).error();
        stop = true;
    };
    unsigned count = options.threads != 0 ? options.threads : std::clamp(std::thread::hardware_concurrency(), 1U, 4U);
    std::vector<std::thread> threads;
    for (unsigned i = 1; i < count; ++i) threads.emplace_back([&] { run({}); });
    run([&](uint64_t cluster) {
        if (options.progress) options.progress(cluster * spec::k_cluster, image.memory_size());
        if (options.cancelled && options.cancelled()) stop = true;
    });
    for (auto& thread : threads) thread.join();
    if (error) return *std::move(error);
    if (stop) return make_error(ErrorCode::Cancelled, "loading the saved memory was given up");
    return {};
}

Result<std::unique_ptr<LazyMemory>> LazyMemory::start(UniqueFd userfaultfd, std::unique_ptr<ImageReader> image,
                                                      std::vector<MutBytes> memory, OnFailure on_failure) {
    TRY(check_size(*image, memory));
    UniqueFd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!stop.valid()) return errno_error(errno, "cannot make an eventfd");
    std::unique_ptr<LazyMemory> lazy(new LazyMemory(std::move(userfaultfd), std::move(stop), std::move(image),
                                                    std::move(memory), std::move(on_failure)));
    TRY(lazy->watch_memory());
    lazy->m_fault_thread = std::thread([self = lazy.get()] { self->serve_faults(); });
    lazy->m_fill_thread = std::thread([self = lazy.get()] { self->fill(); });
    return lazy;
}

LazyMemory::LazyMemory(UniqueFd userfaultfd, UniqueFd stop, std::unique_ptr<ImageReader> image,
                       std::vector<MutBytes> memory, OnFailure on_failure)
    : m_userfaultfd(std::move(userfaultfd)), m_stop(std::move(stop)), m_image(std::move(image)),
      m_memory(std::move(memory)), m_on_failure(std::move(on_failure)), m_states(m_image->memory_clusters()) {}

LazyMemory::~LazyMemory() {
    m_stopping = true;
    uint64_t one = 1;
    [[maybe_unused]] auto written = ::write(m_stop.get(), &one, sizeof one);
    if (m_fill_thread.joinable()) m_fill_thread.join();
    if (m_fault_thread.joinable()) m_fault_thread.join();
}

Result<void> LazyMemory::watch_memory() {
    for (MutBytes part : m_memory) {
        if (part.empty()) continue;
        uffdio_register watch{};
        watch.range = {address_of(part), part.size()};
        watch.mode = UFFDIO_REGISTER_MODE_MISSING;
        // SAFETY: the range is a mapping of this process that outlives the descriptor.
        if (::ioctl(m_userfaultfd.get(), UFFDIO_REGISTER, &watch) != 0)
            return errno_error(errno, "cannot watch the guest's memory by userfaultfd");
    }
    return {};
}

MutBytes LazyMemory::place(uint64_t cluster) const noexcept {
    return cluster_of(m_memory, cluster);
}

std::optional<uint64_t> LazyMemory::cluster_at(uint64_t address) const noexcept {
    uint64_t before = 0;
    for (MutBytes part : m_memory) {
        uint64_t offset = address - address_of(part);
        if (offset < part.size()) return (before + offset) / spec::k_cluster;
        before += part.size();
    }
    return std::nullopt;
}

void LazyMemory::wake(MutBytes range) noexcept {
    uffdio_range argument{address_of(range), range.size()};
    // SAFETY: a range that is watched; waking nobody is no error.
    ::ioctl(m_userfaultfd.get(), UFFDIO_WAKE, &argument);
}

Result<void> LazyMemory::bring(ImageReader::Worker& worker, uint64_t cluster) {
    auto& state = m_states[cluster];
    auto expected = State::Absent;
    MutBytes const to = place(cluster);
    if (!state.compare_exchange_strong(expected, State::Loading)) {
        // Whoever loads it wakes all that wait; a fault that was told of after that is woken here.
        if (expected == State::Present) wake(to);
        return {};
    }
    auto content = TRY(worker.read(cluster));
    for (size_t at = 0; at < to.size();) {
        int64_t done = 0;
        int result = 0;
        if (content.empty()) {
            uffdio_zeropage zero{};
            zero.range = {address_of(to) + at, to.size() - at};
            // SAFETY: the range is watched, and within one part.
            result = ::ioctl(m_userfaultfd.get(), UFFDIO_ZEROPAGE, &zero);
            done = zero.zeropage;
        } else {
            uffdio_copy copy{};
            copy.dst = address_of(to) + at;
            // SAFETY: read by the kernel within the call.
            copy.src = reinterpret_cast<uintptr_t>(content.data()) + at;
            copy.len = to.size() - at;
            // SAFETY: as above.
            result = ::ioctl(m_userfaultfd.get(), UFFDIO_COPY, &copy);
            done = copy.copy;
        }
        int const failure = errno;
        if (done > 0) at += static_cast<uint64_t>(done);
        if (result == 0 || failure == EAGAIN) continue;
        // No longer watched: all that is not zeros was there before, and zeros come by themselves.
        if (failure == ENOENT && content.empty()) break;
        // A page that is there already would not be the saved one.
        return errno_error(failure, "cannot give the guest its saved memory");
    }
    state.store(State::Present);
    return {};
}

void LazyMemory::fail(Error error) noexcept {
    if (m_failed.exchange(true)) return;
    m_on_failure(error);
}

void LazyMemory::serve_faults() noexcept {
    block_signals();
    ::pthread_setname_np(::pthread_self(), "page-faults");
    auto worker = ImageReader::Worker::create(*m_image);
    if (!worker) return fail(std::move(worker).error());
    std::array<pollfd, 2> watched{pollfd{m_userfaultfd.get(), POLLIN, 0}, pollfd{m_stop.get(), POLLIN, 0}};
    while (!m_stopping && !m_failed) {
        if (::poll(watched.data(), watched.size(), -1) < 0 && errno != EINTR)
            return fail(errno_error(errno, "cannot wait for page faults"));
        uffd_msg message{};
        while (!m_failed && ::read(m_userfaultfd.get(), &message, sizeof message) == sizeof message) {
            if (message.event != UFFD_EVENT_PAGEFAULT) continue;
            auto cluster = cluster_at(message.arg.pagefault.address);
            COFFER_ASSERT(cluster);
            if (m_states[*cluster].load() == State::Absent) ++m_faults;
            if (auto brought = bring(*worker, *cluster); !brought) return fail(std::move(brought).error());
        }
    }
}

void LazyMemory::fill() noexcept {
    block_signals();
    ::pthread_setname_np(::pthread_self(), "memory-restore");
    auto filled = [&]() -> Result<void> {
        auto worker = TRY(ImageReader::Worker::create(*m_image));
        for (uint64_t cluster = 0; cluster < m_states.size() && !m_stopping && !m_failed; ++cluster)
            // Zeros come by themselves once the memory is no longer watched.
            if (!m_image->is_zero(cluster)) TRY(bring(worker, cluster));
        // One that the other thread has in hand is not lost: it waits for no further event.
        for (uint64_t cluster = 0; cluster < m_states.size(); ++cluster)
            while (m_states[cluster].load() == State::Loading && !m_stopping && !m_failed) ::usleep(50);
        if (m_stopping || m_failed) return {};
        for (MutBytes part : m_memory) {
            if (part.empty()) continue;
            uffdio_range range{address_of(part), part.size()};
            // SAFETY: watched since watch_memory().
            if (::ioctl(m_userfaultfd.get(), UFFDIO_UNREGISTER, &range) != 0)
                return errno_error(errno, "cannot end watching the guest's memory");
            // Linux wakes before it takes the watch away, and misses who comes to wait in between (6.18). Nobody does
            // any more: whoever is woken now finds its page, or zeros.
            wake(part);
        }
        return {};
    }();
    if (!filled) return fail(std::move(filled).error());
    if (m_stopping || m_failed) return;
    log::info("all of the saved memory is there; {} times the guest wanted some before", m_faults.load());
    std::lock_guard lock(m_mutex);
    m_complete = true;
    m_changed.notify_all();
}

void LazyMemory::finish() noexcept {
    std::unique_lock lock(m_mutex);
    m_changed.wait(lock, [&] { return m_complete; });
}

} // namespace coffer::vmm
