#include "vmm/home/home_base.hpp"

#include "base/file.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

std::string_view file_name(HomeFile file) noexcept {
    switch (file) {
    case HomeFile::Config: return "config";
    case HomeFile::Nvram: return "nvram";
    case HomeFile::Tpm: return "tpm";
    case HomeFile::Disks: return "disks";
    }
    return "unknown";
}

Result<std::optional<ByteVector>> read_home_file(std::filesystem::path const& path) {
    constexpr uint64_t k_units = home_spec::data::k_max_content / home_spec::data::k_unit_size;
    constexpr uint64_t k_limit =
        home_spec::data::k_header_size + k_units * (home_spec::data::k_unit_size + home_spec::data::k_tag_size);
    auto file = read_file(path, k_limit);
    if (!file) {
        if (file.error().code() == ErrorCode::NotFound) return std::optional<ByteVector>();
        if (file.error().code() == ErrorCode::Corrupt || file.error().code() == ErrorCode::InvalidArgument)
            return damaged(path, "the file cannot be a file of a home");
        return std::move(file).error();
    }
    return std::optional(std::move(*file));
}

HomeBase::HomeBase(HomeLocation location, std::optional<HomeLock> lock)
    : m_location(std::move(location)),
      m_lock(std::move(lock)), m_stores{Store(*this, HomeFile::Config), Store(*this, HomeFile::Nvram),
                                        Store(*this, HomeFile::Tpm), Store(*this, HomeFile::Disks)} {}

Result<void> HomeBase::check_writer() const {
    if (!m_lock) return make_error(ErrorCode::InvalidArgument, "home '{}' was opened to be read only", m_location.name);
    return {};
}

Result<VmConfig> HomeBase::decode_config(Bytes content, Uuid const& vm) const {
    auto path = path_of(HomeFile::Config);
    auto config = decode_vm_config(content);
    if (!config) return damaged(path, config.error().message());
    if (config->uuid != vm || config->name != m_location.name)
        return damaged(
            path, fmt::format("the configuration is that of VM '{}' ({})", config->name, config->uuid.to_string()));
    return config;
}

} // namespace coffer::vmm
