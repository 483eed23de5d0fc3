#include "tests/unit/soft/encodings.hpp"

#include <cstring>
#include <set>

#include <elf.h>

#include "base/file.hpp"

namespace coffer::tests {

using namespace vmm::soft;

namespace {

// The payload of LZ4's legacy frame, which Debian packs its kernels with: blocks of a 32-bit length and LZ4 sequences.
ByteVector unpack_lz4_legacy(Bytes packed) {
    ByteVector out;
    size_t at = 4;
    while (at + 4 <= packed.size()) {
        size_t block = load_le<uint32_t>(packed, at);
        at += 4;
        if (block == 0 || block > packed.size() - at) break;
        size_t const end = at + block;
        auto next = [&] { return at < end ? std::to_integer<size_t>(packed[at++]) : size_t{0}; };
        auto length = [&](size_t value) {
            for (size_t more = 255; value >= 15 && more == 255 && at < end;) value += more = next();
            return value;
        };
        while (at < end) {
            size_t token = next();
            size_t literals = length(token >> 4);
            if (literals > end - at) return out;
            append(out, packed.subspan(at, literals));
            at += literals;
            if (at + 2 > end) break;
            size_t distance = next();
            distance |= next() << 8;
            size_t match = length(token & 15) + 4;
            if (distance == 0 || distance > out.size()) return out;
            for (; match > 0; --match) out.push_back(out[out.size() - distance]);
        }
        at = end;
    }
    return out;
}

// The kernel in a bzImage (Linux, Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).
ByteVector unpack_kernel(ByteVector file) {
    if (file.size() < 0x260 || std::memcmp(file.data() + 0x202, "HdrS", 4) != 0) return file;
    size_t start = (std::to_integer<size_t>(file[0x1F1]) + 1) * 512 + load_le<uint32_t>(file, 0x248);
    size_t size = load_le<uint32_t>(file, 0x24C);
    if (start > file.size() || size > file.size() - start || size < 8) return file;
    Bytes payload = Bytes(file).subspan(start, size);
    return load_le<uint32_t>(payload) == 0x184C2102 ? unpack_lz4_legacy(payload.first(size - 4)) : file;
}

} // namespace

std::vector<Decoded> plain_encodings(std::filesystem::path const& path, size_t limit) {
    std::vector<Decoded> found;
    std::set<std::vector<uint8_t>> seen;
    auto read = read_file(path, size_t{256} << 20);
    if (!read) return found;
    ByteVector const file = unpack_kernel(std::move(*read));
    if (file.size() < sizeof(Elf64_Ehdr)) return found;
    Elf64_Ehdr header;
    std::memcpy(&header, file.data(), sizeof header);
    for (unsigned i = 0; i < header.e_phnum; ++i) {
        Elf64_Phdr segment;
        size_t at = header.e_phoff + i * sizeof segment;
        if (at + sizeof segment > file.size()) break;
        std::memcpy(&segment, file.data() + at, sizeof segment);
        if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_X)) continue;
        if (segment.p_offset + segment.p_filesz > file.size()) continue;
        auto const* bytes = reinterpret_cast<uint8_t const*>(file.data()) + segment.p_offset;
        for (size_t offset = 0; offset + 15 < segment.p_filesz && found.size() < limit;) {
            Decoded d{};
            if (decode(64, std::span(bytes + offset, 15), d) != DecodeStatus::Ok) {
                ++offset;
                continue;
            }
            offset += d.length();
            if (d.cls != InsnClass::Plain) continue;
            std::vector<uint8_t> form(d.bytes.begin(), d.bytes.begin() + d.length());
            auto blank = [&](size_t first, size_t bits) {
                for (size_t b = 0; b < bits / 8; ++b) form[first + b] = 0;
            };
            blank(d.insn.raw.disp.offset, d.insn.raw.disp.size);
            for (auto const& imm : d.insn.raw.imm) blank(imm.offset, imm.size);
            if (seen.insert(std::move(form)).second) found.push_back(d);
        }
    }
    return found;
}

} // namespace coffer::tests
