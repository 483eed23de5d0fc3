// The same clusters under other keys, in the same places.
#include <algorithm>

#include <fcntl.h>

#include "crypto/mac.hpp"
#include "crypto/secret.hpp"
#include "vmm/snapshot/image_cipher.hpp"
#include "vmm/snapshot/machine_image.hpp"
#include "vmm/snapshot/snapshot_store.hpp"

namespace coffer::vmm {

namespace spec = image_spec;

Result<ImageRoot> rewrite_machine_image(OpenedImage const& from, ImageWriting const& to,
                                        std::function<void(uint64_t)> const& advance) {
    auto old_cipher = TRY(ClusterCipher::create(from.keys ? &*from.keys : nullptr));
    auto new_cipher = TRY(ClusterCipher::create(to.keys ? &*to.keys : nullptr));
    auto source = TRY(open_file(from.path, O_RDONLY));
    auto table = TRY(read_image_table(source.get(), from));
    auto target = TRY(open_file(to.path, O_WRONLY | O_CREAT | O_TRUNC));
    ByteVector stored(spec::k_cluster);
    for (uint64_t number = 0; number < table.entries.size(); ++number) {
        auto& entry = table.entries[number];
        if (entry.pages == 0) continue;
        MutBytes bytes = MutBytes(stored).first(entry.size);
        TRY(pread_all(source.get(), bytes, entry.offset, from.path));
        if (!TRY(old_cipher.open(entry.unit_of(number), entry.tag, bytes)))
            return make_error(ErrorCode::Integrity,
                              "{}: its cluster {} fails authentication: it was changed, or is "
                              "damaged. Put an intact copy back, or delete the snapshot",
                              from.path.native(), number);
        entry.tag = TRY(new_cipher.seal(entry.unit_of(number), bytes, bytes));
        TRY(pwrite_all(target.get(), bytes, entry.offset, to.path));
        if (advance) advance(entry.size);
    }
    crypto::wipe_bytes(stored);
    ByteVector encoded = encode_image_table(table.entries);
    TRY(pwrite_all(target.get(), encoded, table.at, to.path));
    ImageRoot root{TRY(crypto::sha256({encoded})), from.root.own};
    return root;
}

} // namespace coffer::vmm
