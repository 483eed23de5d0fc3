#include "tests/unit/soft/encodings.hpp"

#include <cstring>
#include <set>

#include <elf.h>

#include "base/file.hpp"

namespace coffer::tests {

using namespace vmm::soft;

namespace {

std::vector<Decoded> collect(std::filesystem::path const& path, size_t limit, bool plain_only) {
    std::vector<Decoded> found;
    std::set<std::vector<uint8_t>> seen;
    auto file = read_file(path, size_t{256} << 20);
    if (!file || file->size() < sizeof(Elf64_Ehdr)) return found;
    Elf64_Ehdr header;
    std::memcpy(&header, file->data(), sizeof header);
    for (unsigned i = 0; i < header.e_phnum; ++i) {
        Elf64_Phdr segment;
        size_t at = header.e_phoff + i * sizeof segment;
        if (at + sizeof segment > file->size()) break;
        std::memcpy(&segment, file->data() + at, sizeof segment);
        if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_X)) continue;
        if (segment.p_offset + segment.p_filesz > file->size()) continue;
        auto const* bytes = reinterpret_cast<uint8_t const*>(file->data()) + segment.p_offset;
        for (size_t offset = 0; offset + 15 < segment.p_filesz && found.size() < limit;) {
            Decoded d{};
            if (decode(64, std::span(bytes + offset, 15), d) != DecodeStatus::Ok) {
                ++offset;
                continue;
            }
            offset += d.length();
            if (plain_only && d.cls != InsnClass::Plain) continue;
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

} // namespace

std::vector<Decoded> distinct_encodings(std::filesystem::path const& path, size_t limit) {
    return collect(path, limit, false);
}

std::vector<Decoded> plain_encodings(std::filesystem::path const& path, size_t limit) {
    return collect(path, limit, true);
}

} // namespace coffer::tests
