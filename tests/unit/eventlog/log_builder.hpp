// Event logs as firmware writes them, for tests.
#pragma once

#include <string>

#include <gtest/gtest.h>

#include "crypto/hash.hpp"
#include "vmm/eventlog/event_log.hpp"

namespace coffer::vmm::tests {

class LogBuilder {
public:
    // SHA-1 and SHA-256.
    LogBuilder() {
        ByteVector id;
        text(id, std::string("Spec ID Event03\0", 16));
        u32(id, 0); // platform class
        u32(id, 0x0200'0200);
        u32(id, 2);
        u16(id, 0x0004).u16(id, 20);
        u16(id, 0x000B).u16(id, 32);
        id.push_back(std::byte{0});
        u32(m_bytes, 0).u32(m_bytes, 3);
        m_bytes.insert(m_bytes.end(), 20, std::byte{0});
        u32(m_bytes, static_cast<uint32_t>(id.size()));
        append(m_bytes, id);
    }

    // An event whose digests are those of its data.
    LogBuilder& event(uint32_t pcr, EventType type, Bytes data) {
        append(m_bytes, event_bytes(pcr, type, data));
        return *this;
    }
    LogBuilder& event(uint32_t pcr, EventType type, std::string_view data) { return event(pcr, type, as_bytes(data)); }
    LogBuilder& raw(Bytes bytes) {
        append(m_bytes, bytes);
        return *this;
    }
    static ByteVector event_bytes(uint32_t pcr, EventType type, Bytes data) {
        ByteVector bytes;
        u32(bytes, pcr).u32(bytes, static_cast<uint32_t>(type)).u32(bytes, 2);
        u16(bytes, 0x0004);
        append(bytes, *crypto::hash(crypto::HashAlgorithm::Sha1, {data}));
        u16(bytes, 0x000B);
        append(bytes, *crypto::hash(crypto::HashAlgorithm::Sha256, {data}));
        u32(bytes, static_cast<uint32_t>(data.size()));
        append(bytes, data);
        return bytes;
    }
    ByteVector const& bytes() const { return m_bytes; }

    struct Chain { // so that several numbers stand in a line
        Chain& u16(ByteVector& to, uint16_t value) {
            append(to, object_bytes(value));
            return *this;
        }
        Chain& u32(ByteVector& to, uint32_t value) {
            append(to, object_bytes(value));
            return *this;
        }
    };
    static Chain u16(ByteVector& to, uint16_t value) { return Chain().u16(to, value); }
    static Chain u32(ByteVector& to, uint32_t value) { return Chain().u32(to, value); }
    static void text(ByteVector& to, std::string_view value) { append(to, as_bytes(value)); }

private:
    ByteVector m_bytes;
};

} // namespace coffer::vmm::tests
