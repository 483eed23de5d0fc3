#include "keyprovider/checked_file.hpp"

#include "base/file.hpp"
#include "crypto/mac.hpp"

namespace coffer {

namespace {
constexpr size_t k_magic_size = 8;
constexpr size_t k_prefix_size = 16;
} // namespace

Error damaged_provider_file(std::filesystem::path const& path) {
    return make_error(ErrorCode::Integrity,
                      "{}: the provider's description was changed or damaged; put back an intact copy", path.native());
}

Result<void> write_checked_file(std::filesystem::path const& path, CheckedFileFormat const& format, Bytes fields) {
    COFFER_ASSERT(format.magic.size() == k_magic_size);
    if (fields.size() > format.max_size - k_prefix_size - crypto::k_digest_size)
        return make_error(ErrorCode::InvalidArgument, "what {} should hold is too long", path.native());
    ByteVector file(k_prefix_size);
    std::memcpy(file.data(), format.magic.data(), k_magic_size);
    store_le<uint32_t>(file, 8, format.version);
    store_le<uint32_t>(file, 12, static_cast<uint32_t>(fields.size()));
    append(file, fields);
    auto digest = TRY(crypto::sha256({file}));
    append(file, digest);
    return replace_file(path, file, 0600);
}

Result<ByteVector> read_checked_file(std::filesystem::path const& path, CheckedFileFormat const& format) {
    auto file = read_file(path, format.max_size);
    if (!file && file.error().code() == ErrorCode::Corrupt) return damaged_provider_file(path);
    if (!file) return std::move(file).error();
    Bytes const bytes = *file;
    if (bytes.size() < k_prefix_size + crypto::k_digest_size ||
        std::memcmp(bytes.data(), format.magic.data(), k_magic_size) != 0 ||
        load_le<uint32_t>(bytes, 8) != format.version ||
        load_le<uint32_t>(bytes, 12) != bytes.size() - k_prefix_size - crypto::k_digest_size)
        return damaged_provider_file(path);
    Bytes const checked = bytes.first(bytes.size() - crypto::k_digest_size);
    auto digest = TRY(crypto::sha256({checked}));
    if (!crypto::equal_in_constant_time(digest, bytes.last(digest.size()))) return damaged_provider_file(path);
    Bytes const fields = checked.subspan(k_prefix_size);
    return ByteVector(fields.begin(), fields.end());
}

} // namespace coffer
