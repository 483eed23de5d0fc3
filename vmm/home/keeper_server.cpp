#include "vmm/home/keeper_server.hpp"

#include <algorithm>
#include <malloc.h>
#include <map>
#include <optional>
#include <string_view>

#include "base/log.hpp"
#include "base/tagged.hpp"
#include "crypto/mac.hpp"
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
    Keeper(Settings const& settings, kmip::Resolver resolver, HostTpms tpms)
        : m_settings(settings), m_registry(settings.providers, std::move(tpms)), m_resolver(std::move(resolver)) {}

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
        if (m_settings.manage) {
            if (request.type == MessageType::Add) return add(request);
            if (request.type == MessageType::Rotate) return rotate(request);
            if (request.type == MessageType::Backup) return backup(request);
            if (request.type == MessageType::Restore) return restore(request);
        }
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

    static Message changed(ProviderInfo info) {
        return {MessageType::Changed, 0, std::nullopt, encode_fields(ChangeAnswer{std::move(info), false, {}})};
    }

    Result<Message> add(Message const& request) {
        AddRequest wanted;
        TRY(decode_fields(request.fields, wanted));
        NativeOptions const options{wanted.passphrase, wanted.require_backup, wanted.host_tpm};
        return changed(TRY(m_registry.add_native(wanted.name, options, new_passphrase())));
    }

    Result<Message> rotate(Message const& request) {
        RotateRequest wanted;
        TRY(decode_fields(request.fields, wanted));
        return changed(TRY(m_registry.rotate(wanted.provider, known_passphrase())));
    }

    Result<Message> backup(Message const& request) {
        BackupRequest wanted;
        TRY(decode_fields(request.fields, wanted));
        auto secret = TRY(password(true));
        return changed(
            TRY(m_registry.backup(wanted.provider, wanted.path, wanted.overwrite, secret, known_passphrase())));
    }

    Result<Message> restore(Message const& request) {
        RestoreRequest wanted;
        TRY(decode_fields(request.fields, wanted));
        RestoreOptions options;
        options.name = wanted.name;
        options.passphrase = wanted.passphrase;
        options.require_backup = wanted.require_backup;
        options.host_tpm = wanted.host_tpm;
        auto secret = TRY(password(false));
        auto done = TRY(m_registry.restore(wanted.path, options, secret, {new_passphrase(), known_passphrase()}));
        return Message{MessageType::Changed, 0, std::nullopt,
                       encode_fields(ChangeAnswer{std::move(done.info), done.merged, std::move(done.versions)})};
    }

    PassphraseSource known_passphrase() {
        return [this](std::string_view what) { return passphrase(what); };
    }
    PassphraseSource new_passphrase() {
        return [this](std::string_view) -> Result<crypto::SecretBytes> {
            if (m_settings.passphrase_fd >= 0) return read_passphrase(m_settings.passphrase_fd);
            return ask_twice("New passphrase", "The same passphrase again");
        };
    }
    // Of a backup.
    Result<crypto::SecretBytes> password(bool fresh) {
        if (m_settings.password_fd >= 0) return read_passphrase(m_settings.password_fd);
        auto asked = fresh ? ask_twice("New password of the backup", "The same password again")
                           : ask_passphrase("Password of the backup", m_settings.socket);
        if (!asked && asked.error().code() == ErrorCode::KeyUnavailable)
            return make_error(ErrorCode::KeyUnavailable,
                              "the backup's password is needed, and there is no terminal to ask on: give it with "
                              "--password-fd");
        return asked;
    }
    Result<crypto::SecretBytes> ask_twice(std::string_view what, std::string_view again) {
        auto first = TRY(ask_passphrase(what, m_settings.socket));
        auto second = TRY(ask_passphrase(again, m_settings.socket));
        if (!crypto::equal_in_constant_time(first.expose(), second.expose()))
            return make_error(ErrorCode::InvalidArgument, "what was typed twice differs: nothing was done");
        return first;
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

// The TPMs that providers are bound to, connected to while the sandbox does not yet forbid it. One that is not there is
// an error of whoever needs it.
class ConnectedTpms {
public:
    explicit ConnectedTpms(Settings const& settings) {
        if (!settings.host_tpm.empty()) connect(settings.host_tpm);
        auto providers = ProviderRegistry(settings.providers).list();
        if (!providers) return;
        for (auto const& info : *providers)
            if (!info.host_tpm.empty()) connect(info.host_tpm);
    }
    bool any_simulator() const {
        return std::any_of(m_tpms.begin(), m_tpms.end(), [](auto const& tpm) { return is_simulator(tpm.first); });
    }
    Result<HostTpm*> find(std::string const& tcti) const {
        auto found = m_tpms.find(tcti);
        if (found == m_tpms.end())
            return make_error(ErrorCode::KeyUnavailable, "the keeper has no connection to the TPM {}", tcti);
        if (!found->second) return Error(found->second.error());
        return found->second->get();
    }

private:
    void connect(std::string const& tcti) {
        if (!m_tpms.contains(tcti)) m_tpms.emplace(tcti, open_host_tpm(tcti));
    }

    std::map<std::string, Result<std::unique_ptr<HostTpm>>> m_tpms;
};

} // namespace

Result<void> serve(Settings const& settings, kmip::Resolver resolver, HostTpms tpms) {
    Keeper keeper(settings, std::move(resolver), std::move(tpms));
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
        auto const files = settings.manage ? Files::Change : Files::Read;
        // What freed memory held does not stay readable: OpenSSL's and the TPM library's buffers may have held keys.
        ::mallopt(M_PERTURB, 0xA5);
        // A managing keeper opens no provider, and so needs no server.
        bool const servers = !settings.manage && has_key_servers(settings);
        std::optional<ResolverProcess> resolver;
        if (servers) resolver = TRY(ResolverProcess::start());
        TRY(crypto::init_secret_memory());
        ConnectedTpms const tpms(settings);
        TRY(enter_sandbox(servers || tpms.any_simulator() ? Network::TcpClient : Network::None, files));
        auto resolve = [&resolver](std::string const& host) { return resolver->resolve(host); };
        return serve(settings, servers ? kmip::Resolver(resolve) : kmip::Resolver(kmip::resolve_here),
                     [&tpms](std::string const& tcti) { return tpms.find(tcti); });
    };
    if (auto served = run(); !served) {
        log::error("keeper: {}", served.error().message());
        return 1;
    }
    return 0;
}

} // namespace coffer::vmm::keeper
