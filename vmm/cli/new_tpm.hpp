// The TPM of a VM that is about to get one.
#pragma once

#include <utility>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "vmm/cli/home_opener.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::cli {

// A TPM's permanent state in common memory; wiped at the end.
class TpmStateBytes {
public:
    TpmStateBytes() = default;
    explicit TpmStateBytes(ByteVector bytes) : m_bytes(std::move(bytes)) {}
    TpmStateBytes(TpmStateBytes&& other) noexcept : m_bytes(std::exchange(other.m_bytes, {})) {}
    TpmStateBytes& operator=(TpmStateBytes&& other) noexcept {
        std::swap(m_bytes, other.m_bytes);
        return *this;
    }
    ~TpmStateBytes();

    Bytes bytes() const noexcept { return m_bytes; }
    bool empty() const noexcept { return m_bytes.empty(); }

private:
    ByteVector m_bytes;
};

// The state of a TPM that was never started, with fresh seeds, the configuration's PCR banks, and certificates of the
// host's certificate authority, which is made under `provider` where there is none; empty where the VM is to have no
// TPM.
Result<TpmStateBytes> make_new_tpm(vmm::HomeRoot const& root, HomeOpener& opener, Uuid const& provider,
                                   vmm::VmConfig const& config);

// "crb", "tis", "tis13" or "none", as the parser has checked it.
vmm::TpmKind parse_tpm_kind(std::string_view text) noexcept;

} // namespace coffer::cli
