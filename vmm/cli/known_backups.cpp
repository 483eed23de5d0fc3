#include "vmm/cli/known_backups.hpp"

#include <algorithm>

#include "base/file.hpp"
#include "base/tagged.hpp"
#include "keyprovider/checked_file.hpp"

namespace coffer::cli {

namespace {

constexpr CheckedFileFormat k_format{"COFRBKUP", 1, size_t{4} << 20};

struct Record {
    std::vector<KnownBackup> backups;

    template <class V>
    void fields(V& v) {
        v.required(1, backups);
    }
};

// Beside the host's records of homes, whose names begin with a letter or digit.
std::filesystem::path record_of(vmm::HomeRoot const& root) {
    return root.state / ".backups";
}

bool is_gone(KnownBackup const& backup) {
    std::error_code error;
    auto const status = std::filesystem::status(backup.path, error);
    return status.type() == std::filesystem::file_type::not_found;
}

} // namespace

Result<std::vector<KnownBackup>> known_backups(vmm::HomeRoot const& root) {
    auto const path = record_of(root);
    auto fields = read_checked_file(path, k_format);
    if (!fields && fields.error().code() == ErrorCode::NotFound) return std::vector<KnownBackup>();
    Record record;
    if ((!fields && fields.error().code() == ErrorCode::Integrity) || (fields && !decode_fields(*fields, record)))
        return make_error(ErrorCode::Integrity,
                          "{}: this host's record of backups of homes is damaged, so that it is not known which keys "
                          "they need. If none needs an old one, remove that file",
                          path.native());
    if (!fields) return std::move(fields).error();
    std::erase_if(record.backups, is_gone);
    return std::move(record.backups);
}

Result<void> note_backup(vmm::HomeRoot const& root, KnownBackup backup) {
    Record record{TRY(known_backups(root))};
    std::erase_if(record.backups, [&](KnownBackup const& known) { return known.path == backup.path; });
    record.backups.push_back(std::move(backup));
    TRY(make_folders(root.state));
    return write_checked_file(record_of(root), k_format, encode_fields(std::move(record)));
}

} // namespace coffer::cli
