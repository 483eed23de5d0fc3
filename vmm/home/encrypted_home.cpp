#include "vmm/home/encrypted_home.hpp"

#include <algorithm>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/random.hpp"
#include "vmm/home/data_file_memory.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace {

using home_spec::data::Layout;

std::filesystem::path keys_path(HomeLocation const& location) {
    return location.folder() / home_spec::k_keys_file;
}

Error rolled_back(HomeLocation const& location, uint64_t found, uint64_t known) {
    return make_error(ErrorCode::Integrity,
                      "{}: home '{}' was rolled back: its keys file is writing {}, and this host has seen writing {}. "
                      "Put the newest copy of the home back. If an old copy is what you want, its TPM and UEFI state "
                      "are as old: then 'coffer run {} --accept-rollback' makes it the newest",
                      keys_path(location).native(), location.name, found, known, location.name);
}

// Whether this writing of the file is the one that the manifest names (0) or the next one (1). The next one is under
// the current key: one under an older key is of a state that the owner has given up.
Result<uint64_t> writings_ahead(Manifest const& manifest, ManifestEntry const* entry, DataFileHeader const& header,
                                std::filesystem::path const& path) {
    uint64_t const known = entry ? entry->generation : 0;
    if (entry && header.generation == known && header.file == entry->file) return uint64_t{0};
    if (header.generation == known + 1 && header.epoch == manifest.current_epoch) return uint64_t{1};
    if (header.generation <= known + 1)
        return make_error(ErrorCode::Integrity,
                          "{}: the file is an old copy (writing {} where the home's keys file has {}). Nothing was "
                          "overwritten; put back the newest copy of the whole home",
                          path.native(), header.generation, known);
    return make_error(ErrorCode::Integrity,
                      "{}: the home's keys file is an old copy: it knows writing {} of this file, which is writing {}. "
                      "Nothing was overwritten; put back the newest copy of the whole home",
                      path.native(), known, header.generation);
}

Error never_written(std::filesystem::path const& path) {
    return make_error(ErrorCode::NotFound, "{} was never written", path.native());
}

Error missing(std::filesystem::path const& path) {
    return make_error(ErrorCode::Integrity,
                      "{} is missing, and the home's keys file says that it was written. Nothing was overwritten; "
                      "put back an intact copy of the whole home",
                      path.native());
}

ManifestEntry entry_of(DataFileHeader const& header) {
    return {header.name, header.generation, header.file, header.epoch, header.layout};
}

} // namespace

Result<std::unique_ptr<HomeSession>> EncryptedHome::open(HomeLocation const& location, std::optional<HomeLock> lock,
                                                         Bytes keys_file, std::optional<HostRecord> const& record,
                                                         BundleOpener const& open_key, RollbackPolicy rollback) {
    auto path = keys_path(location);
    auto parsed = TRY(parse_bundle(keys_file, path));
    if (parsed.header.name != location.name)
        return damaged(path, fmt::format("the home is that of VM '{}'", parsed.header.name));
    auto key = TRY(open_key(parsed.header));
    auto content = TRY(open_bundle(parsed, key, path));
    // A record of an unencrypted home of this VM is one that a conversion had no time to bring up to date: it has the
    // sequence of the last encrypted one.
    if (record && record->vm != parsed.header.vm)
        return damaged(path, fmt::format("this host knows another VM ({}) under the name '{}'", record->vm.to_string(),
                                         location.name));
    bool const is_old_copy = record && parsed.header.sequence < record->sequence;
    if (is_old_copy && rollback == RollbackPolicy::Refuse)
        return rolled_back(location, parsed.header.sequence, record->sequence);
    if (!is_old_copy && rollback == RollbackPolicy::Accept)
        return make_error(ErrorCode::InvalidArgument,
                          "home '{}' was not rolled back as far as this host knows: there is nothing to accept",
                          location.name);
    bool const writer = lock.has_value();
    auto home = std::unique_ptr<EncryptedHome>(
        new EncryptedHome(location, std::move(lock), std::move(parsed.header), std::move(key), std::move(content)));
    home->m_first_seen = !record.has_value();
    if (record) home->m_standing = record->standing;
    if (!home->has(HomeFile::Config)) return damaged(path, "the home's list of files lacks the configuration");
    auto config = TRY(home->load_checked(file_name(HomeFile::Config)));
    home->m_config = TRY(home->decode_config(config.content, home->m_header.vm));
    if (writer) TRY(home->verify_and_settle(record));
    return std::unique_ptr<HomeSession>(std::move(home));
}

// --- Reading

bool EncryptedHome::has(HomeFile file) const {
    std::lock_guard guard(m_mutex);
    return m_content.manifest.find(file_name(file)) != nullptr;
}

bool EncryptedHome::has_file(std::string_view name) const {
    std::lock_guard guard(m_mutex);
    return is_further_name(name) && m_content.manifest.find(name) != nullptr;
}

std::vector<FurtherFile> EncryptedHome::further_files() const {
    std::lock_guard guard(m_mutex);
    std::vector<FurtherFile> files;
    for (auto const& entry : m_content.manifest.files)
        if (is_further_name(entry.name)) files.push_back({entry.name, entry.layout == Layout::Image, entry.generation});
    return files;
}

std::optional<BundleHeader> EncryptedHome::header() const {
    std::lock_guard guard(m_mutex);
    return m_header;
}

Result<crypto::DataEncryptionKey const*> EncryptedHome::key_of(DataFileHeader const& header,
                                                               std::filesystem::path const& path) const {
    auto const* key = m_content.key_of(header.epoch);
    if (!key) return damaged(path, fmt::format("the home has no key of epoch {}", header.epoch));
    return key;
}

Result<OpenedDataFile> EncryptedHome::load_checked(std::string_view name) const {
    auto path = path_of(name);
    auto const* entry = m_content.manifest.find(name);
    auto bytes = TRY(read_home_file(path));
    if (!bytes) return entry ? missing(path) : never_written(path);
    auto header = TRY(parse_data_header(*bytes, path));
    auto const* key = TRY(key_of(header, path));
    auto opened = TRY(open_data_file_in_place(*std::move(bytes), {m_header.vm, name}, key, path));
    TRY(writings_ahead(m_content.manifest, entry, opened.header, path));
    return opened;
}

Result<DataFileHeader> EncryptedHome::check_head(std::string_view name) const {
    auto path = path_of(name);
    auto const* entry = m_content.manifest.find(name);
    auto head = TRY(read_file_head(path));
    if (!head) return entry ? missing(path) : never_written(path);
    auto header = TRY(parse_data_header(head->bytes, path));
    auto const* key = TRY(key_of(header, path));
    header = TRY(authenticate_head(head->bytes, head->file_size, {m_header.vm, name}, key, path));
    if (entry && header.layout != entry->layout) return damaged(path, "the file is of another layout");
    TRY(writings_ahead(m_content.manifest, entry, header, path));
    return header;
}

Result<ByteVector> EncryptedHome::load(HomeFile file) const {
    std::lock_guard guard(m_mutex);
    return TRY(load_checked(file_name(file))).content;
}

Result<ByteVector> EncryptedHome::load_file(std::string_view name) const {
    std::lock_guard guard(m_mutex);
    TRY(check_further_name(name));
    if (!m_content.manifest.find(name)) return never_written(path_of(name));
    return TRY(load_checked(name)).content;
}

Result<OpenedImage> EncryptedHome::open_image(std::string_view name) const {
    std::lock_guard guard(m_mutex);
    TRY(check_further_name(name));
    auto path = path_of(name);
    if (!m_content.manifest.find(name)) return never_written(path);
    TRY(check_head(name));
    auto head = TRY(read_file_head(path));
    if (!head) return missing(path);
    auto const parsed = TRY(parse_data_header(head->bytes, path));
    auto const* key = TRY(key_of(parsed, path));
    auto opened = TRY(open_image_header(head->bytes, {m_header.vm, name}, key, path));
    auto keys = TRY(derive_image_keys(*key, opened.header.file));
    return OpenedImage{std::move(opened.header), std::move(opened.root), std::move(keys), std::move(path)};
}

// --- Opening to write

Result<void> EncryptedHome::settle(std::string_view name, bool& ahead) {
    auto const* entry = m_content.manifest.find(name);
    auto whole = [&]() -> Result<DataFileHeader> { return std::move(TRY(load_checked(name)).header); };
    auto header = is_further_name(name) ? check_head(name) : whole();
    if (!header) {
        if (header.error().code() == ErrorCode::NotFound) return {};
        return std::move(header).error();
    }
    // What is to count from now on is checked whole.
    if (entry && entry->file != header->file && is_further_name(name) && header->layout == Layout::WholeRewrite)
        TRY(whole());
    auto now = entry_of(*header);
    if (entry && *entry == now) return {};
    ahead = true;
    m_content.manifest.set(std::move(now));
    return {};
}

Result<void> EncryptedHome::settle_all(bool& ahead) {
    for (HomeFile file : k_home_files) TRY(settle(file_name(file), ahead));
    std::vector<std::string> further;
    for (auto const& entry : m_content.manifest.files)
        if (is_further_name(entry.name)) further.push_back(entry.name);
    for (auto const& name : further) TRY(settle(name, ahead));
    return {};
}

Result<void> EncryptedHome::verify_and_settle(std::optional<HostRecord> const& record) {
    bool ahead = false;
    TRY(settle_all(ahead));
    if (m_standing != Standing::Owner) {
        // claim() writes it, and so does whoever opens the home once it is this host's.
        m_keys_behind = ahead;
        return {};
    }
    if (record && record->sequence > m_header.sequence) {
        TRY(accept_rollback(record->sequence));
    } else if (ahead) {
        TRY(write_keys());
    } else if (!record || !record->encrypted || record->sequence != m_header.sequence) {
        TRY(write_host_record(m_location.host_record(), {m_header.vm, true, m_header.sequence}));
    }
    TRY(remove_unknown_files());
    return renew_data_files([](uint64_t) {});
}

Result<void> EncryptedHome::remove_unknown_files() const {
    return remove_leftovers([&](std::string_view name) { return m_content.manifest.find(name) != nullptr; });
}

Result<void> EncryptedHome::accept_rollback(uint64_t known) {
    uint64_t const found = m_header.sequence;
    TRY(make_room_for_event());
    // Files of the state that is given up can be one writing ahead of this one. They are under the old key.
    TRY(m_content.begin_epoch());
    m_content.manifest.add_event(
        HistoryKind::RollbackAccepted,
        fmt::format("the owner accepted writing {} of the home, where this host had seen writing {}", found, known));
    m_header.sequence = known;
    return write_keys();
}

Result<void> EncryptedHome::renew_data_files(std::function<void(uint64_t)> const& advance) {
    std::vector<std::string> names;
    for (auto const& entry : m_content.manifest.files)
        if (is_old(entry) && entry.layout == Layout::WholeRewrite) names.push_back(entry.name);
    for (auto const& name : names) {
        auto opened = TRY(load_checked(name));
        auto written = write_data(name, opened.content);
        crypto::wipe_bytes(opened.content);
        TRY(std::move(written));
        TRY(write_keys());
        advance(opened.header.content_size);
    }
    return {};
}

// --- Writing

Result<void> EncryptedHome::begin_change() {
    TRY(check_writer());
    if (m_standing != Standing::Owner)
        return make_error(ErrorCode::Busy, "VM '{}' is on its way between hosts: its home cannot be changed now",
                          m_location.name);
    if (m_keys_behind) TRY(write_keys());
    return {};
}

Result<void> EncryptedHome::write_keys() {
    m_keys_behind = true;
    m_content.drop_unused_keys();
    // Counted even where the write fails: it may have reached the disk all the same, and no two writings share a
    // number.
    ++m_header.sequence;
    m_header.written = wall_clock_seconds();
    auto file = TRY(seal_bundle(m_header, m_content, m_key));
    TRY(replace_file(keys_path(m_location), file));
    m_keys_behind = false;
    return write_host_record(m_location.host_record(), {m_header.vm, true, m_header.sequence});
}

DataFileHeader EncryptedHome::next_writing(std::string_view name, Uuid const& file) const {
    auto const* entry = m_content.manifest.find(name);
    DataFileHeader header;
    header.name = name;
    header.generation = entry ? entry->generation + 1 : 1;
    header.epoch = m_content.manifest.current_epoch;
    header.file = file;
    header.vm = m_header.vm;
    header.written = wall_clock_seconds();
    return header;
}

Result<void> EncryptedHome::write_data(std::string_view name, Bytes content) {
    auto header = next_writing(name, TRY(crypto::random_uuid()));
    auto const* key = m_content.key_of(header.epoch);
    COFFER_ASSERT(key);
    TRY(seal_data_file_into(m_sealed, header, key, content));
    TRY(replace_file(path_of(name), m_sealed));
    m_content.manifest.set(entry_of(header));
    return {};
}

Result<void> EncryptedHome::commit(HomeFile file, Bytes content) {
    std::lock_guard guard(m_mutex);
    if (file == HomeFile::History) return make_error(ErrorCode::InvalidArgument, "a home writes its history itself");
    TRY(check_writer());
    std::optional<VmConfig> config;
    if (file == HomeFile::Config) config = TRY(decode_config(content, m_header.vm));
    TRY(begin_change());
    TRY(write_data(file_name(file), content));
    TRY(write_keys());
    if (config) m_config = std::move(*config);
    return {};
}

Result<void> EncryptedHome::check_room(std::string_view name) const {
    auto const& files = m_content.manifest.files;
    auto const further =
        std::count_if(files.begin(), files.end(), [](auto const& entry) { return is_further_name(entry.name); });
    if (m_content.manifest.find(name) ||
        static_cast<size_t>(further) + k_home_file_count < home_spec::keys::k_max_manifest_files)
        return {};
    return make_error(ErrorCode::NoSpace, "home '{}' has {} files of snapshots, and cannot hold more: delete some",
                      m_location.name, further);
}

Result<void> EncryptedHome::commit_file(std::string_view name, Bytes content) {
    std::lock_guard guard(m_mutex);
    TRY(check_further_name(name));
    TRY(check_room(name));
    TRY(begin_change());
    TRY(write_data(name, content));
    return write_keys();
}

Result<void> EncryptedHome::drop_file(std::string_view name) {
    std::lock_guard guard(m_mutex);
    TRY(check_further_name(name));
    TRY(begin_change());
    if (!m_content.manifest.find(name)) return {};
    // From here on the file is a leftover, which the next opening removes where this session does not.
    m_content.manifest.erase(name);
    TRY(write_keys());
    return remove_file(path_of(name));
}

Result<ImageWriting> EncryptedHome::begin_image(std::string_view name) const {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    TRY(check_further_name(name));
    TRY(check_room(name));
    ImageWriting writing;
    writing.header = next_writing(name, TRY(crypto::random_uuid()));
    writing.header.layout = Layout::Image;
    auto const* key = m_content.key_of(writing.header.epoch);
    COFFER_ASSERT(key);
    writing.keys = TRY(derive_image_keys(*key, writing.header.file));
    writing.path = image_writing_path(name);
    return writing;
}

Result<void> EncryptedHome::commit_image(ImageWriting const& writing, ImageRoot const& root) {
    std::lock_guard guard(m_mutex);
    TRY(begin_change());
    auto const& header = writing.header;
    auto const expected = next_writing(header.name, header.file);
    if (header.generation != expected.generation || header.epoch != expected.epoch)
        return make_error(ErrorCode::InvalidArgument, "image {} of the home was replaced or rekeyed meanwhile",
                          header.name);
    TRY(place_image(writing, root, m_content.key_of(header.epoch)));
    m_content.manifest.set(entry_of(header));
    return write_keys();
}

// --- Keys

Result<void> EncryptedHome::replace_seal(HomeSeal seal, bool new_epoch) {
    TRY(begin_change());
    TRY(make_room_for_event());
    if (new_epoch) {
        // A commit that failed may have left its file one writing ahead under the key that is to be the old one.
        bool ahead = false;
        TRY(settle_all(ahead));
        if (ahead) TRY(write_keys());
    }
    auto old_header = m_header;
    auto old_manifest = m_content.manifest;
    if (new_epoch) TRY(m_content.begin_epoch());
    auto kind = new_epoch                            ? HistoryKind::DeepRekeyed
                : seal.provider == m_header.provider ? HistoryKind::Rekeyed
                                                     : HistoryKind::ProviderChanged;
    m_content.manifest.add_event(kind, fmt::format("key {} of provider {} replaced by key {} of provider {}",
                                                   m_header.key_id.substr(0, 64), m_header.provider.to_string(),
                                                   seal.key_id.text().substr(0, 64), seal.provider.to_string()));
    m_header.provider = seal.provider;
    m_header.key_id = seal.key_id.text();
    m_header.wrapped_key = std::move(seal.wrapped.bytes);
    std::swap(m_key, seal.key); // the one that is not kept is wiped with `seal`
    auto written = write_keys();
    if (written) return {};
    // The new `keys` may have reached the disk or not, and the next change writes it again: under the old seal, which
    // is the one that the caller still believes in.
    std::swap(m_key, seal.key);
    old_header.sequence = m_header.sequence;
    m_header = std::move(old_header);
    m_content.manifest = std::move(old_manifest);
    m_keys_behind = true;
    return written;
}

Result<void> EncryptedHome::rekey(HomeSeal seal) {
    std::lock_guard guard(m_mutex);
    return replace_seal(std::move(seal), false);
}

bool EncryptedHome::deep_rekey_pending() const {
    std::lock_guard guard(m_mutex);
    return m_content.has_old_files();
}

Result<void> EncryptedHome::rekey_deep(HomeSeal seal, ImageRewriter const& rewrite, RekeyProgress const& progress) {
    {
        std::lock_guard guard(m_mutex);
        auto const& files = m_content.manifest.files;
        if (!rewrite &&
            std::any_of(files.begin(), files.end(), [](auto const& entry) { return entry.layout == Layout::Image; }))
            return make_error(ErrorCode::InvalidArgument, "home '{}' has images that must be rewritten, too",
                              m_location.name);
        TRY(replace_seal(std::move(seal), true));
    }
    return finish_deep_rekey(rewrite, progress);
}

Result<void> EncryptedHome::finish_deep_rekey(ImageRewriter const& rewrite, RekeyProgress const& progress) {
    std::vector<std::string> images;
    uint64_t total = 0;
    {
        std::lock_guard guard(m_mutex);
        TRY(begin_change());
        for (auto const& entry : m_content.manifest.files) {
            if (!is_old(entry)) continue;
            total += TRY(check_head(entry.name)).content_size;
            if (entry.layout == Layout::Image) images.push_back(entry.name);
        }
    }
    uint64_t done = 0;
    std::function<void(uint64_t)> const advance = [&](uint64_t bytes) {
        done += bytes;
        if (progress) progress(done, total);
    };
    advance(0);
    {
        std::lock_guard guard(m_mutex);
        TRY(renew_data_files(advance));
    }
    if (!images.empty() && !rewrite)
        return make_error(ErrorCode::InvalidArgument, "home '{}' has images that must be rewritten, too",
                          m_location.name);
    for (auto const& name : images) {
        auto from = TRY(open_image(name));
        auto to = TRY(begin_image(name));
        auto root = TRY(rewrite(from, to, advance));
        TRY(commit_image(to, root));
    }
    std::lock_guard guard(m_mutex);
    return remove_unknown_files();
}

Result<ByteVector> EncryptedHome::seal(std::string_view label, Bytes content) const {
    std::lock_guard guard(m_mutex);
    DataFileHeader header;
    header.name = label;
    header.generation = 1;
    header.epoch = m_content.manifest.current_epoch;
    header.file = TRY(crypto::random_uuid());
    header.vm = m_header.vm;
    header.written = wall_clock_seconds();
    auto const* key = m_content.key_of(header.epoch);
    COFFER_ASSERT(key);
    return seal_data_file(header, key, content);
}

Result<ByteVector> EncryptedHome::open_sealed(std::string_view label, Bytes sealed) const {
    std::lock_guard guard(m_mutex);
    auto header = TRY(parse_data_header(sealed, label));
    auto const* key = TRY(key_of(header, label));
    return std::move(TRY(open_data_file(sealed, {m_header.vm, label}, key, label)).content);
}

// --- History

Result<std::vector<HistoryEvent>> EncryptedHome::read_history() const {
    std::vector<HistoryEvent> events;
    auto const name = file_name(HomeFile::History);
    if (m_content.manifest.find(name)) {
        auto const opened = TRY(load_checked(name));
        auto decoded = decode_history(opened.content);
        if (!decoded) return damaged(path_of(name), decoded.error().message());
        events = std::move(*decoded);
    }
    return merge_history(std::move(events), m_content.manifest.events);
}

Result<void> EncryptedHome::make_room_for_event() {
    if (m_content.manifest.events.size() < home_spec::keys::k_max_pending_events) return {};
    auto content = encode_history(TRY(read_history()));
    TRY(write_data(file_name(HomeFile::History), content));
    m_content.manifest.events.clear();
    // Where a crash comes before the next writing of `keys`, the events are in both places, each with one number.
    m_keys_behind = true;
    return {};
}

Result<std::vector<HistoryEvent>> EncryptedHome::history() const {
    std::lock_guard guard(m_mutex);
    return read_history();
}

Result<void> EncryptedHome::append_history(HistoryKind kind, std::string_view text) {
    std::lock_guard guard(m_mutex);
    TRY(begin_change());
    TRY(make_room_for_event());
    m_content.manifest.add_event(kind, text);
    return write_keys();
}

// --- Migration

Result<void> EncryptedHome::hand_over(Uuid const& migration) {
    std::lock_guard guard(m_mutex);
    TRY(begin_change());
    m_standing = Standing::HandedOver;
    // Above what this home says, so that it reads as an old copy for good, whoever looks.
    return write_host_record(m_location.host_record(),
                             {m_header.vm, true, m_header.sequence + 1, Standing::HandedOver, migration});
}

Result<HostRecord> EncryptedHome::settled_record() {
    TRY(begin_change());
    return HostRecord{m_header.vm, true, m_header.sequence};
}

Result<void> EncryptedHome::claim(HistoryKind kind, std::string_view text) {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    m_standing = Standing::Owner;
    TRY(begin_change());
    TRY(make_room_for_event());
    m_content.manifest.add_event(kind, text);
    return write_keys();
}

Result<crypto::MacKey> EncryptedHome::migration_key(Uuid const& migration) const {
    std::lock_guard guard(m_mutex);
    return derive_migration_key(m_key, migration);
}

} // namespace coffer::vmm
