#include "vmm/home/home_together.hpp"

#include <array>
#include <cerrno>
#include <cstdio>

#include "base/file.hpp"
#include "base/tagged.hpp"

namespace coffer::vmm {

namespace {

Result<HomeFile> file_named(std::string_view name) {
    for (auto file : std::array{HomeFile::Config, HomeFile::Nvram, HomeFile::Tpm, HomeFile::Disks, HomeFile::Snapshots})
        if (file_name(file) == name) return file;
    return make_error(ErrorCode::Integrity, "the home's journal names the file '{}', which cannot be changed so", name);
}

Result<void> move_file(TogetherMove const& move) {
    if (::rename(move.from.c_str(), move.to.c_str()) != 0) {
        if (errno != ENOENT) return errno_error(errno, fmt::format("cannot rename {} to {}", move.from, move.to));
        // Done before.
        if (!std::filesystem::exists(move.to))
            return make_error(ErrorCode::NotFound, "{} and {} are both missing", move.from, move.to);
    }
    TRY(sync_folder(std::filesystem::path(move.to).parent_path()));
    return sync_folder(std::filesystem::path(move.from).parent_path());
}

Result<void> put(HomeSession& home, TogetherFile const& change) {
    auto file = TRY(file_named(change.name));
    if (home.has(file) && TRY(home.load(file)) == change.content) return {};
    return home.commit(file, change.content);
}

Result<void> note(HomeSession& home, TogetherChange const& change) {
    auto events = TRY(home.history());
    if (!events.empty() && events.back().kind == change.event && events.back().text == history_text(change.text))
        return {};
    return home.append_history(change.event, change.text);
}

} // namespace

Result<void> change_together(HomeSession& home, TogetherChange change) {
    for (auto const& file : change.files) TRY(file_named(file.name));
    TRY(home.commit_file(k_together_journal, encode_fields(std::move(change))));
    return finish_change(home);
}

Result<void> finish_change(HomeSession& home) {
    if (!home.has_file(k_together_journal)) return {};
    TogetherChange change;
    auto journal = TRY(home.load_file(k_together_journal));
    if (!decode_fields(journal, change)) return make_error(ErrorCode::Integrity, "the home's journal is malformed");
    for (auto const& move : change.moves) TRY_CONTEXT(move_file(move), "a revert that was begun cannot be finished");
    for (auto const& file : change.files) TRY(put(home, file));
    TRY(note(home, change));
    return home.drop_file(k_together_journal);
}

} // namespace coffer::vmm
