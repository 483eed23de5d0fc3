// Packets of the control socket, and the fields of everything that they carry. What is decoded is within its bounds,
// and what is written anew is read as the same.
#include <algorithm>

#include "vmm/control/backup.hpp"
#include "vmm/control/move.hpp"
#include "vmm/control/rekey.hpp"
#include "vmm/control/status.hpp"
#include "vmm/control/stop.hpp"

using namespace coffer;
using namespace coffer::vmm::control;

namespace {

template <class T>
void read_fields(Bytes fields) {
    T value;
    if (!decode_fields(fields, value)) return;
    auto const written = encode_fields(value);
    T again;
    COFFER_ASSERT(decode_fields(written, again));
    COFFER_ASSERT(encode_fields(again) == written);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    auto packet = std::as_bytes(std::span(data, size));
    auto const head = packet.first(std::min(size, k_header_size));
    packet = packet.subspan(head.size());
    auto const second = packet.first(std::min(packet.size(), crypto::BundleKey::k_size));
    auto message = decode(head, crypto::SecretBytes::copy_of(second), packet.subspan(second.size()));
    if (!message) return 0;
    COFFER_ASSERT(message->fields.size() <= k_max_fields + crypto::BundleKey::k_size);
    COFFER_ASSERT(message->fields.size() + (message->key ? crypto::BundleKey::k_size : 0) == packet.size());
    COFFER_ASSERT(decode_failure(message->fields).message().size() <= k_max_text);
    read_fields<Progress>(message->fields);
    read_fields<StatusRequest>(message->fields);
    read_fields<StatusAnswer>(message->fields);
    read_fields<StopRequest>(message->fields);
    read_fields<MoveRequest>(message->fields);
    read_fields<MoveAnswer>(message->fields);
    read_fields<RekeyRequest>(message->fields);
    read_fields<BackupRequest>(message->fields);
    RekeyRequest rekey;
    if (message->key && decode_fields(message->fields, rekey))
        if (auto seal = seal_of(rekey, std::move(*message->key)))
            COFFER_ASSERT(seal->wrapped.bytes.size() <= WrappedKey::k_max_size);
    return 0;
}
