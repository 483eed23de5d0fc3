// The physical presence page: RAM apart from the guest's memory, which keeps its content over a reset. ppi_spec.hpp has
// its fields.
#pragma once

#include <array>

#include "devices/core/device.hpp"
#include "devices/tpm/ppi_spec.hpp"

namespace coffer::devices {

class TpmPpi final : public Device, public MmioDevice {
public:
    std::string_view unit_name() const noexcept override { return "tpm-ppi"; }
    // A warm reset keeps the page; a cold one, power-on, clears it.
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;

    // Whether the guest wants its RAM wiped at this reset. The machine asks before the guest runs again, wipes, and
    // says so, which takes the request back.
    bool memory_overwrite_requested() const noexcept;
    void memory_was_overwritten() noexcept;

private:
    std::array<std::byte, ppi::k_page_size> m_page{};
};

} // namespace coffer::devices
