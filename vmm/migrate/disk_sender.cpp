#include "vmm/migrate/disk_sender.hpp"

#include <algorithm>
#include <fcntl.h>
#include <sys/stat.h>

#include "vmm/disk/disk_seal.hpp"
#include "vmm/home/file_copy.hpp"

namespace coffer::vmm::migrate {

namespace {

constexpr uint64_t k_run = DirtyBlocks::k_block_size; // is zeros, or is not

Result<UniqueFd> open_to_read(DiskFile const& file) {
    // An image outside of the home may be named by a link.
    return open_file(file.path, O_RDONLY | (file.message.disk == 0 ? O_NOFOLLOW : 0));
}

Result<struct stat> look_at(int fd, DiskFile const& file) {
    struct stat info {};
    if (::fstat(fd, &info) != 0) return errno_error(errno, fmt::format("cannot look at {}", file.path.native()));
    return info;
}

} // namespace

Result<std::unique_ptr<DiskSender>> DiskSender::create(Stream& stream, std::vector<DiskFile> files, Options options) {
    std::unique_ptr<DiskSender> sender(new DiskSender(stream, {}, std::move(options)));
    for (auto& file : files) {
        if (file.dirty) TRY(file.dirty->start());
        sender->m_files.push_back(std::move(file)); // from here on it is stopped in the end
    }
    return sender;
}

DiskSender::DiskSender(Stream& stream, std::vector<DiskFile> files, Options options)
    : m_stream(stream), m_files(std::move(files)), m_options(std::move(options)), m_buffer(k_max_chunk) {}

DiskSender::~DiskSender() {
    for (auto const& file : m_files)
        if (file.dirty) file.dirty->stop();
}

uint64_t DiskSender::remaining() const {
    uint64_t bytes = 0;
    for (auto const& file : m_files)
        if (file.dirty) bytes += file.dirty->bytes();
    return bytes;
}

void DiskSender::advance(uint64_t bytes) {
    m_progress.done += bytes;
    m_progress.total = std::max(m_progress.done, m_progress.total);
    if (m_options.progress) m_options.progress(m_progress);
}

Result<void> DiskSender::send_run(DiskFile const& file, uint64_t offset, Bytes run, bool zeros) {
    TRY(m_stream.send(FilePartMessage{file.message.disk, file.message.name, offset, run.size(), zeros}));
    if (zeros) return {};
    TRY(m_stream.send(MessageType::FileData, run));
    m_report.bytes += run.size();
    m_progress.bytes += run.size();
    return {};
}

// `zeros`: they may be something else at the other end.
Result<void> DiskSender::send_range(DiskFile const& file, int fd, FileRange const& range, bool zeros) {
    for (uint64_t at = range.offset; at < range.offset + range.size;) {
        if (m_options.cancelled && m_options.cancelled())
            return make_error(ErrorCode::Cancelled, "sending the VM's disks was given up");
        auto const piece =
            MutBytes(m_buffer).first(std::min<uint64_t>(m_buffer.size(), range.offset + range.size - at));
        TRY(pread_all(fd, piece, at, file.path));
        auto is_zero = [&](uint64_t from) {
            return all_zero(piece.subspan(from, std::min(k_run, piece.size() - from)));
        };
        for (uint64_t begin = 0; begin < piece.size();) {
            bool const zero = is_zero(begin);
            uint64_t end = begin + k_run;
            while (end < piece.size() && is_zero(end) == zero) end += k_run;
            end = std::min<uint64_t>(end, piece.size());
            if (!zero || zeros) TRY(send_run(file, at + begin, piece.subspan(begin, end - begin), zero));
            begin = end;
        }
        at += piece.size();
        advance(piece.size());
    }
    return {};
}

Result<void> DiskSender::send_all() {
    for (auto const& file : m_files) {
        auto const fd = TRY(open_to_read(file));
        auto const info = TRY(look_at(fd.get(), file));
        // A block device tells nothing of holes.
        m_progress.total += S_ISREG(info.st_mode)
                                ? std::min(file.message.size, static_cast<uint64_t>(info.st_blocks) * 512)
                                : file.message.size;
    }
    for (auto const& file : m_files) {
        auto const fd = TRY(open_to_read(file));
        auto const info = TRY(look_at(fd.get(), file));
        auto message = file.message;
        message.in_parts = true;
        TRY(m_stream.send(message));
        auto send = [&](uint64_t offset, uint64_t size) { return send_range(file, fd.get(), {offset, size}, false); };
        if (S_ISREG(info.st_mode))
            TRY(for_each_data_piece(fd.get(), file.path, file.message.size, k_max_chunk, send));
        else
            TRY(send(0, file.message.size));
    }
    return {};
}

Result<void> DiskSender::send_written() {
    m_progress.total = remaining();
    for (auto const& file : m_files) {
        if (!file.dirty) continue;
        auto const ranges = file.dirty->take();
        if (ranges.empty()) continue;
        auto const fd = TRY(open_to_read(file));
        for (auto const& range : ranges) TRY(send_range(file, fd.get(), range, true));
    }
    return {};
}

Result<DiskRoundReport> DiskSender::send_round() {
    auto const begun = monotonic_now();
    m_progress = {.round = m_progress.round + 1, .bytes = m_progress.bytes};
    m_report = {.round = m_progress.round};
    TRY(m_progress.round == 1 ? send_all() : send_written());
    m_report.remaining = remaining();
    m_report.duration = monotonic_now() - begun;
    return m_report;
}

} // namespace coffer::vmm::migrate
