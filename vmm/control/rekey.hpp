// Rekey: a new bundle key under a new KEK, or under another provider, for the home of the running VM. The client has
// had the key wrapped by a keeper; this process gets no key of a provider.
#pragma once

#include "vmm/control/request.hpp"
#include "vmm/home/home_seal.hpp"
#include "vmm/home/key_bundle.hpp"

namespace coffer::vmm::control {

struct RekeyRequest {
    static constexpr RequestType k_type = RequestType::Rekey;
    static constexpr RequestTraits k_traits{.exclusive = true, .key = true};
    using Answer = NoAnswer;

    Uuid provider;
    std::string key_id;
    ByteVector wrapped;
    // What the client took the home to be under, from the part of `keys` that is in the clear: where the home is under
    // another key, somebody rekeyed it meanwhile, or changed that part.
    Uuid old_provider = {};
    std::string old_key_id = {};

    template <class V>
    void fields(V& v) {
        v.required(1, provider);
        v.required(2, key_id);
        v.required(3, wrapped);
        v.required(4, old_provider);
        v.required(5, old_key_id);
    }

    // The key itself goes as CallOptions::key.
    static RekeyRequest of(HomeSeal const& seal, Uuid const& old_provider, std::string old_key_id) {
        return {seal.provider, seal.key_id.text(), seal.wrapped.bytes, old_provider, std::move(old_key_id)};
    }
};

// At the VM's process: whether the home is under what the client takes it to be under.
inline Result<void> check_current(RekeyRequest const& request, std::optional<BundleHeader> const& header) {
    if (header && (header->provider != request.old_provider || header->key_id != request.old_key_id))
        return make_error(ErrorCode::Busy,
                          "the home is under key {} of provider {} and not the one that was asked for: "
                          "it was rekeyed meanwhile, or its keys file was changed. Try again",
                          header->key_id, header->provider.to_string());
    return {};
}

// The same: the seal that came, checked.
inline Result<HomeSeal> seal_of(RekeyRequest const& request, crypto::BundleKey key) {
    auto key_id = TRY(KeyId::parse(request.key_id));
    if (request.wrapped.empty() || request.wrapped.size() > WrappedKey::k_max_size)
        return make_error(ErrorCode::Corrupt, "a wrapped key of {} bytes is none", request.wrapped.size());
    return HomeSeal{request.provider, std::move(key_id), {request.wrapped}, std::move(key)};
}

} // namespace coffer::vmm::control
