// What encrypted and unencrypted homes share. Private to vmm/home.
#pragma once

#include <array>
#include <mutex>
#include <optional>

#include "vmm/home/data_file.hpp"
#include "vmm/home/home_lock.hpp"
#include "vmm/home/home_session.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::vmm {

constexpr std::array k_home_files = {HomeFile::Config, HomeFile::Nvram,   HomeFile::Tpm,
                                     HomeFile::Disks,  HomeFile::History, HomeFile::Snapshots};
static_assert(k_home_files.size() == k_home_file_count);

// A data file's bytes; nothing where it does not exist, Integrity where it is longer than any can be.
Result<std::optional<ByteVector>> read_home_file(std::filesystem::path const& path);

// The first 4096 bytes of a data file or image, and the size of the whole; nothing where it does not exist.
struct FileHead {
    ByteVector bytes;
    uint64_t file_size = 0;
};
Result<std::optional<FileHead>> read_file_head(std::filesystem::path const& path);

struct NewPlace {
    HomeLocation location;
    std::optional<HomeLock> lock; // of the home there; nothing where it cannot be told which of the two counts
    std::string doubt = {};       // why that is
};

class HomeBase : public HomeSession {
public:
    HomeBase(HomeLocation location, std::optional<HomeLock> lock);

    VmConfig const& config() const noexcept override { return m_config; }
    HomeLocation const& location() const noexcept override { return m_location; }
    bool first_seen() const noexcept override { return m_first_seen; }
    devices::NvStore& store(HomeFile file) noexcept override { return m_stores[static_cast<size_t>(file)]; }
    Result<void> hand_over(Uuid const& migration) override;
    Result<void> claim(HistoryKind kind, std::string_view text) override;
    Result<crypto::MacKey> migration_key(Uuid const& migration) const override;
    Result<HomeLock> change_place(PlaceChange const& change) final;

protected:
    // Of this host's home as it is, with nothing owed; the mutex is held.
    virtual Result<HostRecord> settled_record() = 0;
    std::filesystem::path path_of(std::string_view name) const { return m_location.folder() / name; }
    std::filesystem::path path_of(HomeFile file) const { return path_of(file_name(file)); }
    // InvalidArgument in a session that was opened to read.
    Result<void> check_writer() const;
    static Result<void> check_further_name(std::string_view name);
    // Decodes `config` and checks that it is the configuration of this VM under this name.
    Result<VmConfig> decode_config(Bytes content, Uuid const& vm) const;
    // Removes what crashes left in the folder: temporary files, and files of further names that `known` denies.
    Result<void> remove_leftovers(std::function<bool(std::string_view)> const& known) const;
    // Makes `writing` whole with the sealed header and puts it in its place, durable.
    Result<void> place_image(ImageWriting const& writing, ImageRoot const& root,
                             crypto::DataEncryptionKey const* key) const;
    std::filesystem::path image_writing_path(std::string_view name) const;

    HomeLocation m_location;
    std::optional<HomeLock> m_lock;
    VmConfig m_config;
    bool m_first_seen = false;
    std::string m_doubt; // not empty: nothing is changed any more, and why
    mutable std::mutex m_mutex;

private:
    class Store final : public devices::NvStore {
    public:
        Store(HomeBase& home, HomeFile file) : m_home(home), m_file(file) {}
        Result<void> commit(Bytes content) override { return m_home.commit(m_file, content); }

    private:
        HomeBase& m_home;
        HomeFile m_file;
    };

    std::array<Store, k_home_file_count> m_stores;
};

} // namespace coffer::vmm
