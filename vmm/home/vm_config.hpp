// What a VM is made of, as its owner asked for it. Kept in the home's `config` file, encrypted where the home is.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/uuid.hpp"
#include "devices/tpm/pcr_banks.hpp"

namespace coffer::vmm {

enum class TpmKind : uint8_t {
    None = 0,
    Crb = 1,   // Command Response Buffer interface
    Tis = 2,   // FIFO interface, as PTP identifies it
    Tis13 = 3, // the same, as TIS 1.3 does
};
std::string_view to_string(TpmKind kind) noexcept;
constexpr bool is_fifo(TpmKind kind) noexcept {
    return kind == TpmKind::Tis || kind == TpmKind::Tis13;
}

// What holds a disk's content against who has its file (docs/formats/disk.md).
enum class DiskProtection : uint8_t {
    None = 0,            // raw
    Unauthenticated = 1, // encrypted
    Authenticated = 2,   // encrypted, and changes are seen
};
std::string_view to_string(DiskProtection protection) noexcept;

struct DiskConfig {
    // DiskProtection::None: absolute, on the host. Else a file of the home's folder, "disk-" and a number.
    std::string path;
    bool read_only = false;
    DiskProtection protection = DiskProtection::None;
    Uuid uuid = {}; // of a protected disk: names its keys in the home's file `disks`

    template <class V>
    void fields(V& v) {
        v.required(1, path);
        v.field(2, read_only);
        v.field(3, protection);
        v.field(4, uuid);
    }
    // Where the image is; `home` is the home's folder.
    std::filesystem::path file(std::filesystem::path const& home) const {
        return protection == DiskProtection::None ? std::filesystem::path(path) : home / path;
    }
    bool operator==(DiskConfig const&) const = default;
};

// Limits that hold for every backend; a backend's own are checked when the VM is run.
constexpr uint64_t k_min_memory = uint64_t{64} << 20;
constexpr uint64_t k_max_memory = uint64_t{1} << 40;
constexpr uint64_t k_memory_granule = uint64_t{1} << 20;
constexpr uint32_t k_max_cpus = 255;
constexpr size_t k_max_disks = 16;
constexpr std::string_view k_disk_file_prefix = "disk-"; // of encrypted disks in the home's folder

struct VmConfig {
    std::string name;
    Uuid uuid;
    uint64_t memory = uint64_t{1} << 30; // bytes; a multiple of 1 MiB
    uint32_t cpus = 1;
    std::vector<DiskConfig> disks;
    TpmKind tpm = TpmKind::None;
    devices::PcrBankMask pcr_banks = devices::k_all_pcr_banks; // that the TPM is made with; the guest may change them
    std::string firmware_code;                                 // absolute path of the flash code image
    std::string firmware_variables;                            // absolute path of the template that NVRAM was made from
    bool secure_boot = false;
    int64_t created = 0;      // seconds since 1970-01-01 UTC
    bool encrypt = false;     // the home stays encrypted without a TPM
    bool is_template = false; // not to be run: VMs are made of it

    template <class V>
    void fields(V& v) {
        v.required(1, name);
        v.required(2, uuid);
        v.required(3, memory);
        v.required(4, cpus);
        v.field(5, disks);
        v.required(6, tpm);
        v.required(7, firmware_code);
        v.field(8, firmware_variables);
        v.field(9, secure_boot);
        v.field(10, created);
        v.field(32, pcr_banks);
        v.field(40, encrypt);
        v.field(41, is_template);
    }
    bool operator==(VmConfig const&) const = default;
};

// 1 to 64 characters of A-Z a-z 0-9 . _ - that begin with a letter or digit: the name is a folder's name too.
Result<void> check_vm_name(std::string_view name);
// InvalidArgument, naming the value that is out of range. Decoded configurations are checked too.
Result<void> check_vm_config(VmConfig const& config);

ByteVector encode_vm_config(VmConfig const& config);
Result<VmConfig> decode_vm_config(Bytes bytes);

} // namespace coffer::vmm
