#include "vmm/migrate/memory_receiver.hpp"

#include <cstring>

#include <zstd.h>

#include "crypto/secret.hpp"

namespace coffer::vmm {

void MemoryReceiver::FreeContext::operator()(ZSTD_DCtx_s* context) const noexcept {
    ZSTD_freeDCtx(context);
}

MemoryReceiver::MemoryReceiver(std::vector<MutBytes> parts)
    : m_numbers(std::move(parts)), m_seen(m_numbers.count()), m_written(m_numbers.count()) {}

MemoryReceiver::~MemoryReceiver() {
    crypto::wipe_bytes(m_content);
}

Result<std::unique_ptr<MemoryReceiver>> MemoryReceiver::create(std::vector<MutBytes> parts) {
    std::unique_ptr<MemoryReceiver> receiver(new MemoryReceiver(std::move(parts)));
    receiver->m_zstd.reset(ZSTD_createDCtx());
    if (!receiver->m_zstd) return make_error(ErrorCode::NoSpace, "no memory to decompress by");
    return receiver;
}

Result<void> MemoryReceiver::take(Bytes bytes) {
    auto const batch = TRY(decode_batch(bytes, m_numbers.count()));
    Bytes content = batch.payload;
    if (batch.compressed) {
        m_content.resize(batch.pages * k_ram_page);
        size_t const size = ZSTD_decompressDCtx(m_zstd.get(), m_content.data(), m_content.size(), batch.payload.data(),
                                                batch.payload.size());
        if (ZSTD_isError(size) || size != m_content.size())
            return make_error(ErrorCode::Corrupt, "a batch of the VM's memory cannot be decompressed");
        content = m_content;
    }
    for (auto const& run : batch.runs)
        for (uint64_t page = run.first; page < run.first + run.count; ++page) {
            m_seen.add(page);
            if (batch.kind == batch_spec::k_content) {
                std::memcpy(m_numbers.page(page).data(), content.data(), k_ram_page);
                content = content.subspan(k_ram_page);
                m_written.add(page);
            } else if (m_written.contains(page)) {
                // What was never written is zeros, and stays memory that the host has not given.
                std::memset(m_numbers.page(page).data(), 0, k_ram_page);
                m_written.remove(page);
            }
        }
    m_digest = TRY(crypto::sha256({m_digest, bytes}));
    return {};
}

Result<void> MemoryReceiver::finish(crypto::Digest const& digest) const {
    if (m_seen.count() != m_numbers.count())
        return make_error(ErrorCode::Integrity, "{} pages of the VM's memory never came",
                          m_numbers.count() - m_seen.count());
    if (digest != m_digest) return make_error(ErrorCode::Integrity, "the VM's memory did not arrive as it was sent");
    return {};
}

} // namespace coffer::vmm
