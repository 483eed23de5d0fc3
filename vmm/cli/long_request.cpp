#include "vmm/cli/long_request.hpp"

#include <csignal>

namespace coffer::cli {

namespace {
volatile std::sig_atomic_t g_cancelled = 0;
}

void watch_for_cancel() {
    g_cancelled = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { g_cancelled = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    for (int number : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(number, &action, nullptr);
}

bool is_cancelled() noexcept {
    return g_cancelled != 0;
}

vmm::control::CallOptions long_call(ProgressLine& line) {
    vmm::control::CallOptions call;
    call.on_progress = [&line](vmm::control::Progress const& progress) {
        line.rename(progress.what);
        line.show(progress.done, progress.total);
    };
    call.cancelled = is_cancelled;
    call.silence_limit = 0;
    return call;
}

} // namespace coffer::cli
