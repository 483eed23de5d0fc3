#include "vmm/home/plain_home.hpp"

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/random.hpp"
#include "vmm/home/data_file_memory.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

Result<std::unique_ptr<HomeSession>> PlainHome::open(HomeLocation const& location, std::optional<HomeLock> lock,
                                                     std::optional<HostRecord> const& record) {
    bool const writer = lock.has_value();
    auto home = std::unique_ptr<PlainHome>(new PlainHome(location, std::move(lock)));
    auto path = home->path_of(HomeFile::Config);
    auto bytes = TRY(read_home_file(path));
    if (!bytes)
        return make_error(ErrorCode::Integrity, "{} is missing. Put back an intact copy of the whole home",
                          path.native());
    // An unencrypted home names its own VM; that the name is the right one is checked below.
    auto header = TRY(parse_data_header(*bytes, path));
    auto opened =
        TRY(open_data_file_in_place(*std::move(bytes), {header.vm, file_name(HomeFile::Config)}, nullptr, path));
    home->m_config = TRY(home->decode_config(opened.content, header.vm));
    if (home->m_config.tpm != TpmKind::None)
        return damaged(path, "the configuration has a TPM, and the home has no key provider");
    if (record && record->vm != header.vm)
        return damaged(path, fmt::format("this host knows another VM ({}) under the name '{}'", record->vm.to_string(),
                                         location.name));
    home->m_first_seen = !record.has_value();
    if (writer) {
        for (HomeFile file : k_home_files)
            if (home->has(file)) TRY(home->load_checked(file_name(file)));
        if (!record) TRY(write_host_record(location.host_record(), {header.vm, false, 0}));
        TRY(home->remove_leftovers([](std::string_view) { return true; }));
    }
    return std::unique_ptr<HomeSession>(std::move(home));
}

bool PlainHome::present(std::string_view name) const {
    std::error_code ignored;
    return std::filesystem::exists(path_of(name), ignored);
}

bool PlainHome::has(HomeFile file) const {
    return present(file_name(file));
}

bool PlainHome::has_file(std::string_view name) const {
    return is_further_name(name) && present(name);
}

Result<OpenedDataFile> PlainHome::load_checked(std::string_view name) const {
    auto path = path_of(name);
    auto bytes = TRY(read_home_file(path));
    if (!bytes) return make_error(ErrorCode::NotFound, "{} was never written", path.native());
    return open_data_file_in_place(*std::move(bytes), {m_config.uuid, name}, nullptr, path);
}

Result<ByteVector> PlainHome::load(HomeFile file) const {
    std::lock_guard guard(m_mutex);
    return TRY(load_checked(file_name(file))).content;
}

Result<ByteVector> PlainHome::load_file(std::string_view name) const {
    std::lock_guard guard(m_mutex);
    TRY(check_further_name(name));
    return TRY(load_checked(name)).content;
}

Result<DataFileHeader> PlainHome::next_writing(std::string_view name) const {
    auto const path = path_of(name);
    DataFileHeader header;
    header.name = name;
    header.generation = 1;
    if (auto head = TRY(read_file_head(path))) {
        auto const now = TRY(authenticate_head(head->bytes, head->file_size, {m_config.uuid, name}, nullptr, path));
        header.generation = now.generation + 1;
    }
    header.file = TRY(crypto::random_uuid());
    header.vm = m_config.uuid;
    header.written = wall_clock_seconds();
    return header;
}

Result<void> PlainHome::write_data(std::string_view name, Bytes content) {
    auto header = TRY(next_writing(name));
    auto sealed = TRY(seal_data_file(std::move(header), nullptr, content));
    return replace_file(path_of(name), sealed);
}

Result<void> PlainHome::commit(HomeFile file, Bytes content) {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    if (file == HomeFile::Tpm || file == HomeFile::Disks)
        return make_error(ErrorCode::InvalidArgument, "an unencrypted home keeps no TPM state and no disk keys");
    if (file == HomeFile::History) return make_error(ErrorCode::InvalidArgument, "a home writes its history itself");
    std::optional<VmConfig> config;
    if (file == HomeFile::Config) config = TRY(decode_config(content, m_config.uuid));
    TRY(write_data(file_name(file), content));
    if (config) m_config = std::move(*config);
    return {};
}

Result<void> PlainHome::commit_file(std::string_view name, Bytes content) {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    TRY(check_further_name(name));
    return write_data(name, content);
}

Result<void> PlainHome::drop_file(std::string_view name) {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    TRY(check_further_name(name));
    return remove_file(path_of(name));
}

std::vector<FurtherFile> PlainHome::further_files() const {
    std::lock_guard guard(m_mutex);
    std::vector<FurtherFile> files;
    std::error_code error;
    for (std::filesystem::directory_iterator it(m_location.folder(), error), end; !error && it != end;
         it.increment(error)) {
        auto name = it->path().filename().native();
        if (!is_further_name(name)) continue;
        auto head = read_file_head(it->path());
        if (!head || !*head) continue;
        auto header = parse_data_header((*head)->bytes, it->path());
        if (header)
            files.push_back({std::move(name), header->layout == home_spec::data::Layout::Image, header->generation});
    }
    return files;
}

Result<ImageWriting> PlainHome::begin_image(std::string_view name) const {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    TRY(check_further_name(name));
    ImageWriting writing;
    writing.header = TRY(next_writing(name));
    writing.header.layout = home_spec::data::Layout::Image;
    writing.header.cipher = home_spec::data::Cipher::None;
    writing.path = image_writing_path(name);
    return writing;
}

Result<void> PlainHome::commit_image(ImageWriting const& writing, ImageRoot const& root) {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    return place_image(writing, root, nullptr);
}

Result<OpenedImage> PlainHome::open_image(std::string_view name) const {
    std::lock_guard guard(m_mutex);
    TRY(check_further_name(name));
    auto path = path_of(name);
    auto head = TRY(read_file_head(path));
    if (!head) return make_error(ErrorCode::NotFound, "{} was never written", path.native());
    ExpectedFile const expected{m_config.uuid, name};
    TRY(authenticate_head(head->bytes, head->file_size, expected, nullptr, path));
    auto opened = TRY(open_image_header(head->bytes, expected, nullptr, path));
    return OpenedImage{std::move(opened.header), std::move(opened.root), std::nullopt, std::move(path)};
}

Result<HostRecord> PlainHome::settled_record() {
    TRY(check_writer());
    // Its sequence is of when the home was encrypted, if ever.
    auto const record = TRY(read_host_record(m_location.host_record()));
    return HostRecord{m_config.uuid, false, record ? record->sequence : 0};
}

Error PlainHome::no_keys(std::string_view what) const {
    return make_error(ErrorCode::InvalidArgument, "home '{}' is unencrypted: there is no key to {}", m_location.name,
                      what);
}

Result<void> PlainHome::rekey(HomeSeal) {
    return no_keys("replace");
}

Result<void> PlainHome::rekey_deep(HomeSeal, ImageRewriter const&, RekeyProgress const&) {
    return no_keys("replace");
}

Result<void> PlainHome::finish_deep_rekey(ImageRewriter const&, RekeyProgress const&) {
    return no_keys("replace");
}

Result<std::vector<HistoryEvent>> PlainHome::read_history() const {
    auto const name = file_name(HomeFile::History);
    if (!present(name)) return std::vector<HistoryEvent>();
    auto const opened = TRY(load_checked(name));
    auto decoded = decode_history(opened.content);
    if (!decoded) return damaged(path_of(name), decoded.error().message());
    return decoded;
}

Result<std::vector<HistoryEvent>> PlainHome::history() const {
    std::lock_guard guard(m_mutex);
    return read_history();
}

Result<void> PlainHome::append_history(HistoryKind kind, std::string_view text) {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    auto events = TRY(read_history());
    uint64_t const number = events.empty() ? 1 : events.back().number + 1;
    HistoryEvent const event{number, wall_clock_seconds(), kind, history_text(text)};
    return write_data(file_name(HomeFile::History), encode_history(merge_history(std::move(events), {event})));
}

Result<ByteVector> PlainHome::seal(std::string_view label, Bytes) const {
    return make_error(ErrorCode::Unsupported, "an unencrypted home has no key to seal '{}' with", label);
}

Result<ByteVector> PlainHome::open_sealed(std::string_view label, Bytes) const {
    return make_error(ErrorCode::Unsupported, "an unencrypted home has no key to open '{}' with", label);
}

} // namespace coffer::vmm
