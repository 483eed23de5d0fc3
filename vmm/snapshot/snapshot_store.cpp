#include "vmm/snapshot/snapshot_store.hpp"

#include <algorithm>
#include <set>

#include <unistd.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "base/log.hpp"
#include "base/tagged.hpp"
#include "crypto/random.hpp"
#include "vmm/home/home_together.hpp"
#include "vmm/snapshot/machine_state.hpp"

namespace coffer::vmm {

namespace {

constexpr std::string_view k_suspended_image = "snapshot-suspended";

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

Result<ByteVector> load_or_nothing(HomeSession const& home, HomeFile file) {
    if (!home.has(file)) return ByteVector{};
    return home.load(file);
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
    auto const before = encode_fields(m_index);
    bool const had = m_home.has(HomeFile::Snapshots);
    auto written = m_home.commit(HomeFile::Snapshots, encode_fields(index));
    if (written) {
        m_unsettled = false;
        m_index = std::move(index);
        return {};
    }
    auto const there =
        m_home.has(HomeFile::Snapshots) ? m_home.load(HomeFile::Snapshots) : Result<ByteVector>(ByteVector());
    bool const untouched = there && (had ? *there == before : there->empty());
    m_unsettled = !untouched && !m_home.commit(HomeFile::Snapshots, before);
    if (m_unsettled) m_disks.stop_writing();
    return written;
}

void SnapshotStore::tidy_disks(ImageOptions const& options) {
    auto tidied = m_disks.tidy(
        m_index, [this](SnapshotIndex next) { return write_index(std::move(next)); }, options);
    if (!tidied)
        log::warning("disk space of what was deleted is not free yet; the next snapshot that is taken or deleted while "
                     "the VM is off sees to it: {}",
                     tidied.error().message());
}

// Files that no snapshot names: made before, or deleted after, the commit that counts.
Result<void> SnapshotStore::clean_up() {
    std::set<std::string> named{std::string(k_together_journal)};
    if (suspended()) named.insert(m_index.suspended.image);
    for (auto const& record : m_index.snapshots) {
        named.insert(home_file_of(record));
        named.insert(image_of(record));
        for (uint32_t n = 0; record.layers.empty() && n < record.disks; ++n) named.insert(disk_copy_of(record, n));
    }
    for (auto const& layer : m_index.disks.layers) named.insert(overlay_path({}, layer.id).native());
    for (auto const& file : m_home.further_files())
        if (!named.contains(file.name)) TRY(m_home.drop_file(file.name));
    std::error_code failed;
    for (auto const& entry : std::filesystem::directory_iterator(m_home.location().folder(), failed)) {
        auto name = entry.path().filename().native();
        bool const of_disks = name.starts_with(k_disk_copy_prefix) || name.starts_with(k_overlay_prefix);
        if (of_disks && !named.contains(name)) TRY(remove_file(entry.path()));
    }
    return {};
}

Result<void> SnapshotStore::write_image(std::string const& name, MachineSource const& machine,
                                        ImageOptions const& options) {
    if (machine.ahead) {
        auto root = TRY(machine.ahead->image().finish(machine.state, machine.changed, options));
        return m_home.commit_image(machine.ahead->m_writing, root);
    }
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

Result<std::string> SnapshotStore::spend_suspension() {
    if (!suspended()) return std::string();
    auto index = m_index;
    auto spent = std::exchange(index.suspended, {});
    TRY(write_index(std::move(index)));
    return spent.keep ? std::string() : spent.image;
}

Result<void> SnapshotStore::remove_spent(std::string const& image) {
    return image.empty() ? Result<void>() : m_home.drop_file(image);
}

Result<void> SnapshotStore::end_suspension() {
    return remove_spent(TRY(spend_suspension()));
}

void SnapshotStore::remove_files(SnapshotRecord const& record) {
    // What stays after a failure is removed by the next clean_up().
    auto drop = [](Result<void> const& done) {
        if (!done) log::warning("a file of a snapshot is left for later: {}", done.error().message());
    };
    drop(m_home.drop_file(image_of(record)));
    drop(m_home.drop_file(home_file_of(record)));
    for (uint32_t n = 0; record.layers.empty() && n < record.disks; ++n)
        drop(remove_file(m_home.location().folder() / disk_copy_of(record, n)));
}

Result<std::string> SnapshotStore::check_take(std::string tag, std::string_view description) const {
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
    return tag;
}

SnapshotAhead::~SnapshotAhead() {
    // Renamed, where it was committed.
    ::unlink(m_writing.path.c_str());
}

Result<std::unique_ptr<SnapshotAhead>> SnapshotStore::begin(std::string const& tag, std::string_view description,
                                                            std::vector<Bytes> memory) {
    TRY(check_take(tag, description));
    SnapshotRecord record;
    record.id = TRY(crypto::random_uuid());
    auto ahead = std::make_unique<SnapshotAhead>(record.id, TRY(m_home.begin_image(image_of(record))));
    ahead->m_image = TRY(ImageWriter::create(ahead->m_writing, image_spec::k_max_state, std::move(memory)));
    return ahead;
}

Result<SnapshotRecord> SnapshotStore::take(std::string tag, std::string description, MachineSource const* machine,
                                           ImageOptions const& options) {
    tag = TRY(check_take(std::move(tag), description));
    TRY(clean_up());

    SnapshotRecord record;
    record.id = machine && machine->ahead ? machine->ahead->m_id : TRY(crypto::random_uuid());
    record.tag = std::move(tag);
    record.description = std::move(description);
    record.parent = m_index.current;
    record.created = wall_clock_seconds();
    record.running = machine != nullptr;
    auto index = m_index;
    auto made = [&]() -> Result<void> {
        TRY(m_disks.keep(record, index));
        if (machine) {
            for (Bytes part : machine->memory) record.memory_size += part.size();
            TRY(write_image(image_of(record), *machine, options));
        }
        SavedHome saved{encode_vm_config(m_home.config()), TRY(m_home.load(HomeFile::Nvram)),
                        TRY(load_or_nothing(m_home, HomeFile::Tpm)), TRY(load_or_nothing(m_home, HomeFile::Disks))};
        TRY(m_home.commit_file(home_file_of(record), encode_fields(std::move(saved))));
        index.snapshots.push_back(record);
        index.current = record.id;
        return write_index(std::move(index));
    }();
    if (made) {
        m_disks.adopt();
        return record;
    }
    // What may count is kept: what does not is removed by the next clean_up().
    if (m_unsettled) return std::move(made).error();
    m_disks.forget();
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
    TRY(m_disks.check(*record, config, m_index));
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
    auto index = m_index;
    if (auto prepared = m_disks.go_back(record, config, index, change, options); !prepared) {
        m_disks.forget();
        return std::move(prepared).error();
    }
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
    auto changed = change_together(m_home, std::move(change));
    // After an error too: what was prepared may count.
    m_disks.adopt();
    TRY(std::move(changed));
    m_index = std::move(index);
    if (!spent.image.empty() && !spent.keep) TRY(m_home.drop_file(spent.image));
    tidy_disks(options);
    return record;
}

Result<void> SnapshotStore::remove(std::string_view tag, ImageOptions const& options) {
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
    tidy_disks(options);
    return {};
}

} // namespace coffer::vmm
