// The host's own TPM 2.0 as a place that a secret does not leave: what is sealed there opens on this host alone. Keeper
// process only. Not thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/tagged.hpp"
#include "crypto/secret.hpp"

namespace coffer {

// A sealed data object of the TPM (TPM 2.0 Library, part 1 section 27, "sealed data"), and the Name of the primary key
// above it, which tells this TPM, in this owner's time, from another. No secret.
struct TpmSealed {
    static constexpr size_t k_max_size = 2048; // encoded

    ByteVector public_area;  // TPM2B_PUBLIC
    ByteVector private_area; // TPM2B_PRIVATE
    ByteVector primary;      // TPM2B_NAME's content

    template <class V>
    void fields(V& v) {
        v.required(1, public_area);
        v.required(2, private_area);
        v.required(3, primary);
    }
};

class HostTpm {
public:
    virtual ~HostTpm() = default;

    // At most 64 bytes. KeyUnavailable where the TPM refuses; the message says why.
    virtual Result<TpmSealed> seal(Bytes secret) = 0;
    // Integrity where another TPM sealed it, the TPM was cleared since, or the object was changed; KeyUnavailable where
    // the TPM does not answer or refuses.
    virtual Result<crypto::SecretBytes> unseal(TpmSealed const& sealed) = 0;
};

// The TPM of a TCTI.
using HostTpms = std::function<Result<HostTpm*>(std::string const& tcti)>;

constexpr std::string_view k_default_tcti = "device:/dev/tpmrm0";

// InvalidArgument where it is none of: device, device:PATH, swtpm:host=ADDRESS,port=PORT.
Result<void> check_tcti(std::string_view tcti);
// Whether it is a TPM that is spoken to over TCP, by connections that are made for each command.
bool is_simulator(std::string_view tcti) noexcept;

// Connects. To a device all work is done on the file that is then open. Unsupported where there is no TPM 2.0:
// the message says what that means for VMs.
Result<std::unique_ptr<HostTpm>> open_host_tpm(std::string const& tcti);

} // namespace coffer
