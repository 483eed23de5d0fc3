#include "vmm/snapshot/snapshot_store.hpp"

#include <algorithm>
#include <cerrno>
#include <set>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "base/log.hpp"
#include "base/tagged.hpp"
#include "crypto/random.hpp"
#include "vmm/home/file_copy.hpp"
#include "vmm/home/home_together.hpp"
#include "vmm/snapshot/machine_state.hpp"

namespace coffer::vmm {

namespace {

constexpr std::string_view k_suspended_image = "snapshot-suspended";
constexpr std::string_view k_disk_copy_prefix = "saved-";

// The home's files as of a snapshot. TPM and disks' keys are absent where the home had none.
struct SavedHome {
    ByteVector config;
    ByteVector nvram;
    ByteVector tpm;
    ByteVector disks;

    template <class V>
    void fields(V& v) {
        v.required(1, config);
        v.required(2, nvram);
        v.required(3, tpm);
        v.required(4, disks);
    }
};

std::string home_file_of(SnapshotRecord const& record) {
    return fmt::format("snapshot-{}.home", record.id.to_string());
}
std::string image_of(SnapshotRecord const& record) {
    return fmt::format("snapshot-{}.machine", record.id.to_string());
}
std::string disk_copy_of(SnapshotRecord const& record, uint32_t number) {
    return fmt::format("{}{}-disk-{}", k_disk_copy_prefix, record.id.to_string(), number);
}

// The disks that a snapshot holds: those that the guest can write.
std::vector<std::filesystem::path> written_disks(VmConfig const& config, std::filesystem::path const& folder) {
    std::vector<std::filesystem::path> paths;
    for (auto const& disk : config.disks)
        if (!disk.read_only) paths.push_back(disk.file(folder));
    return paths;
}

Result<ByteVector> load_or_nothing(HomeSession const& home, HomeFile file) {
    if (!home.has(file)) return ByteVector{};
    return home.load(file);
}

// A name beside the disk for what is to take its place.
std::filesystem::path waiting_beside(std::filesystem::path const& disk, Uuid const& id) {
    return disk.parent_path() / fmt::format(".{}.{}.revert", disk.filename().native(), id.to_string());
}

// `to` is made anew and durable, but for its name; a failed copy is removed.
Result<void> copy_disk(std::filesystem::path const& from, std::filesystem::path const& to,
                       ImageOptions const& options) {
    auto source = TRY(open_file(from, O_RDONLY));
    struct stat info {};
    if (::fstat(source.get(), &info) != 0) return errno_error(errno, fmt::format("cannot look at {}", from.native()));
    if (!S_ISREG(info.st_mode))
        return make_error(ErrorCode::Unsupported,
                          "{} is no regular file, and cannot be kept in a snapshot: snapshots are for disks in files",
                          from.native());
    auto total = static_cast<uint64_t>(info.st_size);
    auto target = TRY(open_file(to, O_RDWR | O_CREAT | O_TRUNC));
    auto copied = copy_file_content(source.get(), from, target.get(), to, [&](uint64_t done) -> Result<void> {
        if (options.progress) options.progress(done, total);
        if (options.cancelled && options.cancelled())
            return make_error(ErrorCode::Cancelled, "copying {} was given up", from.native());
        return {};
    });
    if (!copied) ::unlink(to.c_str());
    return copied;
}

} // namespace

SnapshotRecord const* SnapshotIndex::find(std::string_view tag) const noexcept {
    auto found = std::ranges::find(snapshots, tag, &SnapshotRecord::tag);
    return found == snapshots.end() ? nullptr : &*found;
}

SnapshotRecord const* SnapshotIndex::find(Uuid const& id) const noexcept {
    auto found = std::ranges::find(snapshots, id, &SnapshotRecord::id);
    return found == snapshots.end() ? nullptr : &*found;
}

Result<void> check_tag(std::string_view tag) {
    if (auto named = check_vm_name(std::string(tag)); !named)
        return make_error(ErrorCode::InvalidArgument,
                          "'{}' is no name for a snapshot: 1 to 64 of A-Z a-z 0-9 . _ - that begin with a letter or "
                          "digit",
                          tag);
    return {};
}

Result<SnapshotStore> SnapshotStore::open(HomeSession& home) {
    SnapshotStore store(home);
    if (home.has(HomeFile::Snapshots)) {
        auto content = TRY(home.load(HomeFile::Snapshots));
        if (auto decoded = decode_fields(content, store.m_index); !decoded)
            return make_error(ErrorCode::Integrity, "the home's list of snapshots is malformed: {}",
                              decoded.error().message());
    }
    return store;
}

Result<void> SnapshotStore::write_index(SnapshotIndex index) {
    TRY(m_home.commit(HomeFile::Snapshots, encode_fields(index)));
    m_index = std::move(index);
    return {};
}

// Files that no snapshot names: made before, or deleted after, the commit that counts.
Result<void> SnapshotStore::clean_up() {
    std::set<std::string> named{std::string(k_together_journal)};
    if (suspended()) named.insert(m_index.suspended.image);
    for (auto const& record : m_index.snapshots) {
        named.insert(home_file_of(record));
        named.insert(image_of(record));
        for (uint32_t n = 0; n < record.disks; ++n) named.insert(disk_copy_of(record, n));
    }
    for (auto const& file : m_home.further_files())
        if (!named.contains(file.name)) TRY(m_home.drop_file(file.name));
    std::error_code failed;
    for (auto const& entry : std::filesystem::directory_iterator(m_home.location().folder(), failed)) {
        auto name = entry.path().filename().native();
        if (name.starts_with(k_disk_copy_prefix) && !named.contains(name)) TRY(remove_file(entry.path()));
    }
    return {};
}

Result<void> SnapshotStore::write_image(std::string const& name, MachineSource const& machine,
                                        ImageOptions const& options) {
    auto writing = TRY(m_home.begin_image(name));
    auto root = write_machine_image(writing, machine.state, machine.memory, options);
    auto done = root ? m_home.commit_image(writing, *root) : Result<void>(std::move(root).error());
    if (!done) ::unlink(writing.path.c_str());
    return done;
}

Result<void> SnapshotStore::suspend(MachineSource const& machine, ImageOptions const& options) {
    if (suspended()) return make_error(ErrorCode::AlreadyExists, "the VM is suspended already");
    TRY(clean_up());
    TRY(write_image(std::string(k_suspended_image), machine, options));
    auto index = m_index;
    index.suspended = {std::string(k_suspended_image), wall_clock_seconds(), false};
    auto written = write_index(std::move(index));
    if (!written) (void)m_home.drop_file(k_suspended_image);
    return written;
}

Result<std::unique_ptr<ImageReader>> SnapshotStore::open_suspended() {
    if (!suspended()) return make_error(ErrorCode::NotFound, "the VM is not suspended");
    auto opened = TRY(m_home.open_image(m_index.suspended.image));
    return ImageReader::open(std::move(opened));
}

Result<void> SnapshotStore::end_suspension() {
    if (!suspended()) return {};
    auto index = m_index;
    auto spent = std::exchange(index.suspended, {});
    TRY(write_index(std::move(index)));
    if (spent.keep) return {};
    return m_home.drop_file(spent.image);
}

Result<void> SnapshotStore::copy_disks(SnapshotRecord& record, ImageOptions const& options) {
    auto folder = m_home.location().folder();
    for (auto const& disk : written_disks(m_home.config(), folder)) {
        auto copied = copy_disk(disk, folder / disk_copy_of(record, record.disks), options);
        if (!copied) return std::move(copied).error().with_context("disk");
        ++record.disks;
    }
    return record.disks > 0 ? sync_folder(folder) : Result<void>();
}

void SnapshotStore::remove_files(SnapshotRecord const& record) {
    // What stays after a failure is removed by the next clean_up().
    auto drop = [](Result<void> const& done) {
        if (!done) log::warning("a file of a snapshot is left for later: {}", done.error().message());
    };
    drop(m_home.drop_file(image_of(record)));
    drop(m_home.drop_file(home_file_of(record)));
    for (uint32_t n = 0; n < record.disks; ++n) drop(remove_file(m_home.location().folder() / disk_copy_of(record, n)));
}

Result<SnapshotRecord> SnapshotStore::take(std::string tag, std::string description, MachineSource const* machine,
                                           ImageOptions const& options) {
    if (tag.empty())
        for (size_t number = m_index.snapshots.size() + 1; tag.empty() || m_index.find(tag); ++number)
            tag = fmt::format("snapshot-{}", number);
    TRY(check_tag(tag));
    if (m_index.find(tag)) return make_error(ErrorCode::AlreadyExists, "there is a snapshot '{}' already", tag);
    if (description.size() > k_max_description)
        return make_error(ErrorCode::InvalidArgument, "a description has at most {} bytes", k_max_description);
    if (suspended())
        return make_error(ErrorCode::Busy, "the VM is suspended: resume it, or drop the suspended state with "
                                           "'coffer run --discard-suspended', before a snapshot is taken");
    if (m_index.snapshots.size() >= k_max_snapshots)
        return make_error(ErrorCode::NoSpace, "a VM has at most {} snapshots: delete one first", k_max_snapshots);
    if (m_home.config().tpm != TpmKind::None) TRY(load_tpm(m_home));
    TRY(clean_up());

    SnapshotRecord record;
    record.id = TRY(crypto::random_uuid());
    record.tag = std::move(tag);
    record.description = std::move(description);
    record.parent = m_index.current;
    record.created = wall_clock_seconds();
    record.running = machine != nullptr;
    auto made = [&]() -> Result<void> {
        TRY(copy_disks(record, options));
        if (machine) {
            for (Bytes part : machine->memory) record.memory_size += part.size();
            TRY(write_image(image_of(record), *machine, options));
        }
        SavedHome saved{encode_vm_config(m_home.config()), TRY(m_home.load(HomeFile::Nvram)),
                        TRY(load_or_nothing(m_home, HomeFile::Tpm)), TRY(load_or_nothing(m_home, HomeFile::Disks))};
        TRY(m_home.commit_file(home_file_of(record), encode_fields(std::move(saved))));
        auto index = m_index;
        index.snapshots.push_back(record);
        index.current = record.id;
        return write_index(std::move(index));
    }();
    if (made) return record;
    remove_files(record);
    return std::move(made).error();
}

Result<SnapshotRecord const*> SnapshotStore::find(std::string_view tag) const {
    if (auto const* record = m_index.find(tag)) return record;
    return make_error(ErrorCode::NotFound, "there is no snapshot '{}' of the VM '{}'", tag, m_home.config().name);
}

Result<void> SnapshotStore::check(std::string_view tag) {
    auto const* record = TRY(find(tag));
    SavedHome saved;
    auto saved_bytes = TRY(m_home.load_file(home_file_of(*record)));
    if (!decode_fields(saved_bytes, saved))
        return make_error(ErrorCode::Integrity, "the snapshot '{}' is malformed", tag);
    auto config = TRY(decode_vm_config(saved.config));
    auto folder = m_home.location().folder();
    if (written_disks(config, folder).size() != record->disks)
        return make_error(ErrorCode::Integrity, "the snapshot '{}' has {} copies of disks, and {} disks", tag,
                          record->disks, written_disks(config, folder).size());
    for (uint32_t n = 0; n < record->disks; ++n)
        if (auto copy = folder / disk_copy_of(*record, n); !std::filesystem::exists(copy))
            return make_error(ErrorCode::Integrity, "{} is missing, and the snapshot '{}' needs it", copy.native(),
                              tag);
    if (!record->running) return {};
    auto opened = TRY(m_home.open_image(image_of(*record)));
    auto image = TRY(ImageReader::open(std::move(opened)));
    auto bytes = TRY(image->read_state());
    auto state = TRY(decode_machine_state(bytes));
    if (state.tpm_permanent != saved.tpm)
        return make_error(ErrorCode::Integrity, "the parts of the snapshot '{}' do not belong together", tag);
    return {};
}

Result<SnapshotRecord> SnapshotStore::revert(std::string_view tag, ImageOptions const& options) {
    TRY(check(tag));
    SnapshotRecord const record = *TRY(find(tag));
    TRY(clean_up());
    SavedHome saved;
    auto saved_bytes = TRY(m_home.load_file(home_file_of(record)));
    TRY(decode_fields(saved_bytes, saved));
    auto config = TRY(decode_vm_config(saved.config));

    TogetherChange change;
    auto folder = m_home.location().folder();
    auto disks = written_disks(config, folder);
    auto prepared = [&]() -> Result<void> {
        for (uint32_t n = 0; n < record.disks; ++n) {
            auto waiting = waiting_beside(disks[n], record.id);
            TRY(copy_disk(folder / disk_copy_of(record, n), waiting, options));
            change.moves.push_back({waiting.native(), disks[n].native()});
        }
        return {};
    }();
    if (!prepared) {
        for (auto const& move : change.moves) ::unlink(move.from.c_str());
        return std::move(prepared).error();
    }
    auto index = m_index;
    auto spent = std::exchange(index.suspended, {});
    index.current = record.id;
    if (record.running) index.suspended = {image_of(record), record.created, true};
    auto file = [&](HomeFile which, ByteVector content) {
        change.files.push_back({std::string(file_name(which)), std::move(content)});
    };
    file(HomeFile::Config, std::move(saved.config));
    file(HomeFile::Nvram, std::move(saved.nvram));
    if (!saved.tpm.empty()) file(HomeFile::Tpm, std::move(saved.tpm));
    if (!saved.disks.empty()) file(HomeFile::Disks, std::move(saved.disks));
    file(HomeFile::Snapshots, encode_fields(index));
    change.event = HistoryKind::Reverted;
    change.text = fmt::format("to '{}' ({}), asked for at {}", record.tag, record.id.to_string(), wall_clock_seconds());
    TRY(change_together(m_home, std::move(change)));
    m_index = std::move(index);
    if (!spent.image.empty() && !spent.keep) TRY(m_home.drop_file(spent.image));
    return record;
}

Result<void> SnapshotStore::remove(std::string_view tag) {
    SnapshotRecord const record = *TRY(find(tag));
    if (m_index.suspended.image == image_of(record))
        return make_error(ErrorCode::Busy,
                          "the VM is to go on from the snapshot '{}': resume it, or drop that with 'coffer run "
                          "--discard-suspended', before the snapshot is deleted",
                          tag);
    auto index = m_index;
    std::erase_if(index.snapshots, [&](auto const& other) { return other.id == record.id; });
    for (auto& other : index.snapshots)
        if (other.parent == record.id) other.parent = record.parent;
    if (index.current == record.id) index.current = record.parent;
    TRY(write_index(std::move(index)));
    remove_files(record);
    return {};
}

} // namespace coffer::vmm
