#include "vmm/disk/xts_disk.hpp"

#include <algorithm>

namespace coffer::vmm {

namespace spec = disk_spec;

namespace {
constexpr uint64_t k_piece = uint64_t{1} << 20; // at most, from the start of a unit
}

XtsDisk::XtsDisk(std::filesystem::path path, std::unique_ptr<devices::BlockBackend> file, DiskSeal seal,
                 DiskHeader header)
    : EncryptedDisk(std::move(path), std::move(file), std::move(seal), header), m_buffer(k_piece) {}

Result<void> XtsDisk::read(uint64_t offset, MutBytes to) {
    COFFER_ASSERT(offset <= size() && to.size() <= size() - offset);
    while (!to.empty()) {
        uint64_t const skip = offset % spec::k_unit_size;
        uint64_t const piece = std::min<uint64_t>(to.size(), k_piece - skip);
        MutBytes const units = MutBytes(m_buffer).first(align_up(skip + piece, spec::k_unit_size));
        MutBytes const wanted = units.subspan(skip, piece);
        TRY(m_file->read(m_header.layout.data_at() + offset, wanted));
        for (uint64_t at = 0; at < units.size(); at += spec::k_unit_size) {
            MutBytes const unit = units.subspan(at, spec::k_unit_size);
            uint64_t const number = (offset - skip + at) / spec::k_unit_size;
            uint64_t const begin = std::max(at, skip);
            uint64_t const end = std::min(at + spec::k_unit_size, skip + piece);
            Bytes const ciphertext = units.subspan(begin, end - begin);
            MutBytes const plain = to.subspan(begin - skip, end - begin);
            // A sector of zeros is a hole. Whole units are seldom that: their first bytes mostly say so.
            uint16_t holes = 0;
            for (uint64_t sector = 0; sector < ciphertext.size(); sector += spec::k_sector_size)
                if (all_zero(ciphertext.subspan(sector, spec::k_sector_size)))
                    holes = static_cast<uint16_t>(holes | 1U << (sector / spec::k_sector_size));
            if (plain.size() == spec::k_unit_size) {
                TRY(m_seal.decrypt(number, unit, plain));
            } else {
                TRY(m_seal.decrypt(number, unit, unit));
                std::ranges::copy(ciphertext, plain.begin());
            }
            for (uint64_t sector = 0; holes != 0 && sector < plain.size(); sector += spec::k_sector_size)
                if ((holes >> (sector / spec::k_sector_size) & 1U) != 0)
                    std::ranges::fill(plain.subspan(sector, spec::k_sector_size), std::byte{0});
        }
        to = to.subspan(piece);
        offset += piece;
    }
    return {};
}

Result<void> XtsDisk::write(uint64_t offset, Bytes from) {
    COFFER_ASSERT(!read_only() && offset <= size() && from.size() <= size() - offset);
    while (!from.empty()) {
        uint64_t const skip = offset % spec::k_unit_size;
        uint64_t const piece = std::min<uint64_t>(from.size(), k_piece - skip);
        MutBytes const units = MutBytes(m_buffer).first(align_up(skip + piece, spec::k_unit_size));
        for (uint64_t at = 0; at < units.size(); at += spec::k_unit_size) {
            MutBytes const unit = units.subspan(at, spec::k_unit_size);
            uint64_t const number = (offset - skip + at) / spec::k_unit_size;
            uint64_t const begin = std::max(at, skip);
            uint64_t const end = std::min(at + spec::k_unit_size, skip + piece);
            Bytes plain = from.subspan(begin - skip, end - begin);
            if (plain.size() < spec::k_unit_size) {
                // What lies beside the sectors to be written is encrypted for nothing.
                std::ranges::copy(plain, units.begin() + static_cast<std::ptrdiff_t>(begin));
                plain = unit;
            }
            TRY(m_seal.encrypt(number, plain, unit));
        }
        TRY(m_file->write(m_header.layout.data_at() + offset, units.subspan(skip, piece)));
        from = from.subspan(piece);
        offset += piece;
    }
    return {};
}

Result<void> XtsDisk::write_zeroes(uint64_t offset, uint64_t size) {
    return m_file->write_zeroes(m_header.layout.data_at() + offset, size);
}

Result<void> XtsDisk::discard(uint64_t offset, uint64_t size) {
    return m_file->discard(m_header.layout.data_at() + offset, size);
}

} // namespace coffer::vmm
