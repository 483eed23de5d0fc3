// An open home, as the process that runs the VM sees it. It holds the bundle key and the data encryption keys of this
// VM, never a provider's keys.
//
// Thread rule: all functions may be called from any thread; commits are serialised inside.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "devices/core/backends.hpp"
#include "vmm/home/home_location.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm {

enum class HomeFile : uint8_t {
    Config, // VmConfig
    Nvram,  // UEFI variables: the content of the variable flash
    Tpm,    // the TPM's permanent state
    Disks,  // keys of the encrypted disks (vmm/disk/disk_secrets.hpp)
};
constexpr size_t k_home_file_count = 4;
std::string_view file_name(HomeFile file) noexcept;

enum class HomeAccess : uint8_t {
    ReadOnly, // takes no lock and writes nothing; load() may be asked again where a writer was in between
    Writer,   // takes the home's lock (Busy where another process has it) and keeps it while the session lives
};

class HomeSession {
public:
    virtual ~HomeSession() = default;

    // Changes only by commit(HomeFile::Config), which must not run while another thread looks at it.
    virtual VmConfig const& config() const noexcept = 0;
    virtual bool encrypted() const noexcept = 0;
    // Whether this host had no record of the home before it was opened: its age could not be judged.
    virtual bool first_seen() const noexcept = 0;

    // Whether the file was ever written, by the home's authenticated manifest (in an unencrypted home: whether it is
    // there). A TPM is manufactured where the configuration has one and has(HomeFile::Tpm) is false, and never else.
    virtual bool has(HomeFile file) const = 0;

    // The content, authenticated. Integrity where it was changed, is missing though the manifest names it, or is older
    // than the manifest says; the message names the file. NotFound where has() is false.
    virtual Result<ByteVector> load(HomeFile file) const = 0;

    // After success `content` is durable, and is what every later start loads. After an error the next start loads
    // either the old or the new content, whole; a later commit() may still succeed.
    virtual Result<void> commit(HomeFile file, Bytes content) = 0;

    // Content that leaves the home, encrypted and authenticated under the VM's current key: only this VM's home opens
    // it again, and only under the same label (1 to 63 characters, not a HomeFile's name). Unsupported in an
    // unencrypted home. open_sealed() is Integrity for anything that seal() did not make.
    virtual Result<ByteVector> seal(std::string_view label, Bytes content) const = 0;
    virtual Result<ByteVector> open_sealed(std::string_view label, Bytes sealed) const = 0;

    // commit() as the devices know it. Lives as long as the session.
    virtual devices::NvStore& store(HomeFile file) noexcept = 0;
};

// How the key is had. The keeper is a process of its own: provider code and its keys are never in this one.
struct KeeperOptions {
    // The keeper reads the provider's passphrase from here, and this process gives the descriptor up (it is /dev/null
    // afterwards); -1: the keeper asks on /dev/tty.
    int passphrase_fd = -1;
    bool may_prompt = true; // false: a provider that needs a passphrase is KeyUnavailable without passphrase_fd
    std::filesystem::path program = "/proc/self/exe"; // the coffer program, started as keeper
};

// Opens the home: has the bundle key unwrapped by a keeper (where it is encrypted), authenticates `keys` and `config`,
// and compares the home with the host's record of it. NotFound, Busy, KeyUnavailable, Integrity, Io; nothing is
// overwritten on the way to an error.
Result<std::unique_ptr<HomeSession>> unlock_home(HomeLocation const& location, KeeperOptions const& options,
                                                 HomeAccess access = HomeAccess::Writer);

} // namespace coffer::vmm
