#include "vmm/home/keeper_server.hpp"

#include <algorithm>
#include <map>
#include <string_view>

#include "base/log.hpp"
#include "base/tagged.hpp"
#include "keyprovider/registry.hpp"
#include "vmm/home/keeper_arguments.hpp"
#include "vmm/home/keeper_protocol.hpp"
#include "vmm/home/keeper_resolver.hpp"
#include "vmm/home/keeper_sandbox.hpp"
#include "vmm/home/passphrase.hpp"
#include "vmm/home/process_hygiene.hpp"

namespace coffer::vmm::keeper {

namespace {

class Keeper {
public:
    explicit Keeper(Settings const& settings, kmip::Resolver resolver)
        : m_settings(settings), m_registry(settings.providers), m_resolver(std::move(resolver)) {}

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
        if (request.type == MessageType::Test) return test(request);
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

    Result<Message> test(Message const& request) {
        TestRequest wanted;
        TRY(decode_fields(request.fields, wanted));
        auto* opened = TRY(provider(wanted.provider));
        TestAnswer answer{opened->test()};
        for (auto& step : answer.steps) step.text.resize(std::min(step.text.size(), k_max_step_text));
        return Message{MessageType::Tested, 0, std::nullopt, encode_fields(std::move(answer))};
    }

    // Providers stay open, so that several homes of one provider ask for its passphrase once.
    Result<KeyProvider*> provider(Uuid const& id) {
        auto& slot = m_open[id];
        if (!slot)
            slot = TRY(m_registry.open(
                id, [this](std::string_view what) { return passphrase(what); }, m_resolver));
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
    kmip::Resolver m_resolver;
    std::map<Uuid, std::unique_ptr<KeyProvider>> m_open;
};

// A registry that cannot be read is reported by the request that needs it.
bool has_key_servers(Settings const& settings) {
    auto providers = ProviderRegistry(settings.providers).list();
    return providers && std::any_of(providers->begin(), providers->end(),
                                    [](auto const& info) { return info.kind == ProviderKind::Kmip; });
}

} // namespace

Result<void> serve(Settings const& settings, kmip::Resolver resolver) {
    Keeper keeper(settings, std::move(resolver));
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
        if (!has_key_servers(settings)) {
            TRY(crypto::init_secret_memory());
            TRY(enter_sandbox(Network::None));
            return serve(settings, kmip::resolve_here);
        }
        auto resolver = TRY(ResolverProcess::start());
        TRY(crypto::init_secret_memory());
        TRY(enter_sandbox(Network::TcpClient));
        return serve(settings, [&resolver](std::string const& host) { return resolver.resolve(host); });
    };
    if (auto served = run(); !served) {
        log::error("keeper: {}", served.error().message());
        return 1;
    }
    return 0;
}

} // namespace coffer::vmm::keeper
