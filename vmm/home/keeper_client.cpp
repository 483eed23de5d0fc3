#include "vmm/home/keeper_client.hpp"

#include <array>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/tagged.hpp"
#include "crypto/mac.hpp"
#include "vmm/home/home_open.hpp"
#include "vmm/home/keeper_arguments.hpp"
#include "vmm/home/keeper_protocol.hpp"

namespace coffer::vmm {

namespace {

// The new process's descriptors, from the first behind the standard ones on; -1: none there.
using KeeperDescriptors = std::array<int, 3>; // socket, passphrase, password

// Between fork and exec: only async-signal-safe calls. All but the given and the standard descriptors are closed.
[[noreturn]] void become_keeper(KeeperDescriptors const& given, char const* program, char* const* arguments) noexcept {
    static_assert(keeper::k_socket == STDERR_FILENO + 1 && keeper::k_passphrase == keeper::k_socket + 1 &&
                  keeper::k_password == keeper::k_passphrase + 1);
    // Copies above the fixed numbers first, so that no dup2 closes what is still wanted.
    KeeperDescriptors high{};
    for (size_t i = 0; i < given.size(); ++i) high[i] = given[i] >= 0 ? ::fcntl(given[i], F_DUPFD, 16) : -1;
    bool ready = true;
    for (size_t i = 0; i < given.size(); ++i) {
        int const fixed = keeper::k_socket + static_cast<int>(i);
        if (given[i] < 0)
            ::close(fixed);
        else
            ready = ready && high[i] >= 0 && ::dup2(high[i], fixed) >= 0;
    }
    ready = ready && ::close_range(keeper::k_password + 1, ~0U, 0) == 0;
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    if (ready) ::execv(program, arguments);
    ::_exit(127);
}

// Puts /dev/null in the descriptor's place: what it gives is the keeper's alone, and the process that goes on to face
// the guest must not be able to read it again.
Result<void> give_up_descriptor(int fd) {
    auto nothing = TRY(open_file("/dev/null", O_RDWR));
    if (::dup3(nothing.get(), fd, O_CLOEXEC) < 0)
        return errno_error(errno, "cannot give up the passphrase's descriptor");
    return {};
}

Result<void> check_open(int fd, std::string_view option) {
    if (fd < 0 || ::fcntl(fd, F_GETFD) >= 0) return {};
    return make_error(ErrorCode::InvalidArgument, "descriptor {} ({}) is not open", fd, option);
}

// Sends a request and waits for its answer of the wanted type.
Result<keeper::Message> exchange(int socket, keeper::Message const& request, keeper::MessageType wanted) {
    TRY(keeper::send(socket, request));
    auto answer = TRY(keeper::receive(socket));
    if (!answer)
        return make_error(ErrorCode::Io, "the keeper process ended before it answered; its last line says why");
    if (answer->number != request.number)
        return make_error(ErrorCode::Corrupt, "the keeper process answered another question");
    if (answer->type == keeper::MessageType::Failed) return keeper::decode_failure(answer->fields);
    if (answer->type != wanted) return make_error(ErrorCode::Corrupt, "the keeper process gave no proper answer");
    return std::move(*answer);
}

} // namespace

Result<KeeperProcess> KeeperProcess::start(HomeRoot const& root, KeeperOptions const& options) {
    auto source = [&](int fd) {
        return fd >= 0              ? keeper::PassphraseFrom::Descriptor
               : options.may_prompt ? keeper::PassphraseFrom::Terminal
                                    : keeper::PassphraseFrom::Nowhere;
    };
    TRY(check_open(options.passphrase_fd, "--passphrase-fd"));
    TRY(check_open(options.password_fd, "--password-fd"));
    if (options.password_fd >= 0 && options.password_fd == options.passphrase_fd)
        return make_error(ErrorCode::InvalidArgument, "--passphrase-fd and --password-fd are the same descriptor");
    std::array<int, 2> pair{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) != 0)
        return errno_error(errno, "cannot make the keeper's socket");
    UniqueFd ours(pair[0]);
    UniqueFd theirs(pair[1]);
    auto const from = source(options.passphrase_fd);
    auto texts = options.manage
                     ? keeper::make_arguments(root.providers(), from, source(options.password_fd), options.host_tpm)
                     : keeper::make_arguments(root.providers(), from);
    std::vector<char*> arguments;
    for (auto& text : texts) arguments.push_back(text.data());
    arguments.push_back(nullptr);
    pid_t const pid = ::fork();
    if (pid < 0) return errno_error(errno, "cannot start the keeper process");
    if (pid == 0)
        become_keeper({theirs.get(), options.passphrase_fd, options.password_fd}, options.program.c_str(),
                      arguments.data());
    KeeperProcess keeper(std::move(ours), pid, ProviderRegistry(root.providers()));
    for (int fd : {options.passphrase_fd, options.password_fd})
        if (fd >= 0) TRY(give_up_descriptor(fd));
    return keeper;
}

KeeperProcess::~KeeperProcess() {
    m_socket.reset();
    if (m_pid <= 0) return;
    while (::waitpid(m_pid, nullptr, 0) < 0 && errno == EINTR) {
    }
}

Result<crypto::BundleKey> KeeperProcess::unwrap(BundleHeader const& header) {
    keeper::Message request{keeper::MessageType::Unwrap, m_next_number++, std::nullopt,
                            encode_fields(keeper::UnwrapRequest{header.provider, header.key_id, header.wrapped_key})};
    auto answer = TRY(exchange(m_socket.get(), request, keeper::MessageType::Unwrapped));
    return std::move(*answer.key);
}

Result<HomeSeal> KeeperProcess::make_seal(Uuid const& provider, std::string const& label) {
    auto const info = TRY(m_registry.find(provider));
    UniqueFd lock;
    if (info.kind == ProviderKind::Native) lock = TRY(m_registry.lock(provider, ProviderUse::Shared));
    keeper::Message request{keeper::MessageType::Wrap, m_next_number++, TRY(crypto::BundleKey::random()),
                            encode_fields(keeper::WrapRequest{provider, label})};
    auto answer = TRY(exchange(m_socket.get(), request, keeper::MessageType::Wrapped));
    keeper::WrapAnswer wrapped;
    TRY(decode_fields(answer.fields, wrapped));
    auto key_id = TRY(KeyId::parse(wrapped.key_id));
    if (wrapped.wrapped.empty() || wrapped.wrapped.size() > WrappedKey::k_max_size)
        return make_error(ErrorCode::Corrupt, "the keeper process gave a wrapped key of {} bytes",
                          wrapped.wrapped.size());
    return HomeSeal{
        provider, std::move(key_id), {std::move(wrapped.wrapped)}, std::move(*request.key), std::move(lock)};
}

Result<HomeSeal> KeeperProcess::make_proven_seal(Uuid const& provider, std::string const& label) {
    auto seal = TRY(make_seal(provider, label));
    BundleHeader header;
    header.provider = seal.provider;
    header.key_id = seal.key_id.text();
    header.wrapped_key = seal.wrapped.bytes;
    auto const unwrapped = TRY_CONTEXT(unwrap(header), "the provider does not open what it has just wrapped");
    if (!crypto::equal_in_constant_time(unwrapped.expose(), seal.key.expose()))
        return make_error(ErrorCode::Corrupt, "the provider gives back another key than the one it has just wrapped");
    return seal;
}

Result<std::vector<ProviderTestStep>> KeeperProcess::test(Uuid const& provider) {
    keeper::Message request{keeper::MessageType::Test, m_next_number++, std::nullopt,
                            encode_fields(keeper::TestRequest{provider})};
    auto answer = TRY(exchange(m_socket.get(), request, keeper::MessageType::Tested));
    keeper::TestAnswer tested;
    TRY(decode_fields(answer.fields, tested));
    if (tested.steps.empty() || tested.steps.size() > keeper::k_max_steps)
        return make_error(ErrorCode::Corrupt, "the keeper process gave {} steps of a test", tested.steps.size());
    return std::move(tested.steps);
}

Result<Restored> KeeperProcess::change(keeper::MessageType type, ByteVector fields) {
    keeper::Message request{type, m_next_number++, std::nullopt, std::move(fields)};
    auto answer = TRY(exchange(m_socket.get(), request, keeper::MessageType::Changed));
    keeper::ChangeAnswer changed;
    TRY(decode_fields(answer.fields, changed));
    return Restored{std::move(changed.provider), changed.merged, std::move(changed.versions)};
}

Result<ProviderInfo> KeeperProcess::add_native(std::string const& name, NativeOptions const& options) {
    keeper::AddRequest request{name, options.passphrase, options.require_backup, options.host_tpm};
    return TRY(change(keeper::MessageType::Add, encode_fields(std::move(request)))).info;
}

Result<ProviderInfo> KeeperProcess::rotate(Uuid const& provider) {
    return TRY(change(keeper::MessageType::Rotate, encode_fields(keeper::RotateRequest{provider}))).info;
}

Result<ProviderInfo> KeeperProcess::backup(Uuid const& provider, std::filesystem::path const& file, bool overwrite) {
    keeper::BackupRequest request{provider, file.native(), overwrite};
    return TRY(change(keeper::MessageType::Backup, encode_fields(std::move(request)))).info;
}

Result<Restored> KeeperProcess::restore(std::filesystem::path const& file, RestoreOptions const& options) {
    keeper::RestoreRequest request{file.native(), options.name, options.passphrase, options.require_backup,
                                   options.host_tpm};
    return change(keeper::MessageType::Restore, encode_fields(std::move(request)));
}

Result<std::unique_ptr<HomeSession>> unlock_home(HomeLocation const& location, KeeperOptions const& options,
                                                 HomeAccess access, RollbackPolicy rollback) {
    auto unwrap = [&](BundleHeader const& header) -> Result<crypto::BundleKey> {
        auto keeper = TRY(KeeperProcess::start(location.root, options));
        return TRY_CONTEXT(keeper.unwrap(header),
                           fmt::format("cannot open {}", (location.folder() / home_spec::k_keys_file).native()));
    };
    return open_home(location, access, unwrap, rollback);
}

} // namespace coffer::vmm
