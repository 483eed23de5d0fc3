#include "vmm/control/message.hpp"

#include <array>
#include <cerrno>
#include <poll.h>
#include <sys/socket.h>

#include "base/clock.hpp"
#include "base/tagged.hpp"

namespace coffer::vmm::control {

namespace {

constexpr uint16_t k_flag_key = 1;
constexpr uint16_t k_flag_descriptor = 2;
constexpr size_t k_at_kind = 6;
constexpr size_t k_at_number = 8;
constexpr size_t k_at_flags = 12;
constexpr size_t k_at_type = 14;
constexpr size_t k_at_size = 16;
// More than any message has, so that a peer that sends more is noticed rather than cut.
constexpr size_t k_max_descriptors = 4;

struct Failure {
    ErrorCode code = ErrorCode::Internal;
    std::string message;

    template <class V>
    void fields(V& v) {
        v.required(1, code);
        v.required(2, message);
    }
};

Error malformed() {
    return make_error(ErrorCode::Corrupt, "a message on the VM's control socket is malformed");
}

bool is_known(MessageKind kind) noexcept {
    return kind >= MessageKind::Request && kind <= MessageKind::Failure;
}

// Takes over what a packet carried, so that it is closed whatever the message turns out to be.
std::vector<UniqueFd> take_descriptors(msghdr& packet) {
    std::vector<UniqueFd> taken;
    for (auto* part = CMSG_FIRSTHDR(&packet); part; part = CMSG_NXTHDR(&packet, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        size_t const count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            taken.emplace_back(fd);
        }
    }
    return taken;
}

} // namespace

bool announces_descriptor(Bytes header) noexcept {
    return header.size() == k_header_size && (load_le<uint16_t>(header, k_at_flags) & k_flag_descriptor) != 0;
}

Result<Message> decode(Bytes header, crypto::SecretBytes second, Bytes rest) {
    if (header.size() != k_header_size || load_le<uint32_t>(header) != k_magic) return malformed();
    if (auto version = load_le<uint16_t>(header, 4); version != k_version)
        return make_error(ErrorCode::Unsupported,
                          "the VM's process and this one are of different versions of coffer (control protocol {} and "
                          "{}): stop the VM and start it with this one",
                          version, k_version);
    size_t const size = second.size() + rest.size();
    auto const flags = load_le<uint16_t>(header, k_at_flags);
    if (load_le<uint32_t>(header, k_at_size) != size || (flags & ~(k_flag_key | k_flag_descriptor)) != 0 ||
        size > k_max_fields + crypto::BundleKey::k_size)
        return malformed();
    Message message;
    message.kind = static_cast<MessageKind>(load_le<uint16_t>(header, k_at_kind));
    message.type = static_cast<RequestType>(load_le<uint16_t>(header, k_at_type));
    message.number = load_le<uint32_t>(header, k_at_number);
    if (!is_known(message.kind)) return malformed();
    if (flags & k_flag_key) {
        message.key = crypto::BundleKey::adopt(std::move(second));
        if (!message.key) return malformed();
    } else {
        auto bytes = second.expose();
        message.fields.assign(bytes.begin(), bytes.end());
    }
    append(message.fields, rest);
    return message;
}

Result<std::optional<Message>> receive(int socket) {
    std::array<std::byte, k_header_size> header{};
    crypto::SecretBytes second(crypto::BundleKey::k_size);
    ByteVector rest(k_max_fields);
    std::array<iovec, 3> parts{
        {{header.data(), header.size()}, {second.expose_mutable().data(), second.size()}, {rest.data(), rest.size()}}};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(k_max_descriptors * sizeof(int))> control{};
    msghdr packet{};
    packet.msg_iov = parts.data();
    packet.msg_iovlen = parts.size();
    packet.msg_control = control.data();
    packet.msg_controllen = control.size();
    ssize_t count = 0;
    do {
        count = ::recvmsg(socket, &packet, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        // ECONNRESET comes once, where the other end closed before it read all: what it said is behind it.
    } while (count < 0 && (errno == EINTR || errno == ECONNRESET));
    if (count == 0) return std::optional<Message>();
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return make_error(ErrorCode::Timeout, "no message on the VM's control socket");
    if (count < 0) return errno_error(errno, "cannot receive from the VM's control socket");
    auto descriptors = take_descriptors(packet);
    auto size = static_cast<size_t>(count);
    if ((packet.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || size < k_header_size) return malformed();
    size -= k_header_size;
    size_t const in_second = std::min(size, second.size());
    if (in_second < second.size()) second = crypto::SecretBytes::copy_of(second.expose().first(in_second));
    auto message = TRY(decode(header, std::move(second), Bytes(rest).first(size - in_second)));
    if (descriptors.size() != (announces_descriptor(header) ? 1U : 0U)) return malformed();
    if (!descriptors.empty()) message.descriptor = std::move(descriptors.front());
    return std::optional(std::move(message));
}

Result<void> send(int socket, Message const& message, Nanoseconds limit) {
    return send(socket, message, limit, message.key ? &*message.key : nullptr, message.descriptor.get());
}

Result<void> send(int socket, Message const& message, Nanoseconds limit, crypto::BundleKey const* key, int descriptor) {
    if (message.fields.size() > k_max_fields)
        return make_error(ErrorCode::Internal, "a message of {} bytes is too long for a VM's control socket",
                          message.fields.size());
    size_t const key_size = key ? crypto::BundleKey::k_size : 0;
    std::array<std::byte, k_header_size> header{};
    store_le<uint32_t>(header, 0, k_magic);
    store_le<uint16_t>(header, 4, k_version);
    store_le<uint16_t>(header, k_at_kind, static_cast<uint16_t>(message.kind));
    store_le<uint32_t>(header, k_at_number, message.number);
    store_le<uint16_t>(header, k_at_flags,
                       static_cast<uint16_t>((key ? k_flag_key : 0) | (descriptor >= 0 ? k_flag_descriptor : 0)));
    store_le<uint16_t>(header, k_at_type, static_cast<uint16_t>(message.type));
    store_le<uint32_t>(header, k_at_size, static_cast<uint32_t>(key_size + message.fields.size()));

    // SAFETY: sendmsg(2) takes what it only reads by pointers to what is not const.
    auto* key_bytes = key ? const_cast<std::byte*>(key->expose().data()) : nullptr;
    std::array<iovec, 3> parts{{{header.data(), header.size()},
                                {key_bytes, key_size},
                                {const_cast<std::byte*>(message.fields.data()), message.fields.size()}}};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
    msghdr packet{};
    packet.msg_iov = parts.data();
    packet.msg_iovlen = parts.size();
    if (descriptor >= 0) {
        packet.msg_control = control.data();
        packet.msg_controllen = control.size();
        auto* part = CMSG_FIRSTHDR(&packet);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(sizeof descriptor);
        std::memcpy(CMSG_DATA(part), &descriptor, sizeof descriptor);
    }
    auto const end = monotonic_now() + limit;
    for (;;) {
        if (::sendmsg(socket, &packet, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return {};
        if (errno == EINTR) continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return errno_error(errno, "cannot send on the VM's control socket");
        auto const left = end - monotonic_now();
        pollfd room{socket, POLLOUT, 0};
        if (left <= 0 || ::poll(&room, 1, static_cast<int>(left / k_ns_per_ms) + 1) == 0)
            return make_error(ErrorCode::Timeout, "the other end of the VM's control socket does not read");
    }
}

ByteVector encode_failure(Error const& error) {
    return encode_fields(Failure{error.code(), error.message().substr(0, k_max_text)});
}

Error decode_failure(Bytes fields) {
    Failure failure;
    if (!decode_fields(fields, failure) || failure.code > ErrorCode::Cancelled || failure.message.size() > k_max_text)
        return malformed();
    return Error(failure.code, std::move(failure.message));
}

} // namespace coffer::vmm::control
