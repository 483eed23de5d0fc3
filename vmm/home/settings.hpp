// What a root's owner has chosen for verbs that are not told otherwise: the text file `settings` below the root, a line
// `key = value` each. Lines that are empty or begin with '#' say nothing.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.hpp"
#include "vmm/home/home_location.hpp"

namespace coffer::vmm {

// What becomes of the TPM in a clone.
enum class TpmPolicy : uint8_t {
    Copy,    // its state is copied: the clone has the same keys, and opens what the source sealed
    Replace, // the clone gets a new one, with new seeds
};
std::string_view to_string(TpmPolicy policy) noexcept;
// Nothing where the text is neither "copy" nor "replace".
std::optional<TpmPolicy> parse_tpm_policy(std::string_view text) noexcept;

struct SettingSpec {
    std::string_view key;
    std::string_view default_value;
    std::span<std::string_view const> values; // that it can have
    std::string_view help;
};
std::span<SettingSpec const> all_settings() noexcept;

constexpr std::string_view k_clone_tpm_policy = "clone.tpm-policy";

class Settings {
public:
    // Without a file all have their defaults. InvalidArgument, naming file and line, where a line is no setting.
    static Result<Settings> load(HomeRoot const& root);
    static Result<Settings> parse(std::string_view text, std::string_view source);

    // InvalidArgument where there is no such setting.
    Result<std::string> get(std::string_view key) const;
    bool is_set(std::string_view key) const { return m_values.find(key) != m_values.end(); }
    // InvalidArgument where there is no such setting, or it cannot have this value.
    Result<void> set(std::string_view key, std::string_view value);
    // Back to the default.
    Result<void> unset(std::string_view key);
    // Replaces the file in one step.
    Result<void> save(HomeRoot const& root) const;

    TpmPolicy clone_tpm_policy() const;

private:
    std::map<std::string, std::string, std::less<>> m_values;
};

} // namespace coffer::vmm
