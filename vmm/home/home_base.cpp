#include "vmm/home/home_base.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

std::string_view file_name(HomeFile file) noexcept {
    switch (file) {
    case HomeFile::Config: return "config";
    case HomeFile::Nvram: return "nvram";
    case HomeFile::Tpm: return "tpm";
    case HomeFile::Disks: return "disks";
    case HomeFile::History: return "history";
    case HomeFile::Snapshots: return "snapshots";
    }
    return "unknown";
}

bool is_further_name(std::string_view name) noexcept {
    auto allowed = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-'; };
    return name.starts_with(home_spec::k_further_prefix) && name.size() > home_spec::k_further_prefix.size() &&
           name.size() <= home_spec::k_max_file_name && std::all_of(name.begin(), name.end(), allowed);
}

Result<std::optional<ByteVector>> read_home_file(std::filesystem::path const& path) {
    constexpr uint64_t k_units = home_spec::data::k_max_content / home_spec::data::k_unit_size;
    constexpr uint64_t k_limit =
        home_spec::data::k_header_size + k_units * (home_spec::data::k_unit_size + home_spec::data::k_tag_size);
    auto file = read_file(path, k_limit);
    if (!file) {
        if (file.error().code() == ErrorCode::NotFound) return std::optional<ByteVector>();
        if (file.error().code() == ErrorCode::Corrupt || file.error().code() == ErrorCode::InvalidArgument)
            return damaged(path, "the file cannot be a file of a home");
        return std::move(file).error();
    }
    return std::optional(std::move(*file));
}

Result<std::optional<FileHead>> read_file_head(std::filesystem::path const& path) {
    auto fd = open_file(path, O_RDONLY | O_NOCTTY | O_NONBLOCK); // a FIFO must not hold the opening up
    if (!fd) {
        if (fd.error().code() == ErrorCode::NotFound) return std::optional<FileHead>();
        return std::move(fd).error();
    }
    struct stat info {};
    if (::fstat(fd->get(), &info) != 0) return errno_error(errno, fmt::format("cannot look at {}", path.native()));
    FileHead head;
    head.file_size = static_cast<uint64_t>(info.st_size);
    if (!S_ISREG(info.st_mode) || head.file_size < home_spec::data::k_header_size)
        return damaged(path, "the file cannot be a file of a home");
    head.bytes.resize(home_spec::data::k_header_size);
    TRY(pread_all(fd->get(), head.bytes, 0, path));
    return std::optional(std::move(head));
}

Result<ByteVector> load_tpm(HomeSession const& home) {
    if (home.has(HomeFile::Tpm)) {
        auto state = TRY(home.load(HomeFile::Tpm));
        if (!state.empty()) return state;
    }
    auto const& name = home.config().name;
    return make_error(ErrorCode::NotFound,
                      "the home of '{}' does not hold the TPM that the VM has: restore a backup, or give it a new TPM "
                      "with 'coffer tpm remove {}' and 'coffer tpm add {}'",
                      name, name, name);
}

HomeBase::HomeBase(HomeLocation location, std::optional<HomeLock> lock)
    : m_location(std::move(location)),
      m_lock(std::move(lock)), m_stores{Store(*this, HomeFile::Config),  Store(*this, HomeFile::Nvram),
                                        Store(*this, HomeFile::Tpm),     Store(*this, HomeFile::Disks),
                                        Store(*this, HomeFile::History), Store(*this, HomeFile::Snapshots)} {}

Result<void> HomeBase::check_writer() const {
    if (!m_lock) return make_error(ErrorCode::InvalidArgument, "home '{}' was opened to be read only", m_location.name);
    if (!m_doubt.empty()) return make_error(ErrorCode::Io, "{}", m_doubt);
    return {};
}

namespace {
Error cannot_migrate(HomeLocation const& location) {
    return make_error(ErrorCode::Unsupported,
                      "home '{}' is unencrypted: nothing tells who may have it, and it is not migrated. 'coffer tpm "
                      "add' encrypts it",
                      location.name);
}
} // namespace

Result<void> HomeBase::hand_over(Uuid const&) {
    return cannot_migrate(m_location);
}

Result<void> HomeBase::claim(HistoryKind, std::string_view) {
    return cannot_migrate(m_location);
}

Result<crypto::MacKey> HomeBase::migration_key(Uuid const&) const {
    return cannot_migrate(m_location);
}

Result<HomeLock> HomeBase::change_place(PlaceChange const& change) {
    std::lock_guard guard(m_mutex);
    auto const record = TRY(settled_record());
    auto place = TRY(change(record));
    if (!place.lock) {
        m_doubt = std::move(place.doubt);
        return make_error(ErrorCode::Io, "{}", m_doubt);
    }
    m_location = std::move(place.location);
    std::swap(*m_lock, *place.lock);
    return *std::move(place.lock);
}

Result<void> HomeBase::check_further_name(std::string_view name) {
    if (is_further_name(name)) return {};
    return make_error(ErrorCode::InvalidArgument, "no file of a home can be called '{}'", name);
}

std::filesystem::path HomeBase::image_writing_path(std::string_view name) const {
    return m_location.folder() / fmt::format(".{}.tmp", name);
}

Result<void> HomeBase::remove_leftovers(std::function<bool(std::string_view)> const& known) const {
    namespace fs = std::filesystem;
    std::vector<fs::path> leftovers;
    std::error_code error;
    for (fs::directory_iterator it(m_location.folder(), error), end; !error && it != end; it.increment(error)) {
        auto const name = it->path().filename().native();
        bool const temporary = name.starts_with('.') && name.ends_with(".tmp");
        if (temporary || (is_further_name(name) && !known(name))) leftovers.push_back(it->path());
    }
    if (error) return make_error(ErrorCode::Io, "cannot read {}: {}", m_location.folder().native(), error.message());
    for (auto const& path : leftovers) TRY(remove_file(path));
    return {};
}

Result<void> HomeBase::place_image(ImageWriting const& writing, ImageRoot const& root,
                                   crypto::DataEncryptionKey const* key) const {
    auto const& from = writing.path;
    auto fd = TRY(open_file(from, O_RDWR | O_NOFOLLOW));
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return errno_error(errno, fmt::format("cannot look at {}", from.native()));
    auto header = writing.header;
    header.content_size = std::max<uint64_t>(static_cast<uint64_t>(info.st_size), home_spec::data::k_header_size) -
                          home_spec::data::k_header_size;
    auto const head = TRY(seal_image_header(header, root, key));
    TRY(pwrite_all(fd.get(), head, 0, from));
    if (::fsync(fd.get()) != 0) return errno_error(errno, fmt::format("cannot write {} to the disk", from.native()));
    auto const to = path_of(header.name);
    if (::rename(from.c_str(), to.c_str()) != 0)
        return errno_error(errno, fmt::format("cannot rename {} to {}", from.native(), to.native()));
    return sync_folder(m_location.folder());
}

Result<VmConfig> HomeBase::decode_config(Bytes content, Uuid const& vm) const {
    auto path = path_of(HomeFile::Config);
    auto config = decode_vm_config(content);
    if (!config) return damaged(path, config.error().message());
    if (config->uuid != vm || config->name != m_location.name)
        return damaged(
            path, fmt::format("the configuration is that of VM '{}' ({})", config->name, config->uuid.to_string()));
    return config;
}

} // namespace coffer::vmm
