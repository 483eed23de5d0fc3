// Saved machines, their images and the index of snapshots as hostile bytes. The first byte says which parser the rest
// is for. What a digest would stop at the door is let in: digests and tags are made right here.
#include <cstdint>
#include <cstring>

#include <sys/mman.h>
#include <unistd.h>

#include "base/tagged.hpp"
#include "crypto/mac.hpp"
#include "vmm/home/home_together.hpp"
#include "vmm/snapshot/machine_image.hpp"
#include "vmm/snapshot/machine_state.hpp"
#include "vmm/snapshot/snapshot_index.hpp"

namespace {

using namespace coffer;
using namespace coffer::vmm;
namespace spec = image_spec;

void machine_state(Bytes bytes) {
    auto state = decode_machine_state(bytes);
    if (!state) return;
    auto encoded = encode_machine_state(*state);
    auto again = decode_machine_state(encoded);
    COFFER_ASSERT(again && encode_machine_state(*again) == encoded);
    (void)missing_features(state->cpuid, {});
}

template <class T>
void fields(Bytes bytes) {
    T value;
    if (!decode_fields(bytes, value)) return;
    auto encoded = encode_fields(value);
    T again;
    COFFER_ASSERT(decode_fields(encoded, again).has_value() && encode_fields(again) == encoded);
}

// The layout's part of the header, then the file's content behind the header: clusters and table of an unencrypted
// home.
void image(Bytes bytes) {
    if (bytes.size() < spec::k_own_size) return;
    OpenedImage image;
    image.root.own.assign(bytes.begin(), bytes.begin() + spec::k_own_size);
    bytes = bytes.subspan(spec::k_own_size);
    ByteVector file(home_spec::data::k_header_size);
    append(file, bytes);
    uint64_t table = load_le<uint64_t>(image.root.own, spec::k_table_at);
    if (table <= file.size()) {
        // Tags of what the entries say, where that lies in the file.
        for (uint64_t number = 0; (number + 1) * spec::k_entry <= file.size() - table; ++number) {
            MutBytes entry = MutBytes(file).subspan(table + number * spec::k_entry, spec::k_entry);
            uint64_t offset = load_le<uint64_t>(entry, spec::k_entry_offset_at);
            uint64_t size = load_le<uint32_t>(entry, spec::k_entry_size_at);
            if (offset > table || size > table - offset) continue;
            auto digest = crypto::sha256({object_bytes(number), Bytes(file).subspan(offset, size)});
            std::copy_n(digest->begin(), crypto::Gmac::k_tag_size, entry.begin() + spec::k_entry_tag_at);
        }
        image.root.digest = *crypto::sha256({Bytes(file).subspan(table)});
    }
    image.header.content_size = bytes.size();
    UniqueFd fd(::memfd_create("image", MFD_CLOEXEC));
    COFFER_ASSERT(fd.valid() && pwrite_all(fd.get(), file, 0, "image").has_value());
    image.path = fmt::format("/proc/self/fd/{}", fd.get());
    auto reader = ImageReader::open(std::move(image));
    if (!reader) return;
    (void)(*reader)->read_state().has_value();
    auto worker = ImageReader::Worker::create(**reader);
    COFFER_ASSERT(worker.has_value());
    for (uint64_t cluster = 0; cluster < (*reader)->memory_clusters(); ++cluster) {
        auto content = worker->read(cluster);
        COFFER_ASSERT(!content || content->empty() || content->size() == spec::k_cluster);
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    if (size == 0) return 0;
    Bytes bytes = std::as_bytes(std::span(data, size)).subspan(1);
    switch (data[0] % 4) {
    case 0: machine_state(bytes); break;
    case 1: fields<SnapshotIndex>(bytes); break;
    case 2: image(bytes); break;
    case 3: fields<TogetherChange>(bytes); break;
    default: break;
    }
    return 0;
}
