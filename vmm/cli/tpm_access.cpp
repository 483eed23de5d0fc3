#include "vmm/cli/tpm_access.hpp"

namespace coffer::cli {

Result<std::unique_ptr<TpmAccess>> TpmAccess::open(Context const& context, std::string const& name, int passphrase_fd,
                                                   TpmChanges changes) {
    auto location = TRY(context.location(name));
    std::unique_ptr<TpmAccess> access(new TpmAccess);
    access->m_home = TRY(vmm::unlock_home(location, Context::keeper_options(passphrase_fd)));
    auto& home = *access->m_home;
    if (home.config().tpm == vmm::TpmKind::None)
        return make_error(ErrorCode::InvalidArgument, "VM '{}' has no TPM", name);
    devices::NvStore& store = changes == TpmChanges::Keep ? home.store(vmm::HomeFile::Tpm)
                                                          : static_cast<devices::NvStore&>(access->m_discarded);
    auto tpm = devices::LibtpmsBackend::create(TRY(vmm::load_tpm(home)), devices::TpmManufacture::No, store);
    if (!tpm) return std::move(tpm).error().with_context("cannot start the TPM");
    access->m_tpm = std::move(*tpm);
    return access;
}

} // namespace coffer::cli
