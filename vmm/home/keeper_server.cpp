#include "vmm/home/keeper_server.hpp"

#include <map>
#include <string_view>

#include "base/log.hpp"
#include "base/tagged.hpp"
#include "keyprovider/registry.hpp"
#include "vmm/home/keeper_arguments.hpp"
#include "vmm/home/keeper_protocol.hpp"
#include "vmm/home/keeper_sandbox.hpp"
#include "vmm/home/passphrase.hpp"
#include "vmm/home/process_hygiene.hpp"

namespace coffer::vmm::keeper {

namespace {

class Keeper {
public:
    explicit Keeper(Settings const& settings) : m_settings(settings), m_registry(settings.providers) {}

    Message answer(Message const& request) {
        auto answered = handle(request);
        if (!answered) answered = Message{MessageType::Failed, 0, std::nullopt, encode_failure(answered.error())};
        answered->number = request.number;
        return std::move(*answered);
    }

private:
    Result<Message> handle(Message const& request) {
        if (request.type == MessageType::Wrap) return wrap(request);
        if (request.type == MessageType::Unwrap) return unwrap(request);
        return make_error(ErrorCode::Corrupt, "the keeper was asked something that is no request");
    }

    Result<Message> wrap(Message const& request) {
        WrapRequest wanted;
        TRY(decode_fields(request.fields, wanted));
        auto* opened = TRY(provider(wanted.provider));
        auto key_id = TRY(opened->create_kek(wanted.label));
        auto wrapped = TRY(opened->wrap(key_id, *request.key));
        return Message{MessageType::Wrapped, 0, std::nullopt,
                       encode_fields(WrapAnswer{key_id.text(), std::move(wrapped.bytes)})};
    }

    Result<Message> unwrap(Message const& request) {
        UnwrapRequest wanted;
        TRY(decode_fields(request.fields, wanted));
        auto* opened = TRY(provider(wanted.provider));
        auto key_id = TRY(KeyId::parse(wanted.key_id));
        auto key = TRY(opened->unwrap(key_id, WrappedKey{std::move(wanted.wrapped)}));
        return Message{MessageType::Unwrapped, 0, std::move(key), {}};
    }

    // Providers stay open, so that several homes of one provider ask for its passphrase once.
    Result<KeyProvider*> provider(Uuid const& id) {
        auto& slot = m_open[id];
        if (!slot) slot = TRY(m_registry.open(id, [this](std::string_view what) { return passphrase(what); }));
        return slot.get();
    }

    Result<crypto::SecretBytes> passphrase(std::string_view what) {
        if (m_settings.passphrase_fd >= 0) return read_passphrase(m_settings.passphrase_fd);
        if (!m_settings.may_prompt)
            return make_error(ErrorCode::KeyUnavailable, "the {} is needed: give it with --passphrase-fd", what);
        return ask_passphrase(what, m_settings.socket);
    }

    Settings m_settings;
    ProviderRegistry m_registry;
    std::map<Uuid, std::unique_ptr<KeyProvider>> m_open;
};

} // namespace

Result<void> serve(Settings const& settings) {
    Keeper keeper(settings);
    for (;;) {
        auto request = TRY(receive(settings.socket));
        if (!request) return {};
        TRY(send(settings.socket, keeper.answer(*request)));
    }
}

int keeper_main(int argc, char** argv) noexcept {
    auto run = [&]() -> Result<void> {
        auto settings = TRY(parse_arguments(argc, argv));
        TRY(forbid_dumps());
        TRY(crypto::init_secret_memory());
        TRY(enter_sandbox());
        return serve(settings);
    };
    if (auto served = run(); !served) {
        log::error("keeper: {}", served.error().message());
        return 1;
    }
    return 0;
}

} // namespace coffer::vmm::keeper
