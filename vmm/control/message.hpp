// The messages of a running VM's control socket (docs/formats/control.md): one a packet over SOCK_SEQPACKET, so that no
// message is ever half read. What comes is hostile: sizes are bounded before anything is decoded.
#pragma once

#include <optional>
#include <string>

#include "base/bytes.hpp"
#include "base/clock.hpp"
#include "base/file.hpp"
#include "base/result.hpp"
#include "crypto/keys.hpp"

namespace coffer::vmm::control {

constexpr uint32_t k_magic = 0x4C54'4343; // "CCTL"
constexpr uint16_t k_version = 1;
constexpr size_t k_header_size = 20;
constexpr size_t k_max_fields = size_t{64} << 10;

enum class MessageKind : uint16_t {
    Request = 1,
    Answer = 2,   // the request was carried out
    Progress = 3, // it still runs
    Cancel = 4,   // from the client: give the request up
    Failure = 5,  // it was not carried out
};

// Numbers are never reused. 16 and above are for saved state.
enum class RequestType : uint16_t {
    Status = 1,
    Stop = 2,
    Rekey = 3,
    Backup = 4,
    EventLog = 5,
    Snapshot = 16,
    Suspend = 17,
    Migrate = 18,
    Settle = 19,
    Move = 20,
};

struct Message {
    MessageKind kind{};
    RequestType type{};  // of the request, in what answers it as well
    uint32_t number = 0; // the client's choice; what answers a request has its number
    std::optional<crypto::BundleKey> key;
    UniqueFd descriptor;
    ByteVector fields; // tagged (base/tagged.hpp)
};

// A packet in the pieces that it is received in: the header, the next 32 bytes (in secret memory, since a key would
// stand there), the rest. The descriptor is the caller's to add. Corrupt where it is no message, Unsupported where it
// is one of another version.
Result<Message> decode(Bytes header, crypto::SecretBytes second, Bytes rest);
// Whether the header of a well-formed message announces a descriptor.
bool announces_descriptor(Bytes header) noexcept;

// One packet, without waiting for it. Nothing where the other end is closed; Timeout where there is no packet yet.
Result<std::optional<Message>> receive(int socket);
// Waits at most `limit` for room: Timeout. Io where the other end is gone.
Result<void> send(int socket, Message const& message, Nanoseconds limit);
// As send(), of a key and a descriptor that stay the caller's.
Result<void> send(int socket, Message const& message, Nanoseconds limit, crypto::BundleKey const* key, int descriptor);

// How far a request is. `total` 0: not known.
struct Progress {
    uint64_t done = 0;
    uint64_t total = 0;
    std::string what; // at most k_max_text bytes

    template <class V>
    void fields(V& v) {
        v.required(1, done);
        v.required(2, total);
        v.required(3, what);
    }
};

constexpr size_t k_max_text = 2048;

// An error as fields, and back; Corrupt where they are none.
ByteVector encode_failure(Error const& error);
Error decode_failure(Bytes fields);

} // namespace coffer::vmm::control
