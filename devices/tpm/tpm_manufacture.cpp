#include "devices/tpm/tpm_manufacture.hpp"

#include "devices/tpm/libtpms_backend.hpp"
#include "devices/tpm/memory_nv_store.hpp"
#include "devices/tpm/tpm_client.hpp"

namespace coffer::devices {

Result<ByteVector> manufacture_tpm(PcrBankMask banks) {
    if ((banks & k_all_pcr_banks) == 0 || (banks & ~k_all_pcr_banks) != 0)
        return make_error(ErrorCode::InvalidArgument, "a TPM needs one PCR bank or more");
    MemoryNvStore store;
    auto tpm = TRY(LibtpmsBackend::create(std::nullopt, TpmManufacture::Yes, store));
    TpmClient client(*tpm);
    TRY(client.startup());
    if (TRY(client.active_banks()) != banks) {
        TRY(client.allocate_banks(banks));
        TRY(client.shutdown());
        TRY(tpm->power_cycle());
        TRY(client.startup());
        if (auto active = TRY(client.active_banks()); active != banks)
            return make_error(ErrorCode::Internal, "a new TPM has the PCR banks {} where {} were asked for",
                              format_pcr_banks(active), format_pcr_banks(banks));
    }
    TRY(client.shutdown());
    TRY(tpm->make_durable());
    return store.take();
}

} // namespace coffer::devices
