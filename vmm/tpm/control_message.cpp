#include "vmm/tpm/control_message.hpp"

#include <algorithm>
#include <optional>

namespace coffer::vmm::tpm_control {

namespace {

struct Shape {
    size_t fixed;      // bytes of the body that always come
    bool data = false; // the last four of them are the length of what follows
    bool may_pad = false;
};

std::optional<Shape> shape_of(Command command) noexcept {
    switch (command) {
    case Command::GetCapability:
    case Command::Shutdown:
    case Command::GetEstablished:
    case Command::HashStart:
    case Command::HashEnd:
    case Command::CancelCommand:
    case Command::StoreVolatile:
    case Command::Stop:
    case Command::GetConfig:
    case Command::SetDataFd: return Shape{0};
    case Command::SetLocality:
    case Command::ResetEstablished: return Shape{.fixed = 1, .may_pad = true};
    case Command::Init:
    case Command::SetBufferSize: return Shape{4};
    case Command::HashData: return Shape{.fixed = 4, .data = true};
    case Command::GetStateBlob: return Shape{12};
    case Command::SetStateBlob: return Shape{.fixed = 12, .data = true};
    case Command::GetInfo: return Shape{16};
    }
    return std::nullopt;
}

} // namespace

Request parse_request(Bytes stream) noexcept {
    Request request;
    if (stream.size() < k_command_size) return request;
    request.command = static_cast<Command>(load_be<uint32_t>(stream));
    auto shape = shape_of(request.command);
    if (!shape) {
        request.framing = Framing::Unknown;
        return request;
    }
    auto rest = stream.subspan(k_command_size);
    if (rest.size() < shape->fixed) return request;
    size_t length = shape->data ? load_be<uint32_t>(rest, shape->fixed - 4) : 0;
    if (length > k_max_data) {
        request.framing = Framing::TooLarge;
        return request;
    }
    if (rest.size() - shape->fixed < length) return request;
    request.framing = Framing::Complete;
    request.body = rest.first(shape->fixed + length);
    request.size = k_command_size + request.body.size();
    if (shape->may_pad) request.size += std::min(stream.size() - request.size, k_max_padding);
    return request;
}

} // namespace coffer::vmm::tpm_control
