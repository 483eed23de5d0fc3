// Takes the requests of the control protocol off a byte stream, and writes responses.
//
// The protocol has no length field, and clients disagree on the padding behind a locality. Clients send a request in
// one piece and wait for its response, so padding is what has come along with the byte that it belongs to.
#pragma once

#include "base/bytes.hpp"
#include "vmm/tpm/control_spec.hpp"

namespace coffer::vmm::tpm_control {

enum class Framing : uint8_t {
    Incomplete, // more bytes are needed
    Complete,
    Unknown,  // no such command: nobody can tell where it ends
    TooLarge, // its data is above k_max_data
};

struct Request {
    Framing framing = Framing::Incomplete;
    Command command{};
    Bytes body;      // without padding; data's length field agrees with the data
    size_t size = 0; // bytes of the stream that it takes up; 0 unless complete
};

// The first request in `stream`.
Request parse_request(Bytes stream) noexcept;

class Response {
public:
    Response() = default;
    explicit Response(ControlResult result) { u32(static_cast<uint32_t>(result)); }

    Response& u8(uint8_t value) { return be(value); }
    Response& u32(uint32_t value) { return be(value); }
    Response& u64(uint64_t value) { return be(value); }
    Response& bytes(Bytes value) {
        append(m_bytes, value);
        return *this;
    }
    Bytes view() const noexcept { return m_bytes; }

private:
    template <class T>
    Response& be(T value) {
        m_bytes.resize(m_bytes.size() + sizeof value);
        store_be<T>(m_bytes, m_bytes.size() - sizeof value, value);
        return *this;
    }

    ByteVector m_bytes;
};

} // namespace coffer::vmm::tpm_control
