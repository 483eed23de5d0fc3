// A registry in a folder of its own.
#pragma once

#include <gtest/gtest.h>

#include "keyprovider/registry.hpp"
#include "tests/support/temp_folder.hpp"

namespace coffer::tests {

inline ByteVector to_vector(Bytes bytes) {
    return {bytes.begin(), bytes.end()};
}

inline Result<crypto::SecretBytes> nobody_asks(std::string_view) {
    ADD_FAILURE() << "a passphrase was asked for";
    return make_error(ErrorCode::Internal, "nobody is there");
}

class NativeTest : public testing::Test {
protected:
    ProviderInfo add(std::string_view name = "local") {
        auto info = m_registry.add_native(name, nullptr);
        EXPECT_TRUE(info) << info.error().message();
        return *info;
    }
    std::unique_ptr<KeyProvider> open(Uuid const& id, PassphraseSource source = nobody_asks) {
        auto provider = m_registry.open(id, std::move(source));
        EXPECT_TRUE(provider) << provider.error().message();
        return std::move(*provider);
    }
    std::filesystem::path kdk_file(ProviderInfo const& info) const {
        return m_folder.path() / "providers" / info.id.to_string() / "kdk.1";
    }

    TempFolder m_folder;
    ProviderRegistry m_registry{m_folder.path() / "providers"};
};

} // namespace coffer::tests
