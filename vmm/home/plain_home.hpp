// A home without a key provider: neither hidden nor protected against change, only against being read in a damaged
// state. It has no TPM. Private to vmm/home.
#pragma once

#include "vmm/home/home_base.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::vmm {

class PlainHome final : public HomeBase {
public:
    static Result<std::unique_ptr<HomeSession>> open(HomeLocation const& location, std::optional<HomeLock> lock,
                                                     std::optional<HostRecord> const& record);

    bool encrypted() const noexcept override { return false; }
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

    std::optional<BundleHeader> header() const override { return std::nullopt; }
    Result<void> rekey(HomeSeal seal) override;
    Result<void> rekey_deep(HomeSeal seal, ImageRewriter const& rewrite, RekeyProgress const& progress) override;
    bool deep_rekey_pending() const override { return false; }
    Result<void> finish_deep_rekey(ImageRewriter const& rewrite, RekeyProgress const& progress) override;
    Result<std::vector<HistoryEvent>> history() const override;
    Result<void> append_history(HistoryKind kind, std::string_view text) override;

private:
    using HomeBase::HomeBase;

    Result<HostRecord> settled_record() override;
    bool present(std::string_view name) const;
    Result<OpenedDataFile> load_checked(std::string_view name) const;
    Result<void> write_data(std::string_view name, Bytes content);
    Result<DataFileHeader> next_writing(std::string_view name) const;
    Result<std::vector<HistoryEvent>> read_history() const;
    Error no_keys(std::string_view what) const;
};

} // namespace coffer::vmm
