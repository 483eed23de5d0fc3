// The TPM's CRB registers; tpm_fuzz.hpp has the input's form.
#include "devices/tpm/crb.hpp"
#include "tests/fuzz/targets/tpm_fuzz.hpp"

namespace {

using namespace coffer;
using namespace coffer::devices;

struct CrbFront {
    using Device = TpmCrb;
    using Fuzzer = tests::TpmFuzzer<CrbFront>;
    static constexpr uint64_t k_size = crb::k_window_size;
    static std::unique_ptr<TpmCrb> create(TpmBackend& tpm, Scheduler& scheduler, GuestPhysAddr address) {
        return std::move(TpmCrb::create(tpm, scheduler, address).value());
    }

    void begin(Fuzzer& guest, Bytes command) {
        guest.put<uint32_t>(0x08, 1);
        guest.put<uint32_t>(0x40, 2);
        guest.put<uint32_t>(0x40, 1);
        for (size_t i = 0; i < std::min(command.size(), crb::k_buffer_size); ++i)
            guest.put<uint8_t>(crb::k_buffer_offset + i, std::to_integer<uint8_t>(command[i]));
        guest.put<uint32_t>(0x4C, 1);
    }
    bool ended(Fuzzer& guest) { return guest.get<uint32_t>(0x4C) == 0; }
    ByteVector end(Fuzzer& guest) {
        ByteVector response(crb::k_buffer_size);
        for (size_t i = 0; i < response.size(); i += 8)
            store_le<uint64_t>(response, i, guest.get<uint64_t>(crb::k_buffer_offset + i));
        response.resize(std::min<size_t>(load_be<uint32_t>(response, k_tpm_size_offset), response.size()));
        return response;
    }
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    tests::TpmFuzzer<CrbFront>::run(std::as_bytes(std::span(data, size)));
    return 0;
}
