#include "vmm/home/settings.hpp"

#include <algorithm>
#include <array>

#include "base/file.hpp"

namespace coffer::vmm {

namespace {

constexpr size_t k_max_file = 65536;

constexpr std::array<std::string_view, 2> k_policies = {"copy", "replace"};
// The default is what vSphere has: a clone is a copy unless one asks for another.
constexpr std::array k_settings = {
    SettingSpec{k_clone_tpm_policy, "copy", k_policies,
                "what 'clone', 'create --from' and 'restore' do with the TPM where --tpm "
                "does not say"}};

Result<SettingSpec const*> find(std::string_view key) {
    for (auto const& spec : k_settings)
        if (spec.key == key) return &spec;
    std::string known;
    for (auto const& spec : k_settings) known += fmt::format("{}{}", known.empty() ? "" : ", ", spec.key);
    return make_error(ErrorCode::InvalidArgument, "there is no setting '{}'; there are: {}", key, known);
}

std::string_view trim(std::string_view text) noexcept {
    constexpr std::string_view k_blanks = " \t\r";
    auto const begin = text.find_first_not_of(k_blanks);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(k_blanks) - begin + 1);
}

std::filesystem::path path_of(HomeRoot const& root) {
    return root.root / "settings";
}

} // namespace

std::string_view to_string(TpmPolicy policy) noexcept {
    return k_policies[static_cast<size_t>(policy)];
}

std::optional<TpmPolicy> parse_tpm_policy(std::string_view text) noexcept {
    for (auto policy : {TpmPolicy::Copy, TpmPolicy::Replace})
        if (text == to_string(policy)) return policy;
    return std::nullopt;
}

std::span<SettingSpec const> all_settings() noexcept {
    return k_settings;
}

Result<Settings> Settings::load(HomeRoot const& root) {
    auto const path = path_of(root);
    auto file = read_file(path, k_max_file);
    if (!file && file.error().code() == ErrorCode::NotFound) return Settings();
    if (!file) return std::move(file).error();
    std::string text;
    for (std::byte b : *file) text.push_back(static_cast<char>(b));
    return parse(text, path.native());
}

Result<Settings> Settings::parse(std::string_view text, std::string_view source) {
    Settings settings;
    for (unsigned number = 1; !text.empty(); ++number) {
        auto const end = text.find('\n');
        auto const line = trim(text.substr(0, end));
        text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
        if (line.empty() || line.front() == '#') continue;
        auto const equals = line.find('=');
        auto const key = trim(line.substr(0, equals));
        auto taken = equals == std::string_view::npos
                         ? Result<void>(make_error(ErrorCode::InvalidArgument, "'{}' is no 'key = value'", line))
                     : settings.is_set(key)
                         ? Result<void>(make_error(ErrorCode::InvalidArgument, "'{}' stands there twice", key))
                         : settings.set(key, trim(line.substr(equals + 1)));
        if (!taken) return std::move(taken).error().with_context(fmt::format("{}, line {}", source, number));
    }
    return settings;
}

Result<std::string> Settings::get(std::string_view key) const {
    auto const* spec = TRY(find(key));
    auto const set = m_values.find(key);
    return set == m_values.end() ? std::string(spec->default_value) : set->second;
}

Result<void> Settings::set(std::string_view key, std::string_view value) {
    auto const* spec = TRY(find(key));
    if (std::find(spec->values.begin(), spec->values.end(), value) == spec->values.end()) {
        std::string possible;
        for (auto one : spec->values) possible += fmt::format("{}{}", possible.empty() ? "" : ", ", one);
        return make_error(ErrorCode::InvalidArgument, "{} cannot be '{}': give one of {}", key, value, possible);
    }
    m_values.insert_or_assign(std::string(key), std::string(value));
    return {};
}

Result<void> Settings::unset(std::string_view key) {
    TRY(find(key));
    if (auto it = m_values.find(key); it != m_values.end()) m_values.erase(it);
    return {};
}

Result<void> Settings::save(HomeRoot const& root) const {
    std::string text;
    for (auto const& [key, value] : m_values) text += fmt::format("{} = {}\n", key, value);
    TRY(make_folders(root.root));
    return replace_file(path_of(root), as_bytes(text));
}

TpmPolicy Settings::clone_tpm_policy() const {
    auto value = get(k_clone_tpm_policy);
    COFFER_ASSERT(value); // set() takes no other
    return *parse_tpm_policy(*value);
}

} // namespace coffer::vmm
