// The disks of a VM, as the process that runs it has them open.
#pragma once

#include <memory>
#include <vector>

#include "devices/core/backends.hpp"
#include "vmm/disk/disk_layers.hpp"
#include "vmm/disk/encrypted_disk.hpp"
#include "vmm/home/home_session.hpp"

namespace coffer::devices {
class RawDisk;
}

namespace coffer::vmm {

class HomeDisks {
public:
    // All of them, in the configuration's order. Notes in the home how new authenticated disks are, so that older
    // copies are refused from here on. Errors name the disk: Busy, NotFound, Integrity, Io. Of a home that cannot be
    // changed yet, note_epochs() is called when it can; the disks may be in use by then.
    enum class Note : uint8_t { Now, Later };
    static Result<HomeDisks> open(HomeSession& home, Note note = Note::Now);
    Result<void> note_epochs();

    // Live as long as this object.
    std::vector<devices::BlockBackend*> backends() const;
    // The image of a disk, by its path in the configuration: what snapshots put layers on. Asserts that there is one.
    LayeredFile& image(std::string_view disk) const;
    // Files that are written in place while the VM runs, which its content on the disks lies in: images and overlays,
    // the configuration's disks one after the other. They stay as long as no snapshot is made or dropped.
    struct WrittenFile {
        TrackedFile* file = nullptr;
        size_t disk = 0;      // of the configuration
        bool in_home = false; // otherwise the disk's image, wherever that is
    };
    std::vector<WrittenFile> written_files() const;
    // All that lie in the home, written or not; and that the home lies elsewhere now, and they with it. For who moves
    // it (vmm/disk/disk_move.hpp).
    struct FileOfHome {
        TrackedFile* file = nullptr;
        bool reserved = false; // made with all of its blocks
    };
    std::vector<FileOfHome> home_files() const;
    void home_moved();

    // Disk images outside of the home, which another host may share: while nothing is written here, it may open them.
    // hold() takes them back: Busy while another has one.
    void let_go() noexcept;
    Result<void> hold();
    // Brings encrypted disks to rest while the VM uses them, so that who opens a copy has little to make good.
    Result<void> tidy();
    // When nothing uses the disks any more: makes all durable, brings encrypted ones to rest and notes it in the home.
    Result<void> close();

    // Of an open home's configuration, for verbs that look at one disk. NotFound, Integrity.
    static Result<DiskSecrets> load_secrets(HomeSession const& home);
    static Result<std::unique_ptr<EncryptedDisk>> open_encrypted(HomeSession const& home, DiskConfig const& config,
                                                                 DiskSecrets& secrets);

private:
    void look_at_epochs(); // while nothing uses the disks
    explicit HomeDisks(HomeSession& home) : m_home(&home) {}
    std::vector<devices::RawDisk*> shared() const;
    Result<std::unique_ptr<devices::BlockBackend>> open_disk(DiskConfig const& config, DiskLayers const& layers);

    HomeSession* m_home;
    DiskSecrets m_secrets;
    bool m_newer = false; // than the home says
    std::vector<std::unique_ptr<devices::BlockBackend>> m_disks;
    std::vector<EncryptedDisk*> m_encrypted; // some of m_disks
    std::vector<LayeredFile*> m_images;      // in the configuration's order
};

} // namespace coffer::vmm
