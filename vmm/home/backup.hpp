// Backups: one file with all that a restore needs (docs/formats/backup.md).
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "vmm/home/backup_format.hpp"
#include "vmm/home/file_copy.hpp"
#include "vmm/home/home_open.hpp"
#include "vmm/home/home_seal.hpp"
#include "vmm/home/home_session.hpp"

namespace coffer::vmm {

struct BackupDisk {
    size_t number = 0; // in the configuration, from 0
    std::filesystem::path image;
    // Where the content is not in that file alone.
    std::function<Result<std::unique_ptr<devices::BlockBackend>>()> open_content = {};
};

struct BackupOptions {
    // Of the home's provider, for whoever reads the header; not used for encrypted homes' keys.
    std::string provider_name;
    ProviderKind provider_kind = ProviderKind::Native;
    std::vector<BackupDisk> disks; // nobody may write to them meanwhile
    CopyProgress progress;         // bytes of disks
};

// Writes the home as it is at one moment between two commits to an empty regular file, which is durable on success. It
// needs nothing but the session, so that the process that runs the VM can do it. `name` is for messages. Integrity
// where a file of the home is not what it should be.
Result<void> write_backup(HomeSession const& home, int fd, std::filesystem::path const& name,
                          BackupOptions const& options);

// What a backup holds but for disks, authenticated.
struct BackupContent {
    VmConfig config;
    ByteVector nvram;
    ByteVector tpm;   // empty where there is none
    ByteVector disks; // content of HomeFile::Disks; empty where there is none
    std::vector<HistoryEvent> history;
    std::optional<HomeSeal> seal; // of an encrypted home, as it was
};

class BackupFile {
public:
    // Reads the header, and checks it as far as that goes without keys. NotFound; Integrity, naming the file.
    static Result<BackupFile> open(std::filesystem::path const& path);

    BackupHeader const& header() const noexcept { return m_header; }

    // Authenticates the header, and by it the rest; `open_key` is asked once where the home was encrypted. To be called
    // before extract_disk().
    Result<BackupContent> unlock(BundleOpener const& open_key);

    // Writes a disk part's content to an empty file, and syncs it. What is there after an error is not authentic.
    Result<void> extract_disk(BackupPart const& part, int to, std::filesystem::path const& to_name,
                              CopyProgress const& progress) const;

private:
    BackupFile(std::filesystem::path path, UniqueFd fd, ByteVector header_bytes, BackupHeader header)
        : m_path(std::move(path)), m_fd(std::move(fd)), m_header_bytes(std::move(header_bytes)),
          m_header(std::move(header)) {}

    Result<ByteVector> read_part(BackupPart const& part) const;
    // That nothing is between the parts.
    Result<void> check_gaps() const;

    std::filesystem::path m_path;
    UniqueFd m_fd;
    ByteVector m_header_bytes;
    BackupHeader m_header;
    std::optional<BackupKey> m_key;
};

} // namespace coffer::vmm
