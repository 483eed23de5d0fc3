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
                                                     BundleOpener const& open_key);

    bool encrypted() const noexcept override { return true; }
    bool has(HomeFile file) const override;
    Result<ByteVector> load(HomeFile file) const override;
    Result<void> commit(HomeFile file, Bytes content) override;
    Result<ByteVector> seal(std::string_view label, Bytes content) const override;
    Result<ByteVector> open_sealed(std::string_view label, Bytes sealed) const override;

private:
    EncryptedHome(HomeLocation const& location, std::optional<HomeLock> lock, BundleHeader header,
                  crypto::BundleKey key, BundleContent content)
        : HomeBase(location, std::move(lock)), m_header(std::move(header)), m_key(std::move(key)),
          m_content(std::move(content)) {}

    // The file's content and header, authentic and not older than the manifest says.
    Result<OpenedDataFile> load_checked(HomeFile file) const;
    // Checks every file, and brings manifest and host record up to files that a crash left one writing ahead.
    Result<void> verify_and_settle(std::optional<HostRecord> const& record);
    // Writes `keys` with the manifest as it is, then the host's record.
    Result<void> write_keys();

    BundleHeader m_header;
    crypto::BundleKey m_key;
    BundleContent m_content;
    // The manifest in memory names a writing that the one on disk may not: `keys` is written before the next data file,
    // so that no file is ever more than one writing ahead of it.
    bool m_keys_behind = false;
};

} // namespace coffer::vmm
