#include "vmm/home/open_home_move.hpp"

#include <algorithm>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/file.hpp"
#include "base/log.hpp"
#include "crypto/random.hpp"
#include "vmm/home/home_base.hpp"
#include "vmm/home/home_files.hpp"

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;

// A disk image that only happens to lie in the home would be left behind with it, or be removed.
Result<void> check_disks(HomeSession const& home) {
    for (auto const& disk : home.config().disks) {
        if (disk.protection != DiskProtection::None) continue;
        std::error_code failed;
        auto const folder = fs::weakly_canonical(home.location().folder(), failed);
        auto const parent = fs::weakly_canonical(disk.path, failed).parent_path();
        if (!failed && parent == folder)
            return make_error(ErrorCode::InvalidArgument,
                              "disk {} lies in the VM's home, and is no part of it: put it elsewhere first", disk.path);
    }
    return {};
}

// The beginning of a file; nothing where there is none.
Result<std::optional<ByteVector>> head_of(fs::path const& path, uint64_t& size) {
    auto fd = open_file(path, O_RDONLY | O_NOFOLLOW);
    if (!fd && fd.error().code() == ErrorCode::NotFound) return std::optional<ByteVector>();
    if (!fd) return std::move(fd).error();
    struct stat info {};
    if (::fstat(fd->get(), &info) != 0) return errno_error(errno, fmt::format("cannot look at {}", path.native()));
    size = static_cast<uint64_t>(info.st_size);
    ByteVector head(std::min<uint64_t>(size, home_spec::data::k_header_size));
    TRY(pread_all(fd->get(), head, 0, path));
    return std::optional(std::move(head));
}

// All files of a home but those of disks begin with what is of one writing alone: a random UUID or salt. Files of disks
// that nobody uses are not written.
Result<bool> is_same_writing(fs::path const& one, fs::path const& other) {
    uint64_t one_size = 0;
    uint64_t other_size = 0;
    auto const first = TRY(head_of(one, one_size));
    auto const second = TRY(head_of(other, other_size));
    return first && second && one_size == other_size && *first == *second;
}

} // namespace

Result<OpenHomeMove> OpenHomeMove::begin(HomeSession& home, HomeRoot const& to) {
    auto const& from = home.location();
    if (from.root.root == to.root)
        return make_error(ErrorCode::InvalidArgument, "VM '{}' is in {} already", from.name, to.root.native());
    TRY(check_disks(home));
    HomeLocation const target{to, from.name};
    auto const record = TRY(read_host_record(from.host_record()));
    TRY(forget_moved(target));
    TRY(check_may_arrive(target, home.config().uuid, record ? record->sequence : 0));
    return OpenHomeMove(home, target, TRY(IncomingHome::begin(target)));
}

Result<void> OpenHomeMove::copy(Others const& others, MoveProgress const& progress) {
    auto files = TRY(list_home_files(m_from.folder()));
    std::erase_if(files, [&](auto const& file) { return others.contains(file.name); });
    auto const copies = TRY(list_home_files(m_copy->folder()));
    for (auto const& copy : copies)
        if (!others.contains(copy.name) && std::ranges::find(files, copy.name, &HomeFileOnDisk::name) == files.end())
            TRY(remove_file(m_copy->folder() / copy.name));
    uint64_t total = 0;
    for (auto const& file : files) total += file.size;
    uint64_t done = 0;
    for (auto const& file : files) {
        auto const from = m_from.folder() / file.name;
        if (!TRY(is_same_writing(from, m_copy->folder() / file.name))) {
            auto copied =
                m_copy->copy_file(file.name, from, [&](uint64_t of_file) { return progress(done + of_file, total); });
            // Dropped meanwhile, by the session.
            if (!copied && copied.error().code() != ErrorCode::NotFound) return copied;
        }
        done += file.size;
        TRY(progress(done, total));
    }
    return {};
}

Result<void> OpenHomeMove::finish(Others const& others, std::function<Result<void>()> const& rest,
                                  MoveProgress const& progress) {
    auto change = [&](HostRecord const& record) -> Result<NewPlace> {
        TRY(copy(others, progress));
        TRY(rest());
        return switch_over(record);
    };
    m_old_lock = TRY(m_home->change_place(change));
    return {};
}

// Nothing of it is left but, at worst, a home that never starts and that the next attempt removes.
void OpenHomeMove::undo() noexcept {
    auto note = [](Result<void> const& done) {
        if (!done) log::warning("left over from a move: {}", done.error().message());
    };
    m_copy.reset();
    m_new_lock.reset();
    note(remove_arriving(m_to, m_id));
    note(MigrationJournal(m_to.root).forget_incoming(m_id));
    note(MigrationJournal(m_from.root).forget_outgoing(m_id));
}

NewPlace OpenHomeMove::lose(Error const& reason) {
    m_lost = true;
    m_new_lock.reset();
    return {m_from, std::nullopt,
            fmt::format("VM '{}' was on its way to {} when its home could not be written ({}), so that it cannot be "
                        "told which of the two homes counts: 'coffer move {} --home-root {}' settles that",
                        m_from.name, m_to.root.root.native(), reason.message(), m_from.name, m_to.root.root.native())};
}

// Whatever the record says, it is to say that the home is here; then no other can start.
Result<NewPlace> OpenHomeMove::stay(HostRecord const& record, Error reason) {
    if (!write_host_record(m_from.host_record(), record)) return lose(reason);
    undo();
    return reason;
}

Result<NewPlace> OpenHomeMove::switch_over(HostRecord const& record) {
    MigrationJournal const here(m_from.root);
    MigrationJournal const there(m_to.root);
    m_id = TRY(crypto::random_uuid());
    auto const prepared = [&]() -> Result<void> {
        m_new_lock = TRY(m_copy->publish(record.vm, record.sequence, m_id, record.encrypted));
        TRY(there.prepare(incoming_move(m_id, record.vm, m_from.name)));
        return here.write_outgoing(outgoing_move(m_id, record.vm, m_from.name, m_to.root));
    }();
    if (!prepared) {
        undo();
        return prepared.error();
    }
    auto gone = record;
    gone.standing = Standing::HandedOver;
    gone.migration = m_id;
    ++gone.sequence;
    if (auto written = write_host_record(m_from.host_record(), gone); !written)
        return stay(record, std::move(written).error());
    if (auto started = there.start(m_id); !started) {
        auto const state = there.abandon(m_id);
        if (!state) return lose(started.error());
        if (*state == IncomingState::Abandoned) return stay(record, std::move(started).error());
    }
    // The journal says as much, where this fails.
    auto arrived = write_host_record(m_to.host_record(), record);
    m_arrived = arrived.has_value();
    if (!arrived) log::warning("{}", arrived.error().message());
    return NewPlace{m_to, std::move(m_new_lock)};
}

Result<void> OpenHomeMove::remove_old() {
    COFFER_ASSERT(m_old_lock);
    TRY(leave_home(m_from, m_id));
    m_old_lock.reset();
    if (m_arrived) TRY(MigrationJournal(m_to.root).forget_incoming(m_id));
    return {};
}

} // namespace coffer::vmm
