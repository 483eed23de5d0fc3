#include "keyprovider/kmip/client/messages.hpp"

#include "keyprovider/kmip/client/connection.hpp"

namespace coffer::kmip {

namespace {
constexpr size_t k_max_request = size_t{8} << 10;

std::array<std::byte, 8> identifier(RequestId const& id) {
    std::array<std::byte, 8> bytes{};
    store_be<uint64_t>(bytes, 0, id.batch_item);
    return bytes;
}

Error no_answer(std::string_view what) {
    return make_error(ErrorCode::Corrupt, "the KMIP server's answer {}", what);
}
} // namespace

Result<ProtocolVersion> parse_version(std::string_view text) {
    std::string known;
    for (auto const& traits : k_versions) {
        if (traits.version.to_string() == text) return traits.version;
        known += fmt::format("{}{}", known.empty() ? "" : ", ", traits.version.to_string());
    }
    return make_error(ErrorCode::InvalidArgument, "'{}' is no KMIP version that coffer speaks; it speaks {}", text,
                      known);
}

Result<crypto::SecretBytes> encode_request(VersionTraits const& traits, RequestId const& id,
                                           PayloadWriter const& payload) {
    crypto::SecretBytes buffer(k_max_request);
    Writer writer(buffer.expose_mutable());
    writer.begin(Tag::RequestMessage);
    writer.begin(Tag::RequestHeader);
    writer.begin(Tag::ProtocolVersion);
    writer.integer(Tag::ProtocolVersionMajor, traits.version.major);
    writer.integer(Tag::ProtocolVersionMinor, traits.version.minor);
    writer.end();
    writer.integer(Tag::MaximumResponseSize, static_cast<int32_t>(k_max_message));
    // No Time Stamp: servers refuse requests whose clock differs from theirs.
    writer.integer(Tag::BatchCount, 1);
    writer.end();
    writer.begin(Tag::BatchItem);
    writer.enumeration(Tag::Operation, id.operation);
    writer.bytes(Tag::UniqueBatchItemId, identifier(id));
    writer.begin(Tag::RequestPayload);
    payload(writer, traits);
    writer.end();
    writer.end();
    writer.end();
    return crypto::SecretBytes::copy_of(TRY(writer.finish()));
}

Result<std::variant<Answer, Refusal>> decode_response(crypto::SecretBytes message, RequestId const& id) {
    auto parsed = TRY(parse(message.expose()));
    if (parsed.tag != Tag::ResponseMessage) return no_answer("is no response message");
    auto response = TRY(parsed.structure());
    auto header = TRY(response.require_structure(Tag::ResponseHeader));
    if (TRY(header.require_integer(Tag::BatchCount)) != 1) return no_answer("has not one batch item");
    auto item = TRY(response.require_structure(Tag::BatchItem));
    auto status = static_cast<ResultStatus>(TRY(item.require_enumeration(Tag::ResultStatus)));
    if (auto echoed = item.find(Tag::UniqueBatchItemId)) {
        auto bytes = TRY(echoed->bytes());
        if (bytes.size() != sizeof id.batch_item || load_be<uint64_t>(bytes) != id.batch_item)
            return no_answer("belongs to another request");
    } else if (status == ResultStatus::Success) {
        return no_answer("does not say to which request it belongs");
    }
    if (auto operation = item.find(Tag::Operation);
        operation ? TRY(operation->enumeration()) != static_cast<uint32_t>(id.operation)
                  : status == ResultStatus::Success)
        return no_answer("is to another operation");
    if (status != ResultStatus::Success) {
        Refusal refusal;
        refusal.reason = ResultReason::GeneralFailure;
        if (auto reason = item.find(Tag::ResultReason))
            refusal.reason = static_cast<ResultReason>(TRY(reason->enumeration()));
        if (auto text = item.find(Tag::ResultMessage)) refusal.text = printable(TRY(text->text()));
        if (status == ResultStatus::OperationPending) refusal.text = "the server wants to answer later";
        return std::variant<Answer, Refusal>(std::move(refusal));
    }
    auto payload = TRY(item.require_structure(Tag::ResponsePayload));
    return std::variant<Answer, Refusal>(Answer{std::move(message), payload});
}

std::string_view to_string(Operation operation) noexcept {
    switch (operation) {
    case Operation::Create: return "Create";
    case Operation::Register: return "Register";
    case Operation::Locate: return "Locate";
    case Operation::Get: return "Get";
    case Operation::GetAttributes: return "GetAttributes";
    case Operation::AddAttribute: return "AddAttribute";
    case Operation::Activate: return "Activate";
    case Operation::Revoke: return "Revoke";
    case Operation::Destroy: return "Destroy";
    case Operation::Query: return "Query";
    case Operation::DiscoverVersions: return "DiscoverVersions";
    case Operation::Encrypt: return "Encrypt";
    case Operation::Decrypt: return "Decrypt";
    case Operation::SetAttribute: return "SetAttribute";
    }
    return "an unknown operation";
}

std::string_view to_string(State state) noexcept {
    switch (state) {
    case State::PreActive: return "pre-active";
    case State::Active: return "active";
    case State::Deactivated: return "deactivated";
    case State::Compromised: return "compromised";
    case State::Destroyed: return "destroyed";
    case State::DestroyedCompromised: return "destroyed after it was compromised";
    }
    return "in an unknown state";
}

} // namespace coffer::kmip
