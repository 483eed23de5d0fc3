#include "vmm/machine/moving_run.hpp"

#include "base/log.hpp"
#include "vmm/disk/disk_move.hpp"
#include "vmm/home/open_home_move.hpp"

namespace coffer::vmm {

namespace {

Result<HomeRoot> root_of(control::MoveRequest const& request) {
    HomeRoot root{request.root, request.state};
    if (!root.root.is_absolute() || !root.state.is_absolute())
        return make_error(ErrorCode::InvalidArgument, "a root is named by absolute paths");
    return root;
}

// Progress, and whether to go on, from a client's thread.
MoveProgress progress_to(control::Conversation& with, std::string what) {
    return [&with, what = std::move(what)](uint64_t done, uint64_t total) -> Result<void> {
        with.progress(done, total, what);
        if (with.cancelled()) return make_error(ErrorCode::Cancelled, "the move was given up");
        return {};
    };
}

// The same from the owner's.
MoveProgress progress_to(ImageOptions const& watched) {
    return [&watched](uint64_t done, uint64_t total) -> Result<void> {
        watched.progress(done, total);
        if (watched.cancelled()) return make_error(ErrorCode::Cancelled, "the move was given up");
        return {};
    };
}

} // namespace

void MovingRun::serve(control::Server& server) {
    m_server = &server;
    server.on<control::MoveRequest>(
        [this](control::MoveRequest const& request, control::Conversation& with) { return move(request, with); });
}

Result<control::MoveAnswer> MovingRun::move(control::MoveRequest const& request, control::Conversation& with) {
    auto const to = TRY(root_of(request));
    auto const header = m_home.header();
    if ((header ? header->provider : Uuid()) != request.provider)
        return make_error(ErrorCode::Busy, "the home went to another key provider meanwhile: try again");
    m_saved.finish_memory(); // which lies in the home
    auto going = TRY(OpenHomeMove::begin(m_home, to));
    DiskMove disks(m_disks);
    auto const others = disks.names();
    control::MoveAnswer answer;

    TRY(disks.copy(going.folder(), progress_to(with, "copying disks")));
    TRY(going.copy(others, progress_to(with, "copying the home")));
    auto const rounds =
        TRY(disks.copy_rounds(progress_to(with, "copying what the guest wrote to its disks meanwhile")));
    answer.rounds = rounds.count;
    answer.bytes = rounds.bytes;

    auto const switch_over = [&](ImageOptions const& watched) -> Result<void> {
        auto const begun = monotonic_now();
        {
            std::lock_guard lock(m_machine.loop().device_lock());
            TRY(m_hooks.may_move());
        }
        TRY(m_machine.platform().flush());
        TRY(m_machine.platform().drain());
        m_saved.let_go_of_image();
        auto const told = progress_to(watched);
        auto const copy_rest = [&]() -> Result<void> {
            answer.bytes += TRY(disks.copy_rest(told));
            return {};
        };
        // First of all, since without it the VM could not be reached.
        auto const from = m_home.location();
        TRY(m_server->move_to(going.target()));
        auto finished = going.finish(others, copy_rest, told);
        if (!finished) {
            if (auto back = m_server->move_to(from); !back) log::warning("{}", back.error().message());
        }
        if (going.is_lost()) {
            std::lock_guard lock(m_machine.loop().device_lock());
            m_hooks.lost(finished.error());
        }
        TRY(std::move(finished));
        disks.go_over(going.target().folder());
        answer.stopped_us = static_cast<uint64_t>((monotonic_now() - begun) / 1000);
        return {};
    };
    TRY(m_saved.while_paused(with, switch_over, "switching over"));
    if (auto removed = going.remove_old(); !removed) answer.left = removed.error().message();
    log::info("the home has moved to {}", to.root.native());
    return answer;
}

} // namespace coffer::vmm
