// SIGINT, SIGTERM and SIGHUP as events of the I/O loop.
#pragma once

#include <functional>

#include "base/file.hpp"
#include "vmm/machine/io_loop.hpp"

namespace coffer::vmm {

class StopSignals {
public:
    // Blocks them in the calling thread, and so in all threads it makes later.
    static Result<std::unique_ptr<StopSignals>> create();
    // `on_signal` runs on the I/O thread under the device lock.
    void watch(IoLoop& loop, std::function<void(int)> on_signal);

private:
    explicit StopSignals(UniqueFd fd) : m_fd(std::move(fd)) {}
    UniqueFd m_fd;
};

} // namespace coffer::vmm
