// The asking side of a running VM's control socket. Not thread-safe.
#pragma once

#include <functional>

#include "base/clock.hpp"
#include "vmm/control/request.hpp"
#include "vmm/home/home_location.hpp"

namespace coffer::vmm::control {

// What goes along with a request, and what happens meanwhile.
struct CallOptions {
    crypto::BundleKey const* key = nullptr; // as the request's traits say
    int descriptor = -1;
    std::function<void(Progress const&)> on_progress = {};
    std::function<bool()> cancelled = {};        // asked several times a second; true: the request is given up
    Nanoseconds silence_limit = 60 * k_ns_per_s; // Timeout where nothing comes for so long; 0: wait on
};

class Client {
public:
    // NotFound where the VM does not run; Busy where another verb or `tpm serve` has its home, or the VM's process has
    // too many clients; Permission where what listens there is not of this user.
    static Result<Client> connect(HomeLocation const& location);

    // Carries the request out in the VM's process. Errors: what the handler gives; Io where the VM ended before it
    // answered; Timeout; Unsupported where that process is of another version.
    template <ControlRequest R>
    Result<typename R::Answer> call(R const& request, CallOptions const& options = {}) {
        typename R::Answer answer;
        auto fields = TRY(exchange(R::k_type, encode_fields(request), options));
        TRY(decode_fields(fields, answer));
        return answer;
    }

private:
    explicit Client(UniqueFd socket) : m_socket(std::move(socket)) {}
    Result<ByteVector> exchange(RequestType type, ByteVector fields, CallOptions const& options);

    UniqueFd m_socket;
    uint32_t m_next_number = 1;
};

} // namespace coffer::vmm::control
