// What a host keeps of itself, of others and of migrations: the first byte says which.
#include "vmm/home/migration_journal.hpp"
#include "vmm/migrate/host_identity.hpp"

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    using namespace coffer;
    if (size == 0) return 0;
    Bytes const input = std::as_bytes(std::span(data + 1, size - 1));
    switch (data[0] % 4) {
    case 0: (void)vmm::decode_identity(input, "identity").has_value(); break;
    case 1:
        if (auto host = vmm::decode_trusted(input, "peer")) COFFER_ASSERT(vmm::check_host_name(host->name));
        break;
    case 2: (void)vmm::decode_outgoing(input, "out").has_value(); break;
    default: (void)vmm::decode_incoming(input, "in").has_value(); break;
    }
    return 0;
}
