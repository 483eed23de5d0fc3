#include "vmm/cli/new_tpm.hpp"

#include "crypto/secret.hpp"
#include "vmm/ca/tpm_certificates.hpp"
#include "vmm/cli/context.hpp"

namespace coffer::cli {

TpmStateBytes::~TpmStateBytes() {
    crypto::wipe_bytes(m_bytes);
}

Result<TpmStateBytes> make_new_tpm(vmm::HomeRoot const& root, HomeOpener& opener, Uuid const& provider,
                                   vmm::VmConfig const& config) {
    if (config.tpm == vmm::TpmKind::None) return TpmStateBytes();
    auto* keeper = TRY(opener.keeper());
    auto made = TRY(vmm::make_tpm(root, *keeper, provider, config.pcr_banks, config.uuid));
    if (made.authority_made) print_line("made this host's certificate authority for TPMs ('coffer ca show')");
    return TpmStateBytes(std::move(made.state));
}

vmm::TpmKind parse_tpm_kind(std::string_view text) noexcept {
    if (text == "none") return vmm::TpmKind::None;
    if (text == "tis13") return vmm::TpmKind::Tis13;
    return text == "tis" ? vmm::TpmKind::Tis : vmm::TpmKind::Crb;
}

} // namespace coffer::cli
