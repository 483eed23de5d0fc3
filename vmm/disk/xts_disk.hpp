// A disk encrypted in place, without integrity. Private to vmm/disk.
//
// The blocks of an XTS data unit do not depend on one another (IEEE 1619-2018, 5.3): 512 bytes of a unit are written
// without reading the rest, and a torn write leaves old and new sectors as it does on a raw disk.
#pragma once

#include "vmm/disk/encrypted_disk.hpp"

namespace coffer::vmm {

class XtsDisk final : public EncryptedDisk {
public:
    XtsDisk(std::filesystem::path path, std::unique_ptr<devices::BlockBackend> file, DiskSeal seal, DiskHeader header);

    Result<void> read(uint64_t offset, MutBytes to) override;
    Result<void> write(uint64_t offset, Bytes from) override;
    Result<void> flush() override { return m_file->flush(); }
    // A sector of the image that is all zeros, as a hole is, reads as zeros.
    Result<void> write_zeroes(uint64_t offset, uint64_t size) override;
    Result<void> discard(uint64_t offset, uint64_t size) override;

private:
    ByteVector m_buffer; // of whole units
};

} // namespace coffer::vmm
