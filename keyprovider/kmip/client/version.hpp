// The protocol versions that the client speaks, and what differs between them. A further version is one more line of
// k_versions, as long as these columns describe it.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace coffer::kmip {

struct ProtocolVersion {
    uint16_t major = 0;
    uint16_t minor = 0;

    constexpr auto operator<=>(ProtocolVersion const&) const = default;
    std::string to_string() const { return fmt::format("{}.{}", major, minor); }
};

struct VersionTraits {
    ProtocolVersion version;
    bool attributes_by_tag; // 2.0 replaced Template-Attribute and attribute names by Attributes and their tags
    bool gcm;               // Encrypt and Decrypt carry an authentication tag (1.4 section 4.29)
};

// From the most to the least wanted.
constexpr std::array k_versions = {
    VersionTraits{{2, 0}, true, true},   VersionTraits{{1, 4}, false, true},  VersionTraits{{1, 3}, false, false},
    VersionTraits{{1, 2}, false, false}, VersionTraits{{1, 1}, false, false},
};
// What a conversation begins with. DiscoverVersions came with 1.1, and servers are known that answer a request of a
// version they do not know with an error instead of their own versions.
constexpr VersionTraits k_first_version = k_versions.back();
static_assert(k_first_version.version == ProtocolVersion{1, 1});

constexpr VersionTraits const* find_version(ProtocolVersion version) noexcept {
    for (auto const& traits : k_versions)
        if (traits.version == version) return &traits;
    return nullptr;
}

// "1.4" and the like, of k_versions. InvalidArgument otherwise.
Result<ProtocolVersion> parse_version(std::string_view text);

} // namespace coffer::kmip
