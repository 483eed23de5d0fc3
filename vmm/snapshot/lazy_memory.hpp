// RAM that is filled from a machine image: at once, or while the guest already runs.
//
// Lazily, by userfaultfd(2): whoever touches a page that is not there yet, a vCPU, a device or the host's kernel on
// behalf of one, waits until its cluster has been read, authenticated and decrypted; a thread in the background brings
// the rest. Faults of the kernel (KVM, and reads of disks into guest memory) come this way too, so descriptors that see
// faults of user mode only are not enough, and are not asked for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "vmm/snapshot/machine_image.hpp"

namespace coffer::vmm {

// Unsupported, with the reason, where this host does not let this process have one.
Result<UniqueFd> open_userfaultfd();

// All of it, before this returns. `memory` is zeros. Integrity where a cluster is not what was written.
Result<void> load_memory(ImageReader const& image, std::span<MutBytes const> memory, ImageOptions const& options);

class LazyMemory {
public:
    // Called once, on a thread of this object, when a page can not be had. Whoever waits for the page waits on: it must
    // not return before the process has been told to end, and nothing may be expected of the guest any more.
    using OnFailure = std::function<void(Error const&)>;

    // Before anything touches `memory`, which is untouched zeros, page-aligned, and outlives this object.
    static Result<std::unique_ptr<LazyMemory>> start(UniqueFd userfaultfd, std::unique_ptr<ImageReader> image,
                                                     std::vector<MutBytes> memory, OnFailure on_failure);
    // When nobody can touch the memory any more, or all of it is there.
    ~LazyMemory();
    LazyMemory(LazyMemory const&) = delete;
    LazyMemory& operator=(LazyMemory const&) = delete;

    // Returns when all of it is there.
    void finish() noexcept;
    // Clusters that were asked for before the background brought them.
    uint64_t faults() const noexcept { return m_faults.load(); }

private:
    enum class State : uint8_t { Absent, Loading, Present };

    LazyMemory(UniqueFd userfaultfd, UniqueFd stop, std::unique_ptr<ImageReader> image, std::vector<MutBytes> memory,
               OnFailure on_failure);
    Result<void> watch_memory();
    void serve_faults() noexcept;
    void fill() noexcept;
    void fail(Error error) noexcept;
    Result<void> bring(ImageReader::Worker& worker, uint64_t cluster);
    MutBytes place(uint64_t cluster) const noexcept;
    std::optional<uint64_t> cluster_at(uint64_t address) const noexcept;
    void wake(MutBytes range) noexcept;

    UniqueFd m_userfaultfd;
    UniqueFd m_stop; // an eventfd
    std::unique_ptr<ImageReader> m_image;
    std::vector<MutBytes> m_memory;
    OnFailure m_on_failure;
    std::vector<std::atomic<State>> m_states;
    std::atomic<uint64_t> m_faults{0};
    std::atomic<bool> m_stopping{false};
    std::atomic<bool> m_failed{false};

    std::mutex m_mutex;
    std::condition_variable m_changed;
    bool m_complete = false; // under m_mutex
    std::thread m_fault_thread;
    std::thread m_fill_thread;
};

} // namespace coffer::vmm
