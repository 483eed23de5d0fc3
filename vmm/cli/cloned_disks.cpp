#include "vmm/cli/cloned_disks.hpp"

#include "base/file.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/disk/disk_files.hpp"

namespace coffer::cli {

Result<ClonedDisks> ClonedDisks::plan(vmm::VmConfig& config, DiskSource source) {
    ClonedDisks disks;
    vmm::DiskSecrets secrets;
    for (auto& disk : config.disks) {
        if (disk.protection == vmm::DiskProtection::None) continue;
        if (!source)
            return make_error(ErrorCode::Unsupported,
                              "the content of encrypted disk {} is not to be had; --no-disks makes a VM without disks",
                              disk.path);
        auto secret = TRY(vmm::DiskSecret::random());
        auto key = vmm::DiskKey::adopt(crypto::SecretBytes::copy_of(secret.key.expose()));
        COFFER_ASSERT(key);
        auto const from = disk;
        disk.uuid = secret.disk;
        secrets.add({secret.disk, std::move(*key), secret.epoch});
        disks.m_items.push_back({from, disk, std::move(secret)});
    }
    if (!secrets.empty()) disks.m_secrets = secrets.encode();
    disks.m_source = std::move(source);
    return disks;
}

vmm::NewDisks ClonedDisks::for_home(Uuid const& vm) const {
    if (m_items.empty()) return {};
    return {m_secrets.expose(), [this, vm](std::filesystem::path const& folder) { return make(vm, folder); }};
}

Result<void> ClonedDisks::make(Uuid const& vm, std::filesystem::path const& folder) const {
    for (auto const& item : m_items) {
        auto from = TRY(m_source(item.from, folder));
        auto const image = item.to.file(folder);
        vmm::NewDisk disk;
        disk.vm = vm;
        disk.protection = item.to.protection;
        disk.size = from->size();
        TRY(vmm::create_disk(image, item.secret, disk));
        auto to = TRY(vmm::open_disk(image, item.secret, {vm, item.to.protection}));
        {
            ProgressLine progress(fmt::format("copying {}", item.to.path));
            auto show = [&](uint64_t done, uint64_t total) { progress.show(done, total); };
            TRY(vmm::copy_disk(*from, *to, show));
        }
        TRY(to->close());
        TRY(from->close());
        from.reset();
        TRY(remove_file(folder / k_disk_source));
    }
    return {};
}

} // namespace coffer::cli
