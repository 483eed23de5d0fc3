#include "vmm/home/vm_config.hpp"

#include <algorithm>

#include "base/tagged.hpp"

namespace coffer::vmm {

namespace {
constexpr size_t k_max_name = 64;
constexpr size_t k_max_path = 4096;

bool is_alphanumeric(char c) noexcept {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

Result<void> check_path(std::string_view what, std::string_view path) {
    if (path.empty() || path.front() != '/' || path.size() > k_max_path || path.find('\0') != std::string_view::npos)
        return make_error(ErrorCode::InvalidArgument, "the {} is not an absolute path: '{}'", what, path);
    return {};
}

Result<void> check_disk(DiskConfig const& disk) {
    if (disk.protection == DiskProtection::None) return check_path("disk", disk.path);
    if (disk.protection != DiskProtection::Unauthenticated && disk.protection != DiskProtection::Authenticated)
        return make_error(ErrorCode::InvalidArgument, "disk protection {} is unknown",
                          static_cast<unsigned>(disk.protection));
    bool named = disk.path.starts_with(k_disk_file_prefix) && disk.path.size() > k_disk_file_prefix.size() &&
                 disk.path.size() <= k_disk_file_prefix.size() + 4 &&
                 std::all_of(disk.path.begin() + static_cast<std::ptrdiff_t>(k_disk_file_prefix.size()),
                             disk.path.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!named || disk.uuid.is_nil())
        return make_error(ErrorCode::InvalidArgument, "encrypted disk '{}' is not a disk of the home", disk.path);
    return {};
}
} // namespace

std::string_view to_string(DiskProtection protection) noexcept {
    switch (protection) {
    case DiskProtection::None: return "none";
    case DiskProtection::Unauthenticated: return "unauthenticated";
    case DiskProtection::Authenticated: return "authenticated";
    }
    return "unknown";
}

std::string_view to_string(TpmKind kind) noexcept {
    switch (kind) {
    case TpmKind::None: return "none";
    case TpmKind::Crb: return "crb";
    case TpmKind::Tis: return "tis";
    case TpmKind::Tis13: return "tis13";
    }
    return "unknown";
}

Result<void> check_vm_name(std::string_view name) {
    bool allowed = std::all_of(name.begin(), name.end(),
                               [](char c) { return is_alphanumeric(c) || c == '.' || c == '_' || c == '-'; });
    if (name.empty() || name.size() > k_max_name || !allowed || !is_alphanumeric(name.front()))
        return make_error(ErrorCode::InvalidArgument,
                          "'{}' cannot be a VM's name: use 1 to {} letters, digits, '.', '_' and '-', beginning with a "
                          "letter or digit",
                          name, k_max_name);
    return {};
}

Result<void> check_vm_config(VmConfig const& config) {
    TRY(check_vm_name(config.name));
    if (config.uuid.is_nil()) return make_error(ErrorCode::InvalidArgument, "a VM needs a UUID");
    if (config.memory < k_min_memory || config.memory > k_max_memory || config.memory % k_memory_granule != 0)
        return make_error(ErrorCode::InvalidArgument,
                          "{} bytes of memory are not possible: give {} MiB to {} GiB in whole MiB", config.memory,
                          k_min_memory >> 20, k_max_memory >> 30);
    if (config.cpus < 1 || config.cpus > k_max_cpus)
        return make_error(ErrorCode::InvalidArgument, "{} CPUs are not possible: give 1 to {}", config.cpus,
                          k_max_cpus);
    if (config.disks.size() > k_max_disks)
        return make_error(ErrorCode::InvalidArgument, "a VM has at most {} disks", k_max_disks);
    for (auto const& disk : config.disks) TRY(check_disk(disk));
    TRY(check_path("firmware image", config.firmware_code));
    TRY(check_path("firmware variable store", config.firmware_variables));
    if (config.tpm > TpmKind::Tis13)
        return make_error(ErrorCode::InvalidArgument, "TPM kind {} is unknown", static_cast<unsigned>(config.tpm));
    if (config.pcr_banks == 0 || (config.pcr_banks & ~devices::k_all_pcr_banks) != 0)
        return make_error(ErrorCode::InvalidArgument, "the set of PCR banks {:#x} is not possible", config.pcr_banks);
    return {};
}

ByteVector encode_vm_config(VmConfig const& config) {
    return encode_fields(config);
}

Result<VmConfig> decode_vm_config(Bytes bytes) {
    VmConfig config;
    TRY(decode_fields(bytes, config));
    TRY(check_vm_config(config));
    return config;
}

} // namespace coffer::vmm
