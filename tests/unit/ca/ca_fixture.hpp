// An authority of a test's own.
#pragma once

#include <gtest/gtest.h>

#include "base/clock.hpp"
#include "vmm/ca/authority.hpp"

namespace coffer::vmm::tests {

template <class T>
T must(Result<T> result) {
    EXPECT_TRUE(result) << (result ? "" : result.error().message());
    return std::move(*result);
}

inline crypto::CertificateContent authority_content(std::string name, crypto::SigningKey const& key,
                                                    unsigned path_length) {
    crypto::CertificateContent content;
    content.common_name = std::move(name);
    content.public_key = must(key.public_key());
    content.not_before = wall_clock_seconds() - 60;
    content.extensions = crypto::authority_extensions(path_length);
    return content;
}

struct TestAuthority {
    crypto::SigningKey root_key = must(crypto::SigningKey::generate());
    crypto::SigningKey key = must(crypto::SigningKey::generate());
    crypto::Certificate root =
        must(crypto::issue_certificate(authority_content("root", root_key, 1), root_key, nullptr));
    crypto::Certificate certificate =
        must(crypto::issue_certificate(authority_content("signs", key, 0), root_key, &root));

    crypto::SigningKey key_copy() const { return must(crypto::SigningKey::parse_der(must(key.to_der()).expose())); }
    std::vector<crypto::Certificate> chain() const {
        std::vector<crypto::Certificate> all;
        all.push_back(certificate.clone());
        all.push_back(root.clone());
        return all;
    }
    Authority authority() const { return must(Authority::create(key_copy(), chain())); }
};

} // namespace coffer::vmm::tests
