#include "vmm/cli/new_disks.hpp"

#include <filesystem>

#include <sys/stat.h>

#include "devices/storage/raw_disk.hpp"
#include "vmm/cli/memory_size.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/disk/disk_files.hpp"

namespace coffer::cli {

namespace {

namespace fs = std::filesystem;
using vmm::DiskProtection;

constexpr std::string_view k_new_prefix = "new:";

Result<std::string> check_disk(std::string const& given) {
    std::error_code error;
    auto path = fs::absolute(given, error).lexically_normal().native();
    if (error) return make_error(ErrorCode::Io, "cannot resolve {}: {}", given, error.message());
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) return errno_error(errno, fmt::format("disk {}", path));
    if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode))
        return make_error(ErrorCode::InvalidArgument, "disk {} is neither a file nor a block device", path);
    if (S_ISREG(info.st_mode) && (info.st_size == 0 || info.st_size % 512 != 0))
        return make_error(
            ErrorCode::InvalidArgument,
            "disk {} has {} bytes: a disk has a multiple of 512 ('truncate -s 10G {}' makes an empty one)", path,
            info.st_size, path);
    return path;
}

} // namespace

std::string_view describe(DiskProtection protection) noexcept {
    switch (protection) {
    case DiskProtection::None: return "unencrypted";
    case DiskProtection::Unauthenticated: return "encrypted, unauthenticated";
    case DiskProtection::Authenticated: return "encrypted, authenticated";
    }
    return "unknown";
}

Result<NewDisks> NewDisks::plan(std::vector<std::string> const& given, DiskProtection protection) {
    NewDisks disks;
    bool const encrypted = protection != DiskProtection::None;
    vmm::DiskSecrets all;
    for (auto const& disk : given) {
        bool const empty = disk.starts_with(k_new_prefix);
        if (empty && !encrypted)
            return make_error(ErrorCode::InvalidArgument,
                              "--disk {} makes an encrypted disk: give --encrypt-disks too, or make an image with "
                              "'truncate -s SIZE FILE' and give its name",
                              disk);
        Source source;
        if (empty)
            source.size = TRY(parse_memory_size(std::string_view(disk).substr(k_new_prefix.size())));
        else
            source.path = TRY(check_disk(disk));
        if (!encrypted) {
            disks.m_configs.push_back({.path = source.path});
            continue;
        }
        if (!empty) source.size = TRY(devices::RawDisk::open(source.path, {.read_only = true}))->size();
        disks.m_secrets.push_back(TRY(vmm::DiskSecret::random()));
        auto const& secret = disks.m_secrets.back();
        auto key = vmm::DiskKey::adopt(crypto::SecretBytes::copy_of(secret.key.expose()));
        COFFER_ASSERT(key);
        all.add({secret.disk, std::move(*key), 0});
        disks.m_configs.push_back({.path = fmt::format("{}{}", vmm::k_disk_file_prefix, disks.m_sources.size()),
                                   .protection = protection,
                                   .uuid = secret.disk});
        disks.m_sources.push_back(std::move(source));
    }
    if (!all.empty()) disks.m_encoded = all.encode();
    return disks;
}

Result<void> NewDisks::make_images(Uuid const& vm, fs::path const& folder) const {
    for (size_t index = 0; index < m_sources.size(); ++index) {
        auto const& source = m_sources[index];
        auto const& config = m_configs[index];
        auto const image = folder / config.path;
        TRY(vmm::create_disk(image, m_secrets[index],
                             {.vm = vm, .protection = config.protection, .size = source.size}));
        if (source.path.empty()) continue;
        auto from = TRY(devices::RawDisk::open(source.path, {.read_only = true}));
        if (from->size() != source.size)
            return make_error(ErrorCode::Io, "the size of {} changed while it was read", source.path);
        auto to = TRY(vmm::open_disk(image, m_secrets[index], {vm, config.protection}));
        ProgressLine progress(fmt::format("encrypting {}", source.path));
        TRY(vmm::copy_disk(*from, *to, [&](uint64_t done, uint64_t total) { progress.show(done, total); }));
        TRY(to->close());
    }
    return {};
}

vmm::NewDisks NewDisks::for_home(Uuid const& vm) const {
    if (m_sources.empty()) return {};
    return {m_encoded.expose(), [this, vm](fs::path const& folder) { return make_images(vm, folder); }};
}

std::vector<std::string> NewDisks::imported() const {
    std::vector<std::string> paths;
    for (auto const& source : m_sources)
        if (!source.path.empty()) paths.push_back(source.path);
    return paths;
}

} // namespace coffer::cli
