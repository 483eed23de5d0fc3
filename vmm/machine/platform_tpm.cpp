// The TPM: libtpms behind the register interface that the VM has, and the page of the physical presence interface.
#include "devices/tpm/tpm_client.hpp"
#include "vmm/layout.hpp"
#include "vmm/machine/platform_parts.hpp"

namespace coffer::vmm {

Result<void> Platform::build_tpm() {
    if (m_config.vm.tpm == TpmKind::None) return {};
    if (!m_config.tpm || !m_config.tpm->store)
        return make_error(ErrorCode::Internal, "the VM has a TPM, and no store for its state was given");
    auto& tpm = *m_config.tpm;
    m_tpm = std::make_unique<TpmDevices>();
    m_tpm->backend =
        TRY_CONTEXT(devices::LibtpmsBackend::create(std::move(tpm.state), devices::TpmManufacture::No, *tpm.store),
                    "cannot start the TPM");
    auto& scheduler = m_parts.loop;
    if (m_config.vm.tpm == TpmKind::Crb) {
        static_assert(layout::k_tpm_crb_size == devices::crb::k_window_size);
        m_tpm->crb = TRY(TpmPages::create(m_parts.partition, scheduler, *m_tpm->backend, layout::k_tpm));
        TRY(attach(layout::k_tpm, layout::k_tpm_crb_size, m_tpm->crb->device()));
        m_devices.push_back(&m_tpm->crb->device());
    } else {
        auto generation =
            m_config.vm.tpm == TpmKind::Tis13 ? devices::tis::Generation::Tis13 : devices::tis::Generation::Ptp;
        m_tpm->tis =
            TRY(devices::TpmTis::create(*m_tpm->backend, scheduler, {*m_irqs, layout::k_gsi_tpm_tis}, generation));
        TRY(attach(layout::k_tpm, layout::k_tpm_tis_size, *m_tpm->tis));
        m_devices.push_back(m_tpm->tis.get());
    }
    TRY(attach(layout::k_tpm_ppi, layout::k_tpm_ppi_size, m_tpm->ppi));
    m_devices.push_back(&m_tpm->ppi);
    return {};
}

Result<std::map<uint16_t, std::vector<ByteVector>>> Platform::read_pcrs() {
    if (!m_tpm) return make_error(ErrorCode::InvalidArgument, "the VM has no TPM");
    TRY(drain());
    // The vCPUs stand still and the TPM's thread has nothing to do: the TPM is this thread's for the moment.
    devices::TpmClient client(*m_tpm->backend);
    auto const active = client.active_banks();
    if (!active) return make_error(ErrorCode::Unsupported, "the guest has not started its TPM yet");
    std::map<uint16_t, std::vector<ByteVector>> banks;
    for (auto const& bank : devices::k_pcr_banks)
        if ((*active & bank.bit) != 0) banks[bank.algorithm] = TRY(client.read_pcrs(bank));
    return banks;
}

bool Platform::memory_overwrite_requested() const noexcept {
    return m_tpm && m_tpm->ppi.memory_overwrite_requested();
}

void Platform::memory_was_overwritten() noexcept {
    if (m_tpm) m_tpm->ppi.memory_was_overwritten();
}

} // namespace coffer::vmm
