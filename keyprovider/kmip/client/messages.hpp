// Requests and answers around a payload: headers, one batch item, its identifier and its result. KMIP 1.4 section 6 and
// section 7; the same in 2.0.
#pragma once

#include <functional>
#include <variant>

#include "crypto/secret.hpp"
#include "keyprovider/kmip/client/version.hpp"
#include "keyprovider/kmip/ttlv/ttlv.hpp"

namespace coffer::kmip {

// Writes the items of a request payload.
using PayloadWriter = std::function<void(Writer&, VersionTraits const&)>;

struct RequestId {
    Operation operation{};
    uint64_t batch_item = 0; // distinct for each request
};

// In secret memory, since some payloads hold keys.
Result<crypto::SecretBytes> encode_request(VersionTraits const& traits, RequestId const& id,
                                           PayloadWriter const& payload);

// The server understood and did not do it.
struct Refusal {
    ResultReason reason{};
    std::string text; // the server's words, printable and bounded
};

// An answer with its payload, which points into the message.
struct Answer {
    crypto::SecretBytes message;
    Structure payload;
};

// Corrupt where the message is malformed or answers another request: with success it must repeat the operation and the
// identifier. Failures often do not; some servers answer what they do not know with a bare header of version 1.0.
Result<std::variant<Answer, Refusal>> decode_response(crypto::SecretBytes message, RequestId const& id);

std::string_view to_string(Operation operation) noexcept;
std::string_view to_string(State state) noexcept;

} // namespace coffer::kmip
