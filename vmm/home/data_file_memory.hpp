// Sealing and opening data files (data_file.hpp) in memory that is there already: memory fresh from the kernel takes a
// large file a third of what its encryption takes. Thread-safe.
#pragma once

#include "vmm/home/data_file.hpp"

namespace coffer::vmm {

// As seal_data_file(); the file takes the place of what `file` has, and its memory as far as that goes. After an error
// `file` has no meaning.
Result<void> seal_data_file_into(ByteVector& file, DataFileHeader header, crypto::DataEncryptionKey const* dek,
                                 Bytes content);

// As open_data_file(); the content is decrypted where the file lies.
Result<OpenedDataFile> open_data_file_in_place(ByteVector file, ExpectedFile const& expected,
                                               crypto::DataEncryptionKey const* dek, std::filesystem::path const& path);

} // namespace coffer::vmm
