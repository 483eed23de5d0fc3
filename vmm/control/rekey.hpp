// Rekey: a new bundle key under a new KEK, or under another provider, for the home of the running VM. The client has
// had the key wrapped by a keeper; this process gets no key of a provider.
#pragma once

#include "vmm/control/request.hpp"
#include "vmm/home/home_seal.hpp"

namespace coffer::vmm::control {

struct RekeyRequest {
    static constexpr RequestType k_type = RequestType::Rekey;
    static constexpr RequestTraits k_traits{.exclusive = true, .key = true};
    using Answer = NoAnswer;

    Uuid provider;
    std::string key_id;
    ByteVector wrapped;

    template <class V>
    void fields(V& v) {
        v.required(1, provider);
        v.required(2, key_id);
        v.required(3, wrapped);
    }

    // The key itself goes as CallOptions::key.
    static RekeyRequest of(HomeSeal const& seal) { return {seal.provider, seal.key_id.text(), seal.wrapped.bytes}; }
};

// At the VM's process: what came, checked.
inline Result<HomeSeal> seal_of(RekeyRequest const& request, crypto::BundleKey key) {
    auto key_id = TRY(KeyId::parse(request.key_id));
    if (request.wrapped.empty() || request.wrapped.size() > WrappedKey::k_max_size)
        return make_error(ErrorCode::Corrupt, "a wrapped key of {} bytes is none", request.wrapped.size());
    return HomeSeal{request.provider, std::move(key_id), {request.wrapped}, std::move(key)};
}

} // namespace coffer::vmm::control
