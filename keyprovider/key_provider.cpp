#include "keyprovider/key_provider.hpp"

#include <algorithm>

namespace coffer {

Result<KeyId> KeyId::parse(std::string_view text) {
    bool printable = std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
    if (text.empty() || text.size() > k_max_size || !printable)
        return make_error(ErrorCode::InvalidArgument, "a key id is 1 to {} printable characters without spaces",
                          k_max_size);
    return KeyId(std::string(text));
}

} // namespace coffer
