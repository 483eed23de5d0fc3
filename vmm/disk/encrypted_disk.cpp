#include "vmm/disk/encrypted_disk.hpp"

#include "vmm/disk/authenticated_disk.hpp"
#include "vmm/disk/xts_disk.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace spec = disk_spec;

namespace {

// An authenticated disk has two headers in turn: after a crash in the writing of one, the other is the newest.
Result<DiskHeader> newest_header(devices::BlockBackend& file, DiskSeal& seal, std::filesystem::path const& path) {
    ByteVector bytes(spec::k_header_slots * spec::k_header_size);
    if (file.size() < bytes.size()) return damaged(path, "the image is shorter than its header");
    TRY(file.read(0, bytes));
    auto first = open_disk_header(Bytes(bytes).first(spec::k_header_size), seal, path);
    auto second = open_disk_header(Bytes(bytes).last(spec::k_header_size), seal, path);
    for (auto const* header : {&first, &second})
        if (!*header && header->error().code() != ErrorCode::Integrity) return header->error();
    if (second && second->protection == DiskProtection::Authenticated && (!first || second->epoch > first->epoch))
        return second;
    return first;
}

} // namespace

Result<std::unique_ptr<EncryptedDisk>> open_encrypted_disk(std::filesystem::path const& path,
                                                           std::unique_ptr<devices::BlockBackend> file,
                                                           DiskSecret const& secret, ExpectedDisk const& expected) {
    auto seal = TRY(DiskSeal::create(secret.key, secret.disk));
    auto header = TRY(newest_header(*file, seal, path));
    if (header.disk != secret.disk || header.protection != expected.protection)
        return damaged(path, "the image is not the one that the VM's configuration names");
    if (header.vm != expected.vm)
        return damaged(path, fmt::format("the image belongs to another VM ({})", header.vm.to_string()));
    if (file->size() != header.layout.file_size())
        return damaged(path,
                       fmt::format("the image has {} bytes where {} are due", file->size(), header.layout.file_size()));
    if (header.epoch < secret.epoch)
        return make_error(ErrorCode::Integrity,
                          "{}: the image was rolled back: it is of epoch {}, and the VM has used epoch {}. Nothing was "
                          "overwritten; put back the newest copy",
                          path.native(), header.epoch, secret.epoch);
    if (header.protection == DiskProtection::Unauthenticated)
        return std::unique_ptr<EncryptedDisk>(
            std::make_unique<XtsDisk>(path, std::move(file), std::move(seal), header));
    return std::unique_ptr<EncryptedDisk>(TRY(AuthenticatedDisk::open(path, std::move(file), std::move(seal), header)));
}

} // namespace coffer::vmm
