// Encrypted disk images as block devices (docs/formats/disk.md). One thread at a time, as BlockBackend says.
#pragma once

#include <filesystem>
#include <memory>

#include "devices/core/backends.hpp"
#include "vmm/disk/disk_header.hpp"

namespace coffer::vmm {

class EncryptedDisk : public devices::BlockBackend {
public:
    uint64_t size() const noexcept override { return m_header.layout.content_size; }
    bool read_only() const noexcept override { return m_file->read_only(); }
    DiskHeader const& header() const noexcept { return m_header; }
    // The image has another name now; for messages. With no I/O under way.
    void rename(std::filesystem::path path) { m_path = std::move(path); }

    // Brings the image to rest: everything durable and, of an authenticated disk, in its place, so that opening it has
    // nothing to make good. The epoch of header() is final until something is written. Any thread, while another uses
    // the disk.
    virtual Result<void> close() { return flush(); }

protected:
    EncryptedDisk(std::filesystem::path path, std::unique_ptr<devices::BlockBackend> file, DiskSeal seal,
                  DiskHeader header)
        : m_path(std::move(path)), m_file(std::move(file)), m_seal(std::move(seal)), m_header(header) {}

    std::filesystem::path m_path; // for messages
    std::unique_ptr<devices::BlockBackend> m_file;
    DiskSeal m_seal;
    DiskHeader m_header;
};

// What an image must be, besides authentic.
struct ExpectedDisk {
    Uuid vm;
    DiskProtection protection = DiskProtection::Unauthenticated;
};

// `file` holds the image, `path` is for messages. An authenticated disk that was not closed is recovered first, unless
// `file` is read-only, where that is InvalidArgument. Integrity where the image is not that disk of that VM, was
// changed, or is older than the secret's epoch.
Result<std::unique_ptr<EncryptedDisk>> open_encrypted_disk(std::filesystem::path const& path,
                                                           std::unique_ptr<devices::BlockBackend> file,
                                                           DiskSecret const& secret, ExpectedDisk const& expected);

} // namespace coffer::vmm
