// A KMIP server for tests, at the level of messages: what real servers lack or do only when they fail.
#pragma once

#include <map>
#include <set>
#include <stdexcept>

#include "crypto/aead.hpp"
#include "keyprovider/kmip/client/connection.hpp"
#include "keyprovider/kmip/client/version.hpp"
#include "keyprovider/kmip/ttlv/ttlv.hpp"

namespace coffer::tests {

class KmipDouble {
public:
    struct Key {
        std::array<std::byte, 32> value{};
        kmip::State state = kmip::State::PreActive;
        std::map<std::string, std::string> attributes;
    };

    // How it behaves.
    std::vector<kmip::ProtocolVersion> versions = {{2, 0}, {1, 4}, {1, 3}, {1, 2}, {1, 1}};
    std::set<kmip::Operation> unknown; // operations that it does not have
    std::string wrong_id;              // given instead of each key's identifier
    std::string next_id;               // of the next key; empty: "key-N"
    bool repeats_batch_item = true;
    bool wrapped_in_structure = false;

    // What came of it.
    std::map<std::string, Key> keys;
    std::vector<kmip::Operation> seen;
    std::vector<kmip::ProtocolVersion> spoken;

    // Requests that no correct client makes throw: the test then fails.
    ByteVector answer(Bytes request) {
        using namespace kmip;
        auto parsed = take(parse(request));
        require(parsed.tag == Tag::RequestMessage, "no request message");
        auto message = take(parsed.structure());
        auto header = take(take(message.require(Tag::RequestHeader)).structure());
        auto protocol = take(take(header.require(Tag::ProtocolVersion)).structure());
        m_version = {number(protocol, Tag::ProtocolVersionMajor), number(protocol, Tag::ProtocolVersionMinor)};
        require(take(take(header.require(Tag::BatchCount)).integer()) == 1, "not one batch item");
        require(take(take(header.require(Tag::MaximumResponseSize)).integer()) == static_cast<int>(k_max_message),
                "no bound on the answer");
        auto item = take(take(message.require(Tag::BatchItem)).structure());
        auto operation = static_cast<Operation>(take(take(item.require(Tag::Operation)).enumeration()));
        m_batch_item = take(take(item.require(Tag::UniqueBatchItemId)).bytes());
        auto payload = take(take(item.require(Tag::RequestPayload)).structure());
        seen.push_back(operation);
        spoken.push_back(m_version);
        bool const known = std::find(versions.begin(), versions.end(), m_version) != versions.end();
        m_buffer.assign(k_max_message, std::byte{0});
        m_writer.emplace(MutBytes(m_buffer));
        if (!known || unknown.contains(operation)) {
            // As PyKMIP does: the header says 1.0, and the item does not say what it answers.
            fail({1, 0}, std::nullopt, ResultReason::InvalidMessage, "Error parsing request message.");
        } else if (auto refusal = refuse(operation, payload)) {
            fail(m_version, operation, *refusal, "The double says no.");
        } else {
            succeed(operation, payload);
        }
        auto bytes = take(m_writer->finish());
        return {bytes.begin(), bytes.end()};
    }

private:
    template <class T>
    static T take(Result<T> result) {
        if (!result) throw std::runtime_error(result.error().message());
        return std::move(*result);
    }
    static void require(bool condition, char const* what) {
        if (!condition) throw std::runtime_error(what);
    }
    static uint16_t number(kmip::Structure const& structure, kmip::Tag tag) {
        return static_cast<uint16_t>(take(take(structure.require(tag)).integer()));
    }
    static std::string text(kmip::Structure const& structure, kmip::Tag tag) {
        return std::string(take(take(structure.require(tag)).text()));
    }
    bool by_tag() const { return m_version.major >= 2; }

    std::optional<kmip::ResultReason> refuse(kmip::Operation operation, kmip::Structure const& payload) {
        using namespace kmip;
        if (operation == Operation::Create || operation == Operation::Register) {
            require(payload.find(by_tag() ? Tag::Attributes : Tag::TemplateAttribute).has_value(), "no attributes");
            return std::nullopt;
        }
        if (operation == Operation::Query || operation == Operation::DiscoverVersions || operation == Operation::Locate)
            return std::nullopt;
        auto found = keys.find(text(payload, Tag::UniqueIdentifier)); // always sent
        if (found == keys.end()) return ResultReason::ItemNotFound;
        auto const state = found->second.state;
        if (operation == Operation::Destroy && state == State::Active) return ResultReason::PermissionDenied;
        if (operation == Operation::Activate && state != State::PreActive) return ResultReason::PermissionDenied;
        if (operation == Operation::Encrypt && state != State::Active) return ResultReason::PermissionDenied;
        if (operation == Operation::Decrypt && !decrypt(payload)) return ResultReason::CryptographicFailure;
        return std::nullopt;
    }

    std::optional<crypto::SecretBytes> decrypt(kmip::Structure const& payload) {
        using namespace kmip;
        auto sealed = bytes(payload, Tag::Data);
        append(sealed, bytes(payload, Tag::AuthenticatedEncryptionTag));
        auto opened = crypto::gcm_open(key_of(payload), nonce(payload), {}, sealed);
        if (!opened) return std::nullopt;
        return std::move(*opened);
    }
    static ByteVector bytes(kmip::Structure const& payload, kmip::Tag tag) {
        auto value = take(take(payload.require(tag)).bytes());
        return {value.begin(), value.end()};
    }
    static crypto::GcmNonce nonce(kmip::Structure const& payload) {
        auto value = bytes(payload, kmip::Tag::IvCounterNonce);
        crypto::GcmNonce nonce{};
        require(value.size() == nonce.size(), "no 96-bit nonce");
        std::copy(value.begin(), value.end(), nonce.begin());
        return nonce;
    }
    crypto::AeadKey key_of(kmip::Structure const& payload) {
        auto& key = keys.at(text(payload, kmip::Tag::UniqueIdentifier));
        return std::move(*crypto::AeadKey::adopt(crypto::SecretBytes::copy_of(key.value)));
    }

    void begin(kmip::ProtocolVersion version, std::optional<kmip::Operation> operation, kmip::ResultStatus status) {
        using kmip::Tag;
        auto& w = *m_writer;
        w.begin(Tag::ResponseMessage);
        w.begin(Tag::ResponseHeader);
        w.begin(Tag::ProtocolVersion);
        w.integer(Tag::ProtocolVersionMajor, version.major);
        w.integer(Tag::ProtocolVersionMinor, version.minor);
        w.end();
        w.integer(Tag::BatchCount, 1);
        w.end();
        w.begin(Tag::BatchItem);
        if (operation) w.enumeration(Tag::Operation, *operation);
        if (operation && repeats_batch_item) w.bytes(Tag::UniqueBatchItemId, m_batch_item);
        w.enumeration(Tag::ResultStatus, status);
    }
    void fail(kmip::ProtocolVersion version, std::optional<kmip::Operation> operation, kmip::ResultReason reason,
              std::string_view why) {
        begin(version, operation, kmip::ResultStatus::OperationFailed);
        m_writer->enumeration(kmip::Tag::ResultReason, reason);
        m_writer->text(kmip::Tag::ResultMessage, why);
        m_writer->end();
        m_writer->end();
    }
    void succeed(kmip::Operation operation, kmip::Structure const& payload) {
        begin(m_version, operation, kmip::ResultStatus::Success);
        m_writer->begin(kmip::Tag::ResponsePayload);
        write_payload(operation, payload);
        for (int open = 0; open < 3; ++open) m_writer->end();
    }
    void write_id(std::string const& id) {
        m_writer->text(kmip::Tag::UniqueIdentifier, wrong_id.empty() ? id : wrong_id);
    }

    void write_payload(kmip::Operation operation, kmip::Structure const& payload) {
        using namespace kmip;
        auto& w = *m_writer;
        switch (operation) {
        case Operation::DiscoverVersions:
            for (auto version : versions) {
                w.begin(Tag::ProtocolVersion);
                w.integer(Tag::ProtocolVersionMajor, version.major);
                w.integer(Tag::ProtocolVersionMinor, version.minor);
                w.end();
            }
            return;
        case Operation::Query:
            for (auto offered : {Operation::Create, Operation::Get, Operation::Encrypt, Operation::Decrypt})
                w.enumeration(Tag::Operation, offered);
            w.text(Tag::VendorIdentification, "the double\n");
            return;
        case Operation::Create:
        case Operation::Register: {
            auto id = next_id.empty() ? fmt::format("key-{}", keys.size() + 1) : next_id;
            auto& key = keys[id];
            key.value.fill(static_cast<std::byte>(keys.size()));
            if (operation == Operation::Register) {
                auto material = take(payload.require(Tag::SymmetricKey));
                for (auto tag : {Tag::KeyBlock, Tag::KeyValue, Tag::KeyMaterial})
                    material = take(take(material.structure()).require(tag));
                auto value = take(material.bytes());
                require(value.size() == key.value.size(), "a key of another size");
                std::copy(value.begin(), value.end(), key.value.begin());
            }
            w.enumeration(Tag::ObjectType, ObjectType::SymmetricKey);
            write_id(id);
            return;
        }
        case Operation::Locate:
            for (auto const& [id, key] : keys) write_id(id);
            return;
        default: break;
        }
        auto id = text(payload, Tag::UniqueIdentifier);
        auto& key = keys.at(id);
        write_id(id);
        switch (operation) {
        case Operation::Get: write_key(key, payload.find(Tag::KeyWrappingSpecification).has_value()); return;
        case Operation::GetAttributes: write_state(key); return;
        case Operation::AddAttribute: {
            require(!by_tag(), "AddAttribute in the old form");
            auto attribute = take(take(payload.require(Tag::Attribute)).structure());
            key.attributes[text(attribute, Tag::AttributeName)] = text(attribute, Tag::AttributeValue);
            return;
        }
        case Operation::SetAttribute: {
            require(by_tag(), "SetAttribute before 2.0");
            auto wanted = take(take(payload.require(Tag::NewAttribute)).structure());
            auto attribute = take(take(wanted.require(Tag::Attribute)).structure());
            key.attributes[text(attribute, Tag::VendorIdentification) + "-" + text(attribute, Tag::AttributeName)] =
                text(attribute, Tag::AttributeValue);
            return;
        }
        case Operation::Activate: key.state = State::Active; return;
        case Operation::Revoke: {
            auto reason = take(take(payload.require(Tag::RevocationReason)).structure());
            bool const compromise = take(take(reason.require(Tag::RevocationReasonCode)).enumeration()) ==
                                    static_cast<uint32_t>(RevocationReasonCode::KeyCompromise);
            key.state = compromise ? State::Compromised : State::Deactivated;
            return;
        }
        case Operation::Destroy: keys.erase(id); return;
        case Operation::Encrypt: {
            auto sealed = take(crypto::gcm_seal(key_of(payload), nonce(payload), {}, bytes(payload, Tag::Data)));
            auto data = Bytes(sealed).first(sealed.size() - crypto::k_gcm_tag_size);
            w.bytes(Tag::Data, data);
            w.bytes(Tag::AuthenticatedEncryptionTag, Bytes(sealed).subspan(data.size()));
            return;
        }
        case Operation::Decrypt: w.bytes(Tag::Data, decrypt(payload)->expose()); return;
        default: throw std::runtime_error("an operation that the double does not have");
        }
    }
    void write_state(Key const& key) {
        using kmip::Tag;
        auto& w = *m_writer;
        if (by_tag()) {
            w.begin(Tag::Attributes);
            w.enumeration(Tag::State, key.state);
        } else {
            w.begin(Tag::Attribute);
            w.text(Tag::AttributeName, "State");
            w.enumeration(Tag::AttributeValue, key.state);
        }
        w.end();
    }
    void write_key(Key const& key, bool wrapped) {
        using kmip::Tag;
        auto& w = *m_writer;
        w.enumeration(Tag::ObjectType, kmip::ObjectType::SymmetricKey);
        w.begin(Tag::SymmetricKey);
        w.begin(Tag::KeyBlock);
        w.enumeration(Tag::KeyFormatType, kmip::KeyFormatType::Raw);
        if (!wrapped || wrapped_in_structure) w.begin(Tag::KeyValue);
        if (wrapped) {
            w.bytes(wrapped_in_structure ? Tag::KeyMaterial : Tag::KeyValue, ByteVector(40, std::byte{0x77}));
        } else {
            w.bytes(Tag::KeyMaterial, key.value);
        }
        if (!wrapped || wrapped_in_structure) w.end();
        if (wrapped) {
            w.begin(Tag::KeyWrappingData);
            w.enumeration(Tag::WrappingMethod, kmip::WrappingMethod::Encrypt);
            w.end();
        }
        w.end();
        w.end();
    }

    kmip::ProtocolVersion m_version;
    Bytes m_batch_item;
    ByteVector m_buffer;
    std::optional<kmip::Writer> m_writer;
};

// A connection to a double without a network between. `transform` may change an answer, or fail.
class DoubleConnection final : public kmip::Connection {
public:
    using Transform = std::function<Result<void>(ByteVector& answer)>;

    DoubleConnection(KmipDouble& server, Transform transform) : m_server(server), m_transform(std::move(transform)) {}

    Result<crypto::SecretBytes> exchange(Bytes request, Nanoseconds) override {
        auto answer = m_server.answer(request);
        if (m_transform) TRY(m_transform(answer));
        return crypto::SecretBytes::copy_of(answer);
    }
    kmip::ConnectReport const& report() const noexcept override { return m_report; }

private:
    KmipDouble& m_server;
    Transform m_transform;
    kmip::ConnectReport m_report;
};

} // namespace coffer::tests
