#include "vmm/disk/home_disks.hpp"

#include <algorithm>

#include "devices/storage/raw_disk.hpp"
#include "vmm/disk/disk_files.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace {
Result<std::unique_ptr<devices::BlockBackend>> open_raw(DiskConfig const& config) {
    return std::unique_ptr<devices::BlockBackend>(
        TRY(devices::RawDisk::open(config.path, {.read_only = config.read_only})));
}
} // namespace

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

Result<std::unique_ptr<EncryptedDisk>> HomeDisks::open_encrypted(HomeSession const& home, DiskConfig const& config,
                                                                 DiskSecrets& secrets) {
    auto path = config.file(home.location().folder());
    auto const* secret = secrets.find(config.uuid);
    if (!secret)
        return damaged(home.location().folder() / file_name(HomeFile::Disks),
                       fmt::format("the home has no key of disk {}", config.path));
    return open_disk(path, *secret, {home.config().uuid, config.protection}, config.read_only);
}

Result<std::unique_ptr<devices::BlockBackend>> HomeDisks::open_own(HomeSession const& home, DiskConfig const& config) {
    auto disk = TRY(open_encrypted(home, config, m_secrets));
    m_encrypted.push_back(disk.get());
    return std::unique_ptr<devices::BlockBackend>(std::move(disk));
}

Result<HomeDisks> HomeDisks::open(HomeSession& home) {
    HomeDisks disks(home);
    disks.m_secrets = TRY(load_secrets(home));
    for (auto const& config : home.config().disks) {
        auto disk = config.protection == DiskProtection::None ? open_raw(config) : disks.open_own(home, config);
        if (!disk) return std::move(disk).error().with_context("disk");
        disks.m_disks.push_back(std::move(*disk));
    }
    TRY(disks.note_epochs());
    return disks;
}

std::vector<devices::BlockBackend*> HomeDisks::backends() const {
    std::vector<devices::BlockBackend*> all;
    for (auto const& disk : m_disks) all.push_back(disk.get());
    return all;
}

Result<void> HomeDisks::note_epochs() {
    bool changed = false;
    for (auto const* disk : m_encrypted) {
        auto* secret = m_secrets.find(disk->header().disk);
        changed = changed || secret->epoch != disk->header().epoch;
        secret->epoch = disk->header().epoch;
    }
    if (!changed) return {};
    return m_home->commit(HomeFile::Disks, m_secrets.encode().expose());
}

Result<void> HomeDisks::close() {
    for (auto* disk : m_encrypted) TRY_CONTEXT(disk->close(), "disk");
    return note_epochs();
}

} // namespace coffer::vmm
