// One file of a home as bytes: sealing content into the data file format and opening it (docs/formats/home.md, "Data
// file"). Pure functions of bytes; no file is touched. Thread-safe.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/uuid.hpp"
#include "crypto/keys.hpp"
#include "vmm/home/home_spec.hpp"

namespace coffer::vmm {

struct DataFileHeader {
    home_spec::data::Layout layout = home_spec::data::Layout::WholeRewrite;
    home_spec::data::Cipher cipher = home_spec::data::Cipher::XtsAes256;
    uint64_t content_size = 0;
    uint64_t generation = 0;
    uint32_t epoch = 0;
    Uuid file;
    Uuid vm;
    int64_t written = 0; // seconds since 1970-01-01 UTC
    std::string name;
};

// What can be read without keys, unauthenticated, from a file's first 4096 bytes (more may follow). Integrity where it
// is not a well-formed header; `path` is for the message.
Result<DataFileHeader> parse_data_header(Bytes file, std::filesystem::path const& path);

// The whole file. `header` has everything but content_size; its file UUID is fresh for every call. A null `dek` makes
// the unencrypted kind (Cipher::None). InvalidArgument where the content is above 64 MiB.
Result<ByteVector> seal_data_file(DataFileHeader header, crypto::DataEncryptionKey const* dek, Bytes content);

struct OpenedDataFile {
    DataFileHeader header;
    ByteVector content;
};

// What the file must be, besides authentic.
struct ExpectedFile {
    Uuid vm;
    std::string_view name;
};

// Of a data file or an image: its first 4096 bytes, and that the whole has as many bytes as they say. What lies behind
// them is not looked at. Integrity as open_data_file().
Result<DataFileHeader> authenticate_head(Bytes head, uint64_t file_size, ExpectedFile const& expected,
                                         crypto::DataEncryptionKey const* dek, std::filesystem::path const& path);

// A null `dek` opens the unencrypted kind only, a key the encrypted kind only. Integrity, with a message that names
// `path`, for anything that is not exactly what seal_data_file() made for this VM, name and key.
Result<OpenedDataFile> open_data_file(Bytes file, ExpectedFile const& expected, crypto::DataEncryptionKey const* dek,
                                      std::filesystem::path const& path);

// Images: files that are written once, of a layout of their own behind the common header (and in its own part). The
// content_size in the header is the number of bytes behind the header.

// The keys of one image. They exist in encrypted homes only.
struct ImageKeys {
    crypto::XtsKey cipher;
    crypto::AeadKey units; // of the tags of units; GMAC is allowed, for no file UUID is written to twice
};
Result<ImageKeys> derive_image_keys(crypto::DataEncryptionKey const& dek, Uuid const& file);

// What an image's header says besides what all headers say; authenticated with it.
struct ImageRoot {
    crypto::Digest digest{}; // whatever authenticates all that lies behind the header
    ByteVector own;          // at most home_spec::data::k_image_own_size bytes, for the layout; filled up with zeros
};

// The 4096 bytes of header. InvalidArgument where content_size or `root.own` is too large.
Result<ByteVector> seal_image_header(DataFileHeader header, ImageRoot const& root,
                                     crypto::DataEncryptionKey const* dek);

struct OpenedImageHeader {
    DataFileHeader header;
    ImageRoot root; // `own` in its whole size
};

// `head` is the first 4096 bytes. As open_data_file(); what lies behind the header is the caller's to check.
Result<OpenedImageHeader> open_image_header(Bytes head, ExpectedFile const& expected,
                                            crypto::DataEncryptionKey const* dek, std::filesystem::path const& path);

} // namespace coffer::vmm
