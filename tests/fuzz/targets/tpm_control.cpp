// The framing of swtpm's control protocol, as a stream that comes in pieces: the first byte of the input is the size of
// a piece. Whatever came, requests lie inside of the stream, go forward, and are the same when more bytes follow.
#include <algorithm>

#include "vmm/tpm/control_message.hpp"

using namespace coffer;
using namespace coffer::vmm::tpm_control;

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    if (size == 0) return 0;
    size_t const piece = std::max<size_t>(data[0], 1);
    auto rest = std::as_bytes(std::span(data, size)).subspan(1);
    ByteVector stream;
    while (!rest.empty()) {
        auto part = rest.first(std::min(piece, rest.size()));
        append(stream, part);
        rest = rest.subspan(part.size());
        for (;;) {
            auto request = parse_request(stream);
            if (request.framing != Framing::Complete) {
                COFFER_ASSERT(request.size == 0);
                if (request.framing != Framing::Incomplete) return 0;
                break;
            }
            COFFER_ASSERT(request.size >= k_command_size && request.size <= stream.size());
            COFFER_ASSERT(request.body.size() <= request.size - k_command_size);
            COFFER_ASSERT(request.size - k_command_size - request.body.size() <= k_max_padding);
            auto longer = stream;
            longer.push_back(std::byte{0});
            auto again = parse_request(longer);
            COFFER_ASSERT(again.framing == Framing::Complete && again.command == request.command);
            COFFER_ASSERT(again.body.size() == request.body.size() && again.size >= request.size);
            stream.erase(stream.begin(), stream.begin() + static_cast<ptrdiff_t>(request.size));
        }
    }
    return 0;
}
