#include "vmm/home/keeper_arguments.hpp"

namespace coffer::vmm::keeper {

namespace {
constexpr std::string_view k_nowhere = "no-passphrase";
constexpr std::string_view k_descriptor = "passphrase-fd";
constexpr std::string_view k_terminal = "passphrase-tty";
constexpr std::string_view k_manage = "manage";

std::string_view name_of(PassphraseFrom from) noexcept {
    switch (from) {
    case PassphraseFrom::Nowhere: return k_nowhere;
    case PassphraseFrom::Descriptor: return k_descriptor;
    case PassphraseFrom::Terminal: return k_terminal;
    }
    return k_nowhere;
}
} // namespace

std::vector<std::string> make_arguments(std::filesystem::path const& providers, PassphraseFrom from) {
    return {"coffer", std::string(k_verb), providers.native(), std::string(name_of(from))};
}

std::vector<std::string> make_arguments(std::filesystem::path const& providers, PassphraseFrom from,
                                        PassphraseFrom password, std::string const& host_tpm) {
    auto arguments = make_arguments(providers, from);
    arguments.emplace_back(k_manage);
    arguments.emplace_back(name_of(password));
    arguments.push_back(host_tpm);
    return arguments;
}

Result<Settings> parse_arguments(int argc, char** argv) {
    bool const manage = argc == 7 && argv[4] == k_manage;
    if (argc != 4 && !manage)
        return make_error(ErrorCode::InvalidArgument, "'coffer {}' is started by coffer itself", k_verb);
    Settings settings;
    settings.providers = argv[2];
    settings.socket = k_socket;
    std::string_view const from = argv[3];
    if (from == k_descriptor) settings.passphrase_fd = k_passphrase;
    settings.may_prompt = from == k_terminal;
    settings.manage = manage;
    if (manage && argv[5] == k_descriptor) settings.password_fd = k_password;
    if (manage) settings.host_tpm = argv[6];
    return settings;
}

} // namespace coffer::vmm::keeper
