#include "vmm/disk/home_disks.hpp"

#include <algorithm>

#include "devices/storage/raw_disk.hpp"
#include "vmm/disk/disk_files.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

Result<DiskSecrets> HomeDisks::load_secrets(HomeSession const& home) {
    auto const& disks = home.config().disks;
    bool const any =
        std::any_of(disks.begin(), disks.end(), [](auto const& d) { return d.protection != DiskProtection::None; });
    if (!any) return DiskSecrets();
    auto path = home.location().folder() / file_name(HomeFile::Disks);
    if (!home.has(HomeFile::Disks)) return damaged(path, "the home has encrypted disks and no keys for them");
    auto content = TRY(home.load(HomeFile::Disks));
    auto secrets = DiskSecrets::decode(content);
    crypto::wipe_bytes(content);
    if (!secrets) return damaged(path, secrets.error().message());
    return secrets;
}

namespace {
Result<std::unique_ptr<EncryptedDisk>> open_in(HomeSession const& home, DiskConfig const& config, DiskSecrets& secrets,
                                               Result<std::unique_ptr<LayeredFile>> image) {
    auto path = config.file(home.location().folder());
    auto const* secret = secrets.find(config.uuid);
    if (!secret)
        return damaged(home.location().folder() / file_name(HomeFile::Disks),
                       fmt::format("the home has no key of disk {}", config.path));
    return open_disk(path, std::move(image), *secret, {home.config().uuid, config.protection});
}
} // namespace

Result<std::unique_ptr<EncryptedDisk>> HomeDisks::open_encrypted(HomeSession const& home, DiskConfig const& config,
                                                                 DiskSecrets& secrets) {
    return open_in(home, config, secrets, open_layered(home, config));
}

Result<std::unique_ptr<devices::BlockBackend>> HomeDisks::open_disk(DiskConfig const& config,
                                                                    DiskLayers const& layers) {
    auto image = open_layered(*m_home, config, layers, layers.top(config.path));
    m_images.push_back(image ? image->get() : nullptr);
    if (config.protection == DiskProtection::None) return std::unique_ptr<devices::BlockBackend>(TRY(std::move(image)));
    auto disk = TRY(open_in(*m_home, config, m_secrets, std::move(image)));
    m_encrypted.push_back(disk.get());
    return std::unique_ptr<devices::BlockBackend>(std::move(disk));
}

LayeredFile& HomeDisks::image(std::string_view disk) const {
    auto const& configs = m_home->config().disks;
    auto const found = std::ranges::find(configs, disk, &DiskConfig::path);
    COFFER_ASSERT(found != configs.end());
    return *m_images[static_cast<size_t>(found - configs.begin())];
}

Result<HomeDisks> HomeDisks::open(HomeSession& home, Note note) {
    HomeDisks disks(home);
    disks.m_secrets = TRY(load_secrets(home));
    auto const layers = TRY(load_disk_layers(home));
    for (auto const& config : home.config().disks) {
        auto disk = disks.open_disk(config, layers);
        if (!disk) return std::move(disk).error().with_context("disk");
        disks.m_disks.push_back(std::move(*disk));
    }
    disks.look_at_epochs();
    if (note == Note::Now) TRY(disks.note_epochs());
    return disks;
}

std::vector<devices::BlockBackend*> HomeDisks::backends() const {
    std::vector<devices::BlockBackend*> all;
    for (auto const& disk : m_disks) all.push_back(disk.get());
    return all;
}

void HomeDisks::look_at_epochs() {
    for (auto const* disk : m_encrypted) {
        auto* secret = m_secrets.find(disk->header().disk);
        m_newer = m_newer || secret->epoch != disk->header().epoch;
        secret->epoch = disk->header().epoch;
    }
}

Result<void> HomeDisks::note_epochs() {
    if (!m_newer) return {};
    TRY(m_home->commit(HomeFile::Disks, m_secrets.encode().expose()));
    m_newer = false;
    return {};
}

std::vector<HomeDisks::WrittenFile> HomeDisks::written_files() const {
    std::vector<WrittenFile> files;
    for (size_t i = 0; i < m_images.size(); ++i) {
        if (m_images[i]->read_only()) continue;
        bool own = true; // the disk's own file comes first, and overlays are in the home in any case
        for (auto* file : m_images[i]->files()) {
            bool const in_home = !own || m_home->config().disks[i].protection != DiskProtection::None;
            files.push_back({file, i, in_home});
            own = false;
        }
    }
    return files;
}

std::vector<HomeDisks::FileOfHome> HomeDisks::home_files() const {
    std::vector<FileOfHome> files;
    for (size_t i = 0; i < m_images.size(); ++i) {
        auto const protection = m_home->config().disks[i].protection;
        bool own = true;
        for (auto* file : m_images[i]->files()) {
            if (!own || protection != DiskProtection::None)
                files.push_back({file, own && protection == DiskProtection::Authenticated});
            own = false;
        }
    }
    return files;
}

void HomeDisks::home_moved() {
    auto const folder = m_home->location().folder();
    size_t encrypted = 0;
    for (size_t i = 0; i < m_images.size(); ++i) {
        auto const& config = m_home->config().disks[i];
        m_images[i]->rename(config.file(folder));
        if (config.protection != DiskProtection::None) m_encrypted[encrypted++]->rename(config.file(folder));
    }
}

std::vector<devices::RawDisk*> HomeDisks::shared() const {
    std::vector<devices::RawDisk*> disks;
    for (size_t i = 0; i < m_images.size(); ++i)
        if (m_home->config().disks[i].protection == DiskProtection::None)
            if (auto* raw = dynamic_cast<devices::RawDisk*>(&m_images[i]->files().front()->file()))
                disks.push_back(raw);
    return disks;
}

void HomeDisks::let_go() noexcept {
    for (auto* disk : shared()) disk->unlock();
}

Result<void> HomeDisks::hold() {
    for (auto* disk : shared()) TRY(disk->lock());
    return {};
}

Result<void> HomeDisks::tidy() {
    for (auto* disk : m_encrypted)
        if (!disk->read_only()) TRY_CONTEXT(disk->close(), "disk");
    return {};
}

Result<void> HomeDisks::close() {
    for (auto* disk : m_encrypted) TRY_CONTEXT(disk->close(), "disk");
    for (auto* image : m_images)
        if (!image->read_only()) TRY_CONTEXT(image->flush(), "disk");
    look_at_epochs();
    return note_epochs();
}

} // namespace coffer::vmm
