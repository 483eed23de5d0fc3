// The TPM's FIFO registers; tpm_fuzz.hpp has the input's form.
#include "devices/tpm/tis.hpp"
#include "tests/fuzz/targets/tpm_fuzz.hpp"

namespace {

using namespace coffer;
using namespace coffer::devices;

struct TisFront {
    using Device = TpmTis;
    using Fuzzer = tests::TpmFuzzer<TisFront>;
    static constexpr uint64_t k_size = tis::k_window_size;
    static std::unique_ptr<TpmTis> create(TpmBackend& tpm, Scheduler& scheduler, GuestPhysAddr) {
        return std::move(TpmTis::create(tpm, scheduler).value());
    }

    // Makes locality 0 the active one, whatever the guest did before.
    void begin(Fuzzer& guest, Bytes command) {
        for (uint64_t locality = 4; locality > 0; --locality) guest.put<uint8_t>((locality - 1) * 0x1000, 0x20);
        for (uint64_t locality = 4; locality > 0; --locality) guest.put<uint8_t>((locality - 1) * 0x1000, 0x20);
        guest.put<uint8_t>(0, 0x02);
        guest.put<uint8_t>(0x18, 0x40);
        // The FIFO goes by the header's size: it is made to say what is sent.
        ByteVector framed(command.begin(), command.end());
        framed.resize(std::min(framed.size(), tis::k_buffer_size));
        store_be<uint32_t>(framed, k_tpm_size_offset, static_cast<uint32_t>(framed.size()));
        for (std::byte b : framed) guest.put<uint8_t>(0x24, std::to_integer<uint8_t>(b));
        guest.put<uint8_t>(0x18, 0x20);
    }
    bool ended(Fuzzer& guest) { return (guest.get<uint32_t>(0x18) & 0x10) != 0; }
    ByteVector end(Fuzzer& guest) {
        ByteVector response;
        while ((guest.get<uint32_t>(0x18) & 0x10) != 0) {
            response.push_back(static_cast<std::byte>(guest.get<uint8_t>(0x24)));
            COFFER_ASSERT(response.size() <= tis::k_buffer_size);
        }
        return response;
    }
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    tests::TpmFuzzer<TisFront>::run(std::as_bytes(std::span(data, size)));
    return 0;
}
