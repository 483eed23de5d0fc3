// A home under a key provider. Private to vmm/home.
#pragma once

#include "vmm/home/home_base.hpp"
#include "vmm/home/home_open.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::vmm {

class EncryptedHome final : public HomeBase {
public:
    // `keys_file` is the content of the home's `keys`; `record` what the host knows of the home.
    static Result<std::unique_ptr<HomeSession>> open(HomeLocation const& location, std::optional<HomeLock> lock,
                                                     Bytes keys_file, std::optional<HostRecord> const& record,
                                                     BundleOpener const& open_key, RollbackPolicy rollback);

    bool encrypted() const noexcept override { return true; }
    bool has(HomeFile file) const override;
    Result<ByteVector> load(HomeFile file) const override;
    Result<void> commit(HomeFile file, Bytes content) override;
    Result<ByteVector> seal(std::string_view label, Bytes content) const override;
    Result<ByteVector> open_sealed(std::string_view label, Bytes sealed) const override;
    Result<StoredHome> stored() const override;
    Result<std::optional<BackupKey>> backup_key(Bytes salt) const override;

    std::vector<FurtherFile> further_files() const override;
    bool has_file(std::string_view name) const override;
    Result<ByteVector> load_file(std::string_view name) const override;
    Result<void> commit_file(std::string_view name, Bytes content) override;
    Result<void> drop_file(std::string_view name) override;
    Result<ImageWriting> begin_image(std::string_view name) const override;
    Result<void> commit_image(ImageWriting const& writing, ImageRoot const& root) override;
    Result<OpenedImage> open_image(std::string_view name) const override;

    std::optional<BundleHeader> header() const override;
    Result<void> rekey(HomeSeal seal) override;
    Result<void> rekey_deep(HomeSeal seal, ImageRewriter const& rewrite, RekeyProgress const& progress) override;
    bool deep_rekey_pending() const override;
    Result<void> finish_deep_rekey(ImageRewriter const& rewrite, RekeyProgress const& progress) override;
    Result<std::vector<HistoryEvent>> history() const override;
    Result<void> append_history(HistoryKind kind, std::string_view text) override;
    Result<void> hand_over(Uuid const& migration) override;
    Result<void> claim(HistoryKind kind, std::string_view text) override;
    Result<crypto::MacKey> migration_key(Uuid const& migration) const override;

private:
    EncryptedHome(HomeLocation const& location, std::optional<HomeLock> lock, BundleHeader header,
                  crypto::BundleKey key, BundleContent content)
        : HomeBase(location, std::move(lock)), m_header(std::move(header)), m_key(std::move(key)),
          m_content(std::move(content)) {}

    // What follows is called with the home's mutex held.

    Result<HostRecord> settled_record() override;

    Result<crypto::DataEncryptionKey const*> key_of(DataFileHeader const& header,
                                                    std::filesystem::path const& path) const;
    // The data file's content and header, authentic and not older than the manifest says.
    Result<OpenedDataFile> load_checked(std::string_view name) const;
    // The same of a header, of a data file or image.
    Result<DataFileHeader> check_head(std::string_view name) const;
    // Checks every file, and brings manifest and host record up to files that a crash left one writing ahead.
    Result<void> verify_and_settle(std::optional<HostRecord> const& record);
    // Takes a file that is one writing ahead for the one that counts; `ahead` is set where `keys` is to be written.
    Result<void> settle(std::string_view name, bool& ahead);
    Result<void> settle_all(bool& ahead);
    Result<void> remove_unknown_files() const;
    // The home as it is becomes the newest, in place of writing `known`.
    Result<void> accept_rollback(uint64_t known);

    // Each change begins here: a writer's session of this host's home, and no writing of `keys` that is owed.
    Result<void> begin_change();
    // Of `keys` with the manifest as it is, then the host's record.
    Result<void> write_keys();
    // Writes the data file and names it in the manifest; `keys` is to be written then.
    Result<void> write_data(std::string_view name, Bytes content);
    // NoSpace where the manifest has no place for a further file of that name.
    Result<void> check_room(std::string_view name) const;
    DataFileHeader next_writing(std::string_view name, Uuid const& file) const;
    // Moves the manifest's events to the file `history` where no more fit.
    Result<void> make_room_for_event();
    Result<std::vector<HistoryEvent>> read_history() const;

    Result<void> replace_seal(HomeSeal seal, bool new_epoch);
    // Every data file that is under an older key is rewritten under the current one.
    Result<void> renew_data_files(std::function<void(uint64_t)> const& advance);
    bool is_old(ManifestEntry const& entry) const noexcept { return entry.epoch != m_content.manifest.current_epoch; }

    BundleHeader m_header;
    crypto::BundleKey m_key;
    BundleContent m_content;
    // The manifest in memory names a writing that the one on disk may not: `keys` is written before the next data file,
    // so that no file is ever more than one writing ahead of it.
    bool m_keys_behind = false;
    ByteVector m_sealed; // the last data file that was written: its memory is used again
    Standing m_standing = Standing::Owner;
};

} // namespace coffer::vmm
