#include "devices/tpm/ppi.hpp"

#include <algorithm>
#include <cstring>

#include "base/tagged.hpp"
#include "devices/tpm/ppi_state.hpp"

namespace coffer::devices {

namespace {

constexpr auto k_overwrite = static_cast<size_t>(ppi::Field::MEMORY_OVERWRITE);

IoStatus check(uint64_t offset, size_t size) noexcept {
    if (size != 1 && size != 2 && size != 4 && size != 8) return IoStatus::BadSize;
    if (offset > ppi::k_page_size || size > ppi::k_page_size - offset) return IoStatus::NoSuchRegister;
    return IoStatus::Ok;
}

} // namespace

void TpmPpi::reset(ResetKind kind) noexcept {
    if (kind == ResetKind::Cold) m_page.fill(std::byte{0});
}

IoStatus TpmPpi::mmio_read(uint64_t offset, MutBytes to) {
    auto status = check(offset, to.size());
    if (status != IoStatus::Ok)
        fill_all_ones(to);
    else
        std::memcpy(to.data(), m_page.data() + offset, to.size());
    return status;
}

IoStatus TpmPpi::mmio_write(uint64_t offset, Bytes from) {
    auto status = check(offset, from.size());
    if (status == IoStatus::Ok) std::memcpy(m_page.data() + offset, from.data(), from.size());
    return status;
}

bool TpmPpi::memory_overwrite_requested() const noexcept {
    return (std::to_integer<uint8_t>(m_page[k_overwrite]) & ppi::k_overwrite_memory) != 0;
}

void TpmPpi::memory_was_overwritten() noexcept {
    m_page[k_overwrite] &= ~std::byte{ppi::k_overwrite_memory};
}

Result<ByteVector> TpmPpi::save() const {
    TpmPpiState state;
    state.page.assign(m_page.begin(), m_page.end());
    return encode_fields(std::move(state));
}

Result<void> TpmPpi::restore(Bytes bytes) {
    TpmPpiState state;
    TRY(decode_fields(bytes, state));
    if (state.page.size() != m_page.size())
        return Error(ErrorCode::Corrupt, "saved physical presence page has the wrong size");
    std::copy(state.page.begin(), state.page.end(), m_page.begin());
    return {};
}

} // namespace coffer::devices
