// A new TPM, made in memory.
#pragma once

#include "base/bytes.hpp"
#include "devices/tpm/pcr_banks.hpp"

namespace coffer::devices {

// The permanent state of a TPM that was never started by a guest, with fresh seeds and exactly these PCR banks active.
// InvalidArgument where `banks` is empty; Busy where this process has a TPM already.
Result<ByteVector> manufacture_tpm(PcrBankMask banks);

} // namespace coffer::devices
