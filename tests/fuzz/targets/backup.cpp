// Backup files as hostile bytes. The input is a little-endian u32 size, the header's fields and what stands behind the
// header; the header around the fields is made right, as whoever wants to be believed would make it.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>
#include <unistd.h>

#include "vmm/home/backup.hpp"
#include "vmm/home/backup_chunks.hpp"

namespace {

using namespace coffer;
using namespace coffer::vmm;
namespace spec = backup_spec;

void must(bool holds) {
    if (!holds) __builtin_trap();
}

crypto::BundleKey bundle_key() {
    return std::move(*crypto::BundleKey::adopt(crypto::SecretBytes(crypto::BundleKey::k_size)));
}

ByteVector header_around(Bytes fields, uint8_t mac_kind) {
    ByteVector bytes(spec::k_header_size);
    std::memcpy(bytes.data(), spec::k_magic.data(), spec::k_magic.size());
    store_le<uint32_t>(bytes, spec::k_version_at, spec::k_version);
    store_le<uint32_t>(bytes, spec::k_fields_size_at, static_cast<uint32_t>(fields.size()));
    store_le<uint8_t>(bytes, spec::k_mac_kind_at, mac_kind);
    auto digest = crypto::sha256({Bytes(bytes).first(spec::k_digest_at), fields});
    std::memcpy(bytes.data() + spec::k_digest_at, digest->data(), digest->size());
    if (!fields.empty()) std::memcpy(bytes.data() + spec::k_fields_at, fields.data(), fields.size());
    std::byte const domain{1};
    auto mac = crypto::sha256({object_bytes(domain), Bytes(bytes).first(spec::k_mac_at)});
    std::memcpy(bytes.data() + spec::k_mac_at, mac->data(), mac->size());
    return bytes;
}

std::string path_of(int fd) {
    return "/proc/self/fd/" + std::to_string(fd);
}

void read_file_of(Bytes bytes) {
    UniqueFd file(::memfd_create("backup", MFD_CLOEXEC));
    must(file.valid() && pwrite_all(file.get(), bytes, 0, "backup").has_value());
    auto backup = BackupFile::open(path_of(file.get()));
    if (!backup) return;
    must(backup->header().file_size() == bytes.size());
    bool asked = false;
    auto content = backup->unlock([&](BundleHeader const&) -> Result<crypto::BundleKey> {
        must(!std::exchange(asked, true));
        return bundle_key();
    });
    if (!content) return;
    must(content->config.name == backup->header().name && content->config.uuid == backup->header().vm);
    for (auto const& part : backup->header().parts) {
        if (part.kind != BackupPartKind::Disk || part.content_size > (1 << 24)) continue;
        UniqueFd to(::memfd_create("disk", MFD_CLOEXEC));
        must(to.valid());
        (void)backup->extract_disk(part, to.get(), "disk", [](uint64_t) { return Result<void>(); });
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    Bytes const input = std::as_bytes(std::span(data, size));
    if (input.size() < 4) return 0;
    size_t const fields_size = load_le<uint32_t>(input);
    Bytes const rest = input.subspan(4);
    if (fields_size > rest.size() || fields_size > spec::k_max_fields) return 0;
    Bytes const fields = rest.first(fields_size);
    Bytes const parts = rest.subspan(fields_size);
    for (uint8_t mac_kind : {uint8_t{0}, uint8_t{1}}) {
        auto file = header_around(fields, mac_kind);
        append(file, parts);
        if (auto header = parse_backup_header(file, file.size(), "backup")) {
            // What was accepted can be written again, and reads the same.
            auto again = encode_backup_header(*header, nullptr);
            must(again.has_value());
            if (mac_kind == 0) must(parse_backup_header(*again, file.size(), "backup").has_value());
        }
        read_file_of(file);
    }
    return 0;
}
