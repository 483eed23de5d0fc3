#include "vmm/machine/stop_signals.hpp"

#include <cerrno>
#include <csignal>
#include <pthread.h>
#include <sys/signalfd.h>
#include <unistd.h>

namespace coffer::vmm {

Result<std::unique_ptr<StopSignals>> StopSignals::create() {
    sigset_t set;
    sigemptyset(&set);
    for (int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, number);
    if (int failed = ::pthread_sigmask(SIG_BLOCK, &set, nullptr)) return errno_error(failed, "cannot block signals");
    UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!fd.valid()) return errno_error(errno, "cannot make a signalfd");
    return std::unique_ptr<StopSignals>(new StopSignals(std::move(fd)));
}

void StopSignals::watch(IoLoop& loop, std::function<void(int)> on_signal) {
    loop.watch_readable(m_fd.get(), [fd = m_fd.get(), on_signal = std::move(on_signal)] {
        signalfd_siginfo info{};
        if (::read(fd, &info, sizeof info) == sizeof info) on_signal(static_cast<int>(info.ssi_signo));
    });
}

} // namespace coffer::vmm
