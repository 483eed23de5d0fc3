// The TPM of a VM that is off, powered on in this process.
#pragma once

#include <memory>
#include <string>

#include "devices/tpm/libtpms_backend.hpp"
#include "devices/tpm/memory_nv_store.hpp"
#include "vmm/cli/context.hpp"

namespace coffer::cli {

enum class TpmChanges : uint8_t {
    Discard, // what commands change is forgotten with the process; the home stays as it is
    Keep,    // make_durable() commits to the home
};

class TpmAccess {
public:
    // Takes the home's lock: Busy while the VM runs. InvalidArgument where the VM has no TPM.
    static Result<std::unique_ptr<TpmAccess>> open(Context const& context, std::string const& name, int passphrase_fd,
                                                   TpmChanges changes);

    devices::LibtpmsBackend& tpm() noexcept { return *m_tpm; }
    vmm::HomeSession& home() noexcept { return *m_home; }

private:
    TpmAccess() = default;

    std::unique_ptr<vmm::HomeSession> m_home;
    devices::MemoryNvStore m_discarded;
    std::unique_ptr<devices::LibtpmsBackend> m_tpm;
};

} // namespace coffer::cli
