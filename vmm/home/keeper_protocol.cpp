#include "vmm/home/keeper_protocol.hpp"

#include <cerrno>
#include <sys/socket.h>

#include "base/tagged.hpp"

namespace coffer::vmm::keeper {

namespace {

constexpr uint32_t k_magic = 0x5250'4B43; // "CKPR"
constexpr uint16_t k_version = 1;
constexpr size_t k_header_size = 16;
constexpr size_t k_max_failure_text = 2048;

bool carries_key(MessageType type) noexcept {
    return type == MessageType::Wrap || type == MessageType::Unwrapped;
}

bool is_known(MessageType type) noexcept {
    switch (type) {
    case MessageType::Wrap:
    case MessageType::Unwrap:
    case MessageType::Wrapped:
    case MessageType::Unwrapped:
    case MessageType::Test:
    case MessageType::Tested:
    case MessageType::Add:
    case MessageType::Rotate:
    case MessageType::Backup:
    case MessageType::Restore:
    case MessageType::Changed:
    case MessageType::Failed: return true;
    }
    return false;
}

Error malformed() {
    return make_error(ErrorCode::Corrupt, "a message between coffer and its keeper is malformed");
}

Result<Message> decode(Bytes packet) {
    if (packet.size() < k_header_size || load_le<uint32_t>(packet) != k_magic ||
        load_le<uint16_t>(packet, 4) != k_version || load_le<uint32_t>(packet, 12) != packet.size() - k_header_size)
        return malformed();
    Message message;
    message.type = static_cast<MessageType>(load_le<uint16_t>(packet, 6));
    message.number = load_le<uint32_t>(packet, 8);
    if (!is_known(message.type)) return malformed();
    Bytes body = packet.subspan(k_header_size);
    if (carries_key(message.type)) {
        if (body.size() < crypto::BundleKey::k_size) return malformed();
        message.key = crypto::BundleKey::adopt(crypto::SecretBytes::copy_of(body.first(crypto::BundleKey::k_size)));
        body = body.subspan(crypto::BundleKey::k_size);
    }
    message.fields.assign(body.begin(), body.end());
    return message;
}

} // namespace

Result<std::optional<Message>> receive(int fd) {
    crypto::SecretBytes buffer(k_max_message);
    ssize_t size = 0;
    do {
        // MSG_TRUNC: the packet's true size, so that one that does not fit is noticed.
        size = ::recv(fd, buffer.expose_mutable().data(), buffer.size(), MSG_TRUNC);
    } while (size < 0 && errno == EINTR);
    if (size == 0 || (size < 0 && errno == ECONNRESET)) return std::optional<Message>();
    if (size < 0) return errno_error(errno, "cannot receive from the keeper's socket");
    if (static_cast<size_t>(size) > buffer.size()) return malformed();
    return std::optional(TRY(decode(buffer.expose().first(static_cast<size_t>(size)))));
}

Result<void> send(int fd, Message const& message) {
    COFFER_ASSERT(carries_key(message.type) == message.key.has_value());
    size_t const key_size = message.key ? crypto::BundleKey::k_size : 0;
    size_t const size = k_header_size + key_size + message.fields.size();
    if (size > k_max_message)
        return make_error(ErrorCode::Internal, "a message of {} bytes is too long for the keeper's socket", size);
    crypto::SecretBytes packet(size);
    MutBytes const to = packet.expose_mutable();
    store_le<uint32_t>(to, 0, k_magic);
    store_le<uint16_t>(to, 4, k_version);
    store_le<uint16_t>(to, 6, static_cast<uint16_t>(message.type));
    store_le<uint32_t>(to, 8, message.number);
    store_le<uint32_t>(to, 12, static_cast<uint32_t>(size - k_header_size));
    if (message.key) std::memcpy(to.data() + k_header_size, message.key->expose().data(), key_size);
    if (!message.fields.empty())
        std::memcpy(to.data() + k_header_size + key_size, message.fields.data(), message.fields.size());
    ssize_t sent = 0;
    do {
        sent = ::send(fd, to.data(), to.size(), MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) return errno_error(errno, "cannot send on the keeper's socket");
    return {};
}

ByteVector encode_failure(Error const& error) {
    return encode_fields(Failure{error.code(), error.message().substr(0, k_max_failure_text)});
}

Error decode_failure(Bytes fields) {
    Failure failure;
    if (!decode_fields(fields, failure) || failure.code > ErrorCode::Cancelled ||
        failure.message.size() > k_max_failure_text)
        return malformed();
    return Error(failure.code, std::move(failure.message));
}

} // namespace coffer::vmm::keeper
