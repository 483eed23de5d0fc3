// What makes a request: a struct that names its type, what it carries and its answer, and describes its fields. Both
// ends use it (Client::call, Server::on), so that a new request is one header (see status.hpp).
#pragma once

#include <cstdint>

#include "base/tagged.hpp"
#include "vmm/control/message.hpp"

namespace coffer::vmm::control {

enum class CarriedDescriptor : uint8_t {
    None,
    File,   // a regular file: writing to it cannot wait for whoever sent it
    Socket, // a stream socket
};

struct RequestTraits {
    // One of these at a time; another is answered with Busy meanwhile.
    bool exclusive = false;
    bool key = false; // a bundle key comes with it
    CarriedDescriptor descriptor = CarriedDescriptor::None;
};

template <class R>
concept ControlRequest = SavedStruct<R> && SavedStruct<typename R::Answer> && requires {
    { R::k_type } -> std::convertible_to<RequestType>;
    { R::k_traits } -> std::convertible_to<RequestTraits>;
};

struct NoAnswer {
    template <class V>
    void fields(V&) {}
};

} // namespace coffer::vmm::control
