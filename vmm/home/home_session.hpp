// An open home, as the process that runs the VM sees it. It holds the bundle key and the data encryption keys of this
// VM, never a provider's keys.
//
// Thread rule: all functions may be called from any thread; commits are serialised inside.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "devices/core/backends.hpp"
#include "vmm/home/backup_format.hpp"
#include "vmm/home/data_file.hpp"
#include "vmm/home/home_history.hpp"
#include "vmm/home/home_location.hpp"
#include "vmm/home/home_seal.hpp"
#include "vmm/home/key_bundle.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm {

enum class HomeFile : uint8_t {
    Config,    // VmConfig
    Nvram,     // UEFI variables: the content of the variable flash
    Tpm,       // the TPM's permanent state
    Disks,     // keys of the encrypted disks (vmm/disk/disk_secrets.hpp)
    History,   // HistoryEvents; the session writes it itself: see append_history()
    Snapshots, // the tree of snapshots
};
constexpr size_t k_home_file_count = 6;
std::string_view file_name(HomeFile file) noexcept;

// Whether a file beside the fixed ones may have this name: "snapshot-" and then lower-case letters, digits, '.' and
// '-', at most 63 characters in all. A writer that opens the home deletes files of such names that the manifest does
// not know: they are what a crash left of one that was being made or dropped.
bool is_further_name(std::string_view name) noexcept;

struct FurtherFile {
    std::string name;
    bool image = false;      // of a layout of its own; otherwise a data file
    uint64_t generation = 0; // 0 in unencrypted homes
};

// One writing of an image, begun and not yet committed. The caller makes `path` (mode 0600, O_TRUNC), and writes
// all but the first 4096 bytes there.
struct ImageWriting {
    DataFileHeader header;         // all but content_size; its file UUID is the salt of `keys`
    std::optional<ImageKeys> keys; // nothing in an unencrypted home
    std::filesystem::path path;
};

struct OpenedImage {
    DataFileHeader header;
    ImageRoot root;
    std::optional<ImageKeys> keys; // nothing in an unencrypted home
    std::filesystem::path path;
};

// The home's own files as they are stored, at one moment between two commits; further files are not among them.
struct StoredHome {
    struct File {
        std::string name;
        ByteVector bytes;
    };
    ByteVector keys; // empty in an unencrypted home
    std::vector<File> files;
};

// Bytes rewritten, of all that are to be.
using RekeyProgress = std::function<void(uint64_t done, uint64_t total)>;

// Makes `to` of the content of `from`, as an ImageWriting says, and gives what commit_image() is to be called with.
// Only the image's layout knows how. `advance` takes bytes of `from` as they are done.
using ImageRewriter = std::function<Result<ImageRoot>(OpenedImage const& from, ImageWriting const& to,
                                                      std::function<void(uint64_t)> const& advance)>;

enum class HomeAccess : uint8_t {
    ReadOnly, // takes no lock and writes nothing; load() may be asked again where a writer was in between
    Writer,   // takes the home's lock (Busy where another process has it) and keeps it while the session lives
};

// What is done with a home that is older as a whole than this host knows it.
enum class RollbackPolicy : uint8_t {
    Refuse,
    // The owner's word that the old copy is wanted: it becomes the newest one, and the files of the state that is given
    // up no longer open. For writers. InvalidArgument where the home was not rolled back.
    Accept,
};

struct HostRecord;
struct NewPlace;
class HomeLock;

// Makes the home that lies at another place the one that counts (vmm/home/open_home_move.hpp); `record` is what this
// host has to say of the home as it is.
using PlaceChange = std::function<Result<NewPlace>(HostRecord const& record)>;

class HomeSession {
public:
    virtual ~HomeSession() = default;

    // Changes only by commit(HomeFile::Config), which must not run while another thread looks at it.
    virtual VmConfig const& config() const noexcept = 0;
    virtual bool encrypted() const noexcept = 0;
    virtual HomeLocation const& location() const noexcept = 0;
    // Whether this host had no record of the home before it was opened: its age could not be judged.
    virtual bool first_seen() const noexcept = 0;

    // Whether the file was ever written, by the home's authenticated manifest (in an unencrypted home: whether it is
    // there).
    virtual bool has(HomeFile file) const = 0;

    // The content, authenticated. Integrity where it was changed, is missing though the manifest names it, or is older
    // than the manifest says; the message names the file. NotFound where has() is false.
    virtual Result<ByteVector> load(HomeFile file) const = 0;

    // After success `content` is durable, and is what every later start loads. After an error the next start loads
    // either the old or the new content, whole; a later commit() may still succeed. Not of HomeFile::History.
    virtual Result<void> commit(HomeFile file, Bytes content) = 0;

    // Files beside the fixed ones, by the rules of load() and commit(): a data file is replaced as a whole, holds at
    // most 64 MiB and is authenticated whole when it is loaded; opening the home authenticates its header. They count
    // towards the manifest's limit of 160 files (NoSpace). InvalidArgument where is_further_name() is false.
    virtual std::vector<FurtherFile> further_files() const = 0;
    virtual bool has_file(std::string_view name) const = 0;
    virtual Result<ByteVector> load_file(std::string_view name) const = 0;
    virtual Result<void> commit_file(std::string_view name, Bytes content) = 0;
    // Data files and images. No error where there is none. After an error the file may be there still, or be gone.
    virtual Result<void> drop_file(std::string_view name) = 0;

    // Images: files that are written once, large, in a layout of their own (docs/formats/home.md, "Images").
    //   begin_image() writes nothing. The caller writes and closes `path`; then commit_image() puts the header
    // before it, makes it durable and names it in the manifest, in place of an older image of that name. Until then,
    // and after an error, the home has what it had; the caller removes `path` where it gives up. open_image()
    // authenticates the header and the file's size. Content is the caller's to check, by root.digest. An unencrypted
    // home has no keys, and what is in its images is protected against accidents alone.
    virtual Result<ImageWriting> begin_image(std::string_view name) const = 0;
    virtual Result<void> commit_image(ImageWriting const& writing, ImageRoot const& root) = 0;
    virtual Result<OpenedImage> open_image(std::string_view name) const = 0;

    // What `keys` says in the clear, as it was last written; nothing in an unencrypted home.
    virtual std::optional<BundleHeader> header() const = 0;

    // Shallow rekey, or a change of provider: `keys` is written under the new seal, and nothing else is. Allowed while
    // the VM runs. The caller has proven that the provider unwraps seal.wrapped to seal.key
    // (KeeperProcess::make_proven_seal). After an error this session goes on with the old seal, and the home on disk
    // opens with one of the two. The old bundle key is wiped. Logged in the history. InvalidArgument in an unencrypted
    // home.
    virtual Result<void> rekey(HomeSeal seal) = 0;

    // Deep rekey: rekey() with a fresh data encryption key, then every file is rewritten under it, and keys that no
    // file needs any more are forgotten. With the VM off. A crash or error on the way leaves files under either key,
    // all of which open; opening the home to write goes on with the data files, and finish_deep_rekey() with all.
    // `rewrite` is called for images; where there are some and it is null: InvalidArgument, and nothing is done.
    virtual Result<void> rekey_deep(HomeSeal seal, ImageRewriter const& rewrite, RekeyProgress const& progress) = 0;
    // Whether files are left that are under an older data encryption key than the current one.
    virtual bool deep_rekey_pending() const = 0;
    virtual Result<void> finish_deep_rekey(ImageRewriter const& rewrite, RekeyProgress const& progress) = 0;

    // What befell the home, the oldest first. In an unencrypted home it is protected against accidents alone.
    virtual Result<std::vector<HistoryEvent>> history() const = 0;
    // Durable after success. The home gives number and time.
    virtual Result<void> append_history(HistoryKind kind, std::string_view text) = 0;

    // Content that leaves the home, encrypted and authenticated under the VM's current key: only this VM's home opens
    // it again, and only under the same label (1 to 63 characters, not a HomeFile's name). Unsupported in an
    // unencrypted home. open_sealed() is Integrity for anything that seal() did not make.
    virtual Result<ByteVector> seal(std::string_view label, Bytes content) const = 0;
    virtual Result<ByteVector> open_sealed(std::string_view label, Bytes sealed) const = 0;

    // What a backup is made of. Integrity where a file is not what it should be; Io while a writing of `keys` is owed.
    virtual Result<StoredHome> stored() const = 0;
    // The root of the keys of a backup with this salt (vmm/home/backup_format.hpp); nothing in an unencrypted home.
    virtual Result<std::optional<BackupKey>> backup_key(Bytes salt) const = 0;

    // Migration (docs/migration.md); Unsupported in an unencrypted home.
    //   hand_over(): after success this host's record says that another host has the VM, with a sequence above the
    // home's; no writer opens the home any more, and this session changes it no more. After an error it may say so:
    // claim() makes it this session's again.
    virtual Result<void> hand_over(Uuid const& migration) = 0;
    // The home is this host's, and this session's to change: after hand_over(), or where it was arriving. Both `keys`,
    // with the event, and the record are written.
    virtual Result<void> claim(HistoryKind kind, std::string_view text) = 0;
    // Proves that whoever has it can open the home.
    virtual Result<crypto::MacKey> migration_key(Uuid const& migration) const = 0;

    // Another root of this host: calls `change` with no commit under way and none owed. After success the session, and
    // location(), are at the new place, and the lock of the old one is the caller's. After an error the session goes on
    // where it was; but where `change` said that it cannot be told which home counts, it changes neither any more.
    virtual Result<HomeLock> change_place(PlaceChange const& change) = 0;

    // commit() as the devices know it. Lives as long as the session.
    virtual devices::NvStore& store(HomeFile file) noexcept = 0;
};

// The TPM's permanent state. NotFound where the home lacks it, with what the user can do: no TPM is ever made in place
// of one that is missing, because the guest would find its secrets gone without a word.
Result<ByteVector> load_tpm(HomeSession const& home);

// How the key is had. The keeper is a process of its own: provider code and its keys are never in this one.
struct KeeperOptions {
    // The keeper reads the provider's passphrase from here, and this process gives the descriptor up (it is /dev/null
    // afterwards); -1: the keeper asks on /dev/tty.
    int passphrase_fd = -1;
    bool may_prompt = true; // false: a provider that needs a passphrase is KeyUnavailable without passphrase_fd
    bool manage = false;    // the keeper makes and changes native providers, too
    int password_fd = -1;   // of a backup; as passphrase_fd
    std::string host_tpm;   // TCTI of the TPM that a new provider is bound to; empty: of none
    std::filesystem::path program = "/proc/self/exe"; // the coffer program, started as keeper
};

// Opens the home: has the bundle key unwrapped by a keeper (where it is encrypted), authenticates `keys` and `config`,
// and compares the home with the host's record of it. NotFound, Busy, KeyUnavailable, Integrity, Io; nothing is
// overwritten on the way to an error.
Result<std::unique_ptr<HomeSession>> unlock_home(HomeLocation const& location, KeeperOptions const& options,
                                                 HomeAccess access = HomeAccess::Writer,
                                                 RollbackPolicy rollback = RollbackPolicy::Refuse);

} // namespace coffer::vmm
