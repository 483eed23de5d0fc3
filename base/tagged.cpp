#include "base/tagged.hpp"

namespace coffer {

namespace {
constexpr size_t k_header_size = 6;
}

void FieldWriter::put_header(uint16_t tag, size_t length) {
    COFFER_ASSERT(length <= UINT32_MAX);
    std::array<std::byte, k_header_size> header{};
    store_le<uint16_t>(header, 0, tag);
    store_le<uint32_t>(header, 2, static_cast<uint32_t>(length));
    append(m_bytes, header);
}

FieldReader::FieldReader(Bytes bytes) {
    while (!bytes.empty()) {
        if (bytes.size() < k_header_size) {
            m_failure = "saved state is truncated";
            return;
        }
        auto tag = load_le<uint16_t>(bytes);
        size_t length = load_le<uint32_t>(bytes, 2);
        bytes = bytes.subspan(k_header_size);
        if (length > bytes.size()) {
            m_failure = "saved state is truncated";
            return;
        }
        if (find(tag)) {
            m_failure = fmt::format("field {} of saved state stands twice", tag);
            return;
        }
        m_entries.push_back({tag, bytes.first(length)});
        bytes = bytes.subspan(length);
    }
}

FieldReader::Entry const* FieldReader::find(uint16_t tag) const noexcept {
    for (auto const& entry : m_entries)
        if (entry.tag == tag) return &entry;
    return nullptr;
}

void FieldReader::fail(uint16_t tag, std::string_view what) {
    if (m_failure.empty()) m_failure = fmt::format("field {} of saved state {}", tag, what);
}

Result<void> FieldReader::status() const {
    if (!m_failure.empty()) return Error(ErrorCode::Corrupt, m_failure);
    return {};
}

}  // namespace coffer
