#include "vmm/cli/new_tpm.hpp"

#include "crypto/secret.hpp"
#include "devices/tpm/tpm_manufacture.hpp"

namespace coffer::cli {

TpmStateBytes::~TpmStateBytes() {
    crypto::wipe_bytes(m_bytes);
}

Result<TpmStateBytes> make_new_tpm(vmm::VmConfig const& config) {
    if (config.tpm == vmm::TpmKind::None) return TpmStateBytes();
    auto made = devices::manufacture_tpm(config.pcr_banks);
    if (!made) return std::move(made).error().with_context("cannot make a TPM");
    return TpmStateBytes(std::move(*made));
}

vmm::TpmKind parse_tpm_kind(std::string_view text) noexcept {
    if (text == "none") return vmm::TpmKind::None;
    return text == "tis" ? vmm::TpmKind::Tis : vmm::TpmKind::Crb;
}

} // namespace coffer::cli
