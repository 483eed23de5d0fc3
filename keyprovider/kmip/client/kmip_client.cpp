#include "keyprovider/kmip/client/kmip_client.hpp"

#include "crypto/aead.hpp"
#include "crypto/random.hpp"

namespace coffer::kmip {

namespace {

constexpr int32_t k_key_bits = 256;
// KMIP's longest identifiers seen are a few dozen characters; KeyId holds 255.
constexpr size_t k_max_identifier = 255;
constexpr size_t k_max_operations = 256;
constexpr std::string_view k_attribute_vendor = "x";

void nothing(Writer&, VersionTraits const&) {}

ErrorCode code_for(ResultReason reason) noexcept {
    switch (reason) {
    case ResultReason::OperationNotSupported:
    case ResultReason::FeatureNotSupported: return ErrorCode::Unsupported;
    case ResultReason::CryptographicFailure: return ErrorCode::Integrity;
    default: return ErrorCode::KeyUnavailable;
    }
}

Error refused(Operation operation, Refusal const& refusal) {
    std::string_view hint;
    if (refusal.reason == ResultReason::ItemNotFound) hint = "; the server has no such key";
    return make_error(code_for(refusal.reason), "the KMIP server refuses {}: {} (reason {:#x}){}", to_string(operation),
                      refusal.text.empty() ? "it gives no text" : refusal.text, static_cast<uint32_t>(refusal.reason),
                      hint);
}

Error wrong_answer(Operation operation, std::string_view what) {
    return make_error(ErrorCode::Corrupt, "the KMIP server's answer to {} {}", to_string(operation), what);
}

void attribute(Writer& writer, std::string_view name, std::function<void(Tag)> const& value) {
    writer.begin(Tag::Attribute);
    writer.text(Tag::AttributeName, name);
    value(Tag::AttributeValue);
    writer.end();
}

// What a new key is.
void key_attributes(Writer& writer, VersionTraits const& traits) {
    auto algorithm = [&](Tag tag) { writer.enumeration(tag, CryptographicAlgorithm::Aes); };
    auto length = [&](Tag tag) { writer.integer(tag, k_key_bits); };
    auto usage = [&](Tag tag) { writer.integer(tag, static_cast<int32_t>(k_usage_encrypt | k_usage_decrypt)); };
    if (traits.attributes_by_tag) {
        writer.begin(Tag::Attributes);
        algorithm(Tag::CryptographicAlgorithm);
        length(Tag::CryptographicLength);
        usage(Tag::CryptographicUsageMask);
        writer.end();
        return;
    }
    writer.begin(Tag::TemplateAttribute);
    attribute(writer, "Cryptographic Algorithm", algorithm);
    attribute(writer, "Cryptographic Length", length);
    attribute(writer, "Cryptographic Usage Mask", usage);
    writer.end();
}

void gcm_parameters(Writer& writer) {
    writer.begin(Tag::CryptographicParameters);
    writer.enumeration(Tag::BlockCipherMode, BlockCipherMode::Gcm);
    writer.enumeration(Tag::CryptographicAlgorithm, CryptographicAlgorithm::Aes);
    writer.integer(Tag::TagLength, static_cast<int32_t>(crypto::k_gcm_tag_size));
    writer.end();
}

Result<std::string> identifier_of(Answer const& answer, Operation operation) {
    auto text = TRY(answer.payload.require_text(Tag::UniqueIdentifier));
    if (text.empty() || text.size() > k_max_identifier)
        return wrong_answer(operation, "has an identifier of impossible length");
    return std::string(text);
}

ByteVector copy(Bytes bytes) {
    return {bytes.begin(), bytes.end()};
}

Result<Structure> key_block(Answer const& answer) {
    auto key = TRY(answer.payload.require_structure(Tag::SymmetricKey));
    return key.require_structure(Tag::KeyBlock);
}

} // namespace

bool ServerInformation::offers(Operation operation) const noexcept {
    return std::find(operations.begin(), operations.end(), static_cast<uint32_t>(operation)) != operations.end();
}

Result<Answer> KmipClient::call(RequestOperation request, PayloadWriter const& payload) {
    auto result = TRY(m_cluster.call(request, payload));
    if (auto const* refusal = std::get_if<Refusal>(&result)) return refused(in_use(request), *refusal);
    return std::get<Answer>(std::move(result));
}

Operation KmipClient::in_use(RequestOperation request) const {
    return request.in(*find_version(*m_cluster.current().version));
}

Result<Answer> KmipClient::call_for(RequestOperation request, std::string_view id, PayloadWriter const& rest) {
    auto answer = TRY(call(request, [&](Writer& writer, VersionTraits const& traits) {
        writer.text(Tag::UniqueIdentifier, id);
        rest(writer, traits);
    }));
    auto const operation = in_use(request);
    if (TRY(identifier_of(answer, operation)) != id) return wrong_answer(operation, "is about another key");
    return answer;
}

Result<ServerInformation> KmipClient::query() {
    auto answer = TRY(call(Operation::Query, [](Writer& writer, VersionTraits const&) {
        writer.enumeration(Tag::QueryFunction, QueryFunction::Operations);
        writer.enumeration(Tag::QueryFunction, QueryFunction::ServerInformation);
    }));
    ServerInformation information;
    for (Item item : answer.payload) {
        if (item.tag == Tag::Operation && information.operations.size() < k_max_operations)
            information.operations.push_back(TRY(item.enumeration()));
        if (item.tag == Tag::VendorIdentification) information.vendor = printable(TRY(item.text()));
    }
    return information;
}

Result<std::string> KmipClient::create() {
    auto answer = TRY(call(Operation::Create, [](Writer& writer, VersionTraits const& traits) {
        writer.enumeration(Tag::ObjectType, ObjectType::SymmetricKey);
        key_attributes(writer, traits);
    }));
    return identifier_of(answer, Operation::Create);
}

Result<std::string> KmipClient::register_key(crypto::KeyEncryptionKey const& key) {
    auto answer = TRY(call(Operation::Register, [&](Writer& writer, VersionTraits const& traits) {
        writer.enumeration(Tag::ObjectType, ObjectType::SymmetricKey);
        key_attributes(writer, traits);
        writer.begin(Tag::SymmetricKey);
        writer.begin(Tag::KeyBlock);
        writer.enumeration(Tag::KeyFormatType, KeyFormatType::Raw);
        writer.begin(Tag::KeyValue);
        writer.bytes(Tag::KeyMaterial, key.expose());
        writer.end();
        writer.enumeration(Tag::CryptographicAlgorithm, CryptographicAlgorithm::Aes);
        writer.integer(Tag::CryptographicLength, k_key_bits);
        writer.end();
        writer.end();
    }));
    return identifier_of(answer, Operation::Register);
}

Result<crypto::KeyEncryptionKey> KmipClient::get(std::string_view id) {
    auto answer = TRY(call_for(Operation::Get, id, [](Writer& writer, VersionTraits const&) {
        writer.enumeration(Tag::KeyFormatType, KeyFormatType::Raw);
    }));
    auto block = TRY(key_block(answer));
    if (block.find(Tag::KeyWrappingData))
        return wrong_answer(Operation::Get, "has a wrapped key, which was not asked for");
    auto value = TRY(block.require_structure(Tag::KeyValue));
    auto key =
        crypto::KeyEncryptionKey::adopt(crypto::SecretBytes::copy_of(TRY(value.require_bytes(Tag::KeyMaterial))));
    if (!key) return wrong_answer(Operation::Get, "has a key of another size than 256 bits");
    return std::move(*key);
}

Result<ByteVector> KmipClient::get_wrapped(std::string_view id, std::string_view wrapping_id) {
    auto answer = TRY(call_for(Operation::Get, id, [&](Writer& writer, VersionTraits const&) {
        writer.begin(Tag::KeyWrappingSpecification);
        writer.enumeration(Tag::WrappingMethod, WrappingMethod::Encrypt);
        writer.begin(Tag::EncryptionKeyInformation);
        writer.text(Tag::UniqueIdentifier, wrapping_id);
        writer.begin(Tag::CryptographicParameters);
        writer.enumeration(Tag::BlockCipherMode, BlockCipherMode::NistKeyWrap);
        writer.end();
        writer.end();
        writer.enumeration(Tag::EncodingOption, EncodingOption::NoEncoding);
        writer.end();
    }));
    auto block = TRY(key_block(answer));
    // Without the first a server would give the key itself, and this would take it for a wrapped one.
    TRY(block.require(Tag::KeyWrappingData));
    auto value = TRY(block.require(Tag::KeyValue));
    if (value.type == Type::ByteString) return copy(TRY(value.bytes()));
    // Some servers keep the structure around the wrapped material.
    auto inner = TRY(value.structure());
    return copy(TRY(inner.require_bytes(Tag::KeyMaterial)));
}

Result<State> KmipClient::state(std::string_view id) {
    auto answer = TRY(call_for(Operation::GetAttributes, id, [](Writer& writer, VersionTraits const& traits) {
        if (traits.attributes_by_tag)
            writer.enumeration(Tag::AttributeReference, Tag::State);
        else
            writer.text(Tag::AttributeName, "State");
    }));
    // Whatever form the answer has, another attribute is never taken for the state.
    if (auto attributes = answer.payload.find(Tag::Attributes)) {
        auto fields = TRY(attributes->structure());
        return static_cast<State>(TRY(fields.require_enumeration(Tag::State)));
    }
    for (Item item : answer.payload) {
        if (item.tag != Tag::Attribute) continue;
        auto fields = TRY(item.structure());
        if (TRY(fields.require_text(Tag::AttributeName)) == "State")
            return static_cast<State>(TRY(fields.require_enumeration(Tag::AttributeValue)));
    }
    return wrong_answer(Operation::GetAttributes, "does not tell the key's state");
}

Result<void> KmipClient::set_attribute(std::string_view id, std::string_view name, std::string_view value) {
    TRY(call_for(RequestOperation(Operation::AddAttribute, Operation::SetAttribute), id,
                 [&](Writer& writer, VersionTraits const& spoken) {
                     if (!spoken.attributes_by_tag) {
                         attribute(writer, fmt::format("x-{}", name), [&](Tag tag) { writer.text(tag, value); });
                         return;
                     }
                     writer.begin(Tag::NewAttribute);
                     writer.begin(Tag::Attribute);
                     writer.text(Tag::VendorIdentification, k_attribute_vendor);
                     writer.text(Tag::AttributeName, name);
                     writer.text(Tag::AttributeValue, value);
                     writer.end();
                     writer.end();
                 }));
    return {};
}

Result<std::vector<std::string>> KmipClient::locate(std::string_view name, size_t limit) {
    auto answer = TRY(call(Operation::Locate, [&](Writer& writer, VersionTraits const& traits) {
        auto filter = [&](Tag tag) {
            writer.begin(tag);
            writer.text(Tag::NameValue, name);
            writer.enumeration(Tag::NameType, NameType::UninterpretedTextString);
            writer.end();
        };
        writer.integer(Tag::MaximumItems, static_cast<int32_t>(std::min<size_t>(limit, INT32_MAX)));
        if (traits.attributes_by_tag) {
            writer.begin(Tag::Attributes);
            filter(Tag::Name);
            writer.end();
        } else {
            attribute(writer, "Name", filter);
        }
    }));
    std::vector<std::string> ids;
    for (Item item : answer.payload) {
        if (item.tag != Tag::UniqueIdentifier) continue;
        if (ids.size() == limit) return wrong_answer(Operation::Locate, "has more keys than were asked for");
        auto text = TRY(item.text());
        if (text.empty() || text.size() > k_max_identifier)
            return wrong_answer(Operation::Locate, "has an identifier of impossible length");
        ids.emplace_back(text);
    }
    return ids;
}

Result<void> KmipClient::activate(std::string_view id) {
    TRY(call_for(Operation::Activate, id, nothing));
    return {};
}

Result<void> KmipClient::revoke(std::string_view id, RevocationReasonCode reason) {
    TRY(call_for(Operation::Revoke, id, [&](Writer& writer, VersionTraits const&) {
        writer.begin(Tag::RevocationReason);
        writer.enumeration(Tag::RevocationReasonCode, reason);
        writer.end();
        // Servers want the time of a compromise (1.4 section 4.21); that it was now is all that is known.
        if (reason == RevocationReasonCode::KeyCompromise)
            writer.date_time(Tag::CompromiseOccurrenceDate, wall_clock_seconds());
    }));
    return {};
}

Result<void> KmipClient::destroy(std::string_view id) {
    TRY(call_for(Operation::Destroy, id, nothing));
    return {};
}

Result<void> KmipClient::require_gcm() {
    TRY(m_cluster.connect());
    auto version = *m_cluster.current().version;
    if (!find_version(version)->gcm)
        return make_error(ErrorCode::Unsupported,
                          "{} speaks KMIP {}, which has no authenticated encryption: wrapping at the server needs 1.4",
                          m_cluster.current().endpoint.to_string(), version.to_string());
    return {};
}

Result<GcmSealed> KmipClient::encrypt(std::string_view id, crypto::SecretBytes const& plaintext) {
    TRY(require_gcm());
    GcmSealed sealed;
    sealed.nonce.resize(crypto::k_gcm_nonce_size);
    TRY(crypto::random_bytes(sealed.nonce));
    auto answer = TRY(call_for(Operation::Encrypt, id, [&](Writer& writer, VersionTraits const&) {
        gcm_parameters(writer);
        writer.bytes(Tag::Data, plaintext.expose());
        writer.bytes(Tag::IvCounterNonce, sealed.nonce);
    }));
    sealed.data = copy(TRY(answer.payload.require_bytes(Tag::Data)));
    sealed.tag = copy(TRY(answer.payload.require_bytes(Tag::AuthenticatedEncryptionTag)));
    if (sealed.data.size() != plaintext.size() || sealed.tag.size() != crypto::k_gcm_tag_size)
        return wrong_answer(Operation::Encrypt, "has ciphertext or a tag of another size");
    // A nonce in the answer is one that the server chose instead.
    if (auto nonce = answer.payload.find(Tag::IvCounterNonce); nonce && copy(TRY(nonce->bytes())) != sealed.nonce)
        return wrong_answer(Operation::Encrypt, "has another nonce than the request");
    return sealed;
}

Result<crypto::SecretBytes> KmipClient::decrypt(std::string_view id, GcmSealed const& sealed) {
    TRY(require_gcm());
    auto answer = TRY(call_for(Operation::Decrypt, id, [&](Writer& writer, VersionTraits const&) {
        gcm_parameters(writer);
        writer.bytes(Tag::Data, sealed.data);
        writer.bytes(Tag::IvCounterNonce, sealed.nonce);
        writer.bytes(Tag::AuthenticatedEncryptionTag, sealed.tag);
    }));
    auto plaintext = TRY(answer.payload.require_bytes(Tag::Data));
    if (plaintext.size() != sealed.data.size())
        return wrong_answer(Operation::Decrypt, "has plaintext of another size");
    return crypto::SecretBytes::copy_of(plaintext);
}

} // namespace coffer::kmip
