// The files of a home as hostile bytes. The first byte says which parser the rest is for; where a checksum or a key
// would stop the fuzzer at the door, it is made right here, so that what is behind the door is reached.
#include <cstdint>
#include <cstring>

#include "base/tagged.hpp"
#include "crypto/aead.hpp"
#include "crypto/kdf.hpp"
#include "crypto/mac.hpp"
#include "vmm/home/data_file.hpp"
#include "vmm/home/home_history.hpp"
#include "vmm/home/keeper_protocol.hpp"
#include "vmm/home/key_bundle.hpp"
#include "vmm/home/vm_config.hpp"

namespace {

using namespace coffer;
using namespace coffer::vmm;
namespace keys = home_spec::keys;
namespace data = home_spec::data;

void must(bool holds) {
    if (!holds) __builtin_trap();
}

crypto::BundleKey const& bundle_key() {
    static auto const key = crypto::BundleKey::adopt(crypto::SecretBytes(crypto::BundleKey::k_size));
    return *key;
}

void set_size(ByteVector& file, size_t offset, size_t size) {
    store_le<uint32_t>(file, offset, static_cast<uint32_t>(size));
}

// A keys file with this header and this plaintext, as someone with the bundle key could make it.
ByteVector keys_file(Bytes header, BundleHeader const& salt_holder, Bytes plaintext) {
    ByteVector file(keys::k_prefix_size);
    std::memcpy(file.data(), keys::k_magic.data(), keys::k_magic.size());
    set_size(file, keys::k_version_at, home_spec::k_version);
    set_size(file, keys::k_header_size_at, header.size());
    set_size(file, keys::k_sealed_size_at, plaintext.size() + crypto::k_gcm_tag_size);
    auto digest = crypto::sha256({Bytes(file).first(keys::k_digest_at), header});
    std::memcpy(file.data() + keys::k_digest_at, digest->data(), digest->size());
    append(file, header);
    auto seal = crypto::derive_key<crypto::AeadKey>(bundle_key().expose(), salt_holder.salt, keys::k_seal_info);
    append(file, *crypto::gcm_seal(*seal, {}, file, plaintext));
    return file;
}

void parse_keys(Bytes file) {
    if (auto parsed = parse_bundle(file, "keys")) {
        must(parsed->authenticated.size() + parsed->sealed.size() == file.size());
        (void)open_bundle(*parsed, bundle_key(), "keys");
    }
}

void parse_sealed_part(Bytes plaintext) {
    BundleHeader header;
    header.name = "vm";
    header.key_id = "1/key";
    auto file = keys_file(encode_fields(header), header, plaintext);
    auto parsed = parse_bundle(file, "keys");
    if (!parsed) return; // the plaintext is longer than a sealed part can be
    auto content = open_bundle(*parsed, bundle_key(), "keys");
    if (!content) return;
    // What was accepted can be written again, and reads the same.
    auto again = seal_bundle(header, *content, bundle_key());
    must(again.has_value());
    auto reparsed = parse_bundle(*again, "keys");
    must(reparsed.has_value());
    auto reopened = open_bundle(*reparsed, bundle_key(), "keys");
    must(reopened && reopened->manifest.files == content->manifest.files &&
         reopened->manifest.events == content->manifest.events && reopened->keys.size() == content->keys.size());
}

// An unencrypted data file with its checksums made right.
void parse_data_file(Bytes input) {
    ByteVector file(input.begin(), input.end());
    ExpectedFile const expected{Uuid(), "nvram"};
    (void)open_data_file(file, expected, nullptr, "nvram");
    if (file.size() < data::k_header_size) return;
    std::byte const domain{1};
    auto mac = crypto::sha256({object_bytes(domain), Bytes(file).first(data::k_mac_value_at)});
    std::memcpy(file.data() + data::k_mac_value_at, mac->data(), mac->size());
    if (auto opened = open_data_file(file, expected, nullptr, "nvram"))
        must(opened->content.size() == opened->header.content_size && opened->content.size() <= file.size());
}

// The header of an image of an unencrypted home, with its checksum made right.
void parse_image_header(Bytes input) {
    ByteVector head(input.begin(), input.end());
    ExpectedFile const expected{Uuid(), "snapshot-1"};
    (void)authenticate_head(head, head.size(), expected, nullptr, "image");
    if (head.size() < data::k_header_size) return;
    std::byte const domain{4};
    auto mac = crypto::sha256({object_bytes(domain), Bytes(head).first(data::k_mac_value_at)});
    std::memcpy(head.data() + data::k_mac_value_at, mac->data(), mac->size());
    auto opened = open_image_header(head, expected, nullptr, "image");
    if (!opened) return;
    must(opened->header.content_size <= data::k_max_image && opened->root.own.size() == data::k_image_own_size);
    auto again = seal_image_header(opened->header, opened->root, nullptr);
    must(again && open_image_header(*again, expected, nullptr, "image")->root.own == opened->root.own);
}

void parse_history(Bytes input) {
    auto events = decode_history(input);
    if (!events) return;
    must(events->size() <= k_max_history);
    auto again = decode_history(encode_history(*events));
    must(again && *again == *events);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* bytes, size_t size) {
    if (size == 0) return 0;
    Bytes const input = std::as_bytes(std::span(bytes + 1, size - 1));
    switch (bytes[0]) {
    case 'k': parse_keys(input); break;
    case 'h': parse_keys(keys_file(input, BundleHeader(), {})); break;
    case 's': parse_sealed_part(input); break;
    case 'd': parse_data_file(input); break;
    case 'i': parse_image_header(input); break;
    case 'y': parse_history(input); break;
    case 'c':
        if (auto config = decode_vm_config(input)) {
            auto again = decode_vm_config(encode_vm_config(*config));
            must(again && *again == *config);
        }
        break;
    case 'f': must(keeper::decode_failure(input).message().size() <= 2048); break;
    default: break;
    }
    return 0;
}
