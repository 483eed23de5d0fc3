#include "vmm/ca/tpm_certificates.hpp"

#include "base/clock.hpp"
#include "devices/tpm/libtpms_backend.hpp"
#include "devices/tpm/memory_nv_store.hpp"
#include "devices/tpm/tpm_manufacture.hpp"
#include "vmm/ca/endorsement_key_info.hpp"

namespace coffer::vmm {

namespace {

Result<devices::EkObject> make_key(devices::TpmClient& client, devices::EkProfile const& profile) {
    auto key = TRY(devices::create_endorsement_key(client, profile.kind));
    if (!key)
        return make_error(ErrorCode::Unsupported,
                          "the TPM refuses to show its endorsement key {}: the endorsement hierarchy has a password, "
                          "which the guest's owner has to take off first",
                          profile.name);
    return std::move(*key);
}

} // namespace

Result<void> certify_tpm(devices::TpmClient& client, Uuid const& vm, Authority const& authority) {
    auto const identity = TRY(TpmIdentity::of(client));
    auto const now = wall_clock_seconds();
    // All are issued before the first is written.
    std::vector<ByteVector> endorsement;
    ByteVector platform;
    for (auto const& profile : devices::k_ek_profiles) {
        auto const key = TRY(make_key(client, profile));
        TRY(devices::flush_object(client, key.handle));
        auto const certificate = TRY(authority.issue_endorsement(key.public_area, identity, now));
        // A platform certificate names one endorsement certificate; the first is the one that all software knows.
        if (platform.empty()) platform = TRY(authority.issue_platform(certificate, vm, now));
        endorsement.push_back(TRY(certificate.to_der()));
    }
    ByteVector chain;
    for (auto const& certificate : authority.chain()) append(chain, TRY(certificate.to_der()));
    for (size_t i = 0; i < endorsement.size(); ++i)
        TRY(devices::write_platform_nv(client, devices::k_ek_profiles[i].certificate_index, endorsement[i]));
    TRY(devices::write_platform_nv(client, devices::k_platform_certificate_index, platform));
    // The chain is a convenience for verifiers, and one of RSA certificates may be too long.
    if (chain.size() <= devices::k_max_platform_nv) return write_platform_nv(client, devices::k_ek_chain_index, chain);
    return remove_platform_nv(client, devices::k_ek_chain_index);
}

Result<ByteVector> make_tpm(devices::PcrBankMask banks, Uuid const& vm, Authority const& authority) {
    auto state = TRY(devices::manufacture_tpm(banks));
    devices::MemoryNvStore store;
    auto tpm = TRY(devices::LibtpmsBackend::create(std::move(state), devices::TpmManufacture::No, store));
    devices::TpmClient client(*tpm);
    TRY(client.startup());
    for (auto const& profile : devices::k_ek_profiles) {
        auto const key = TRY(make_key(client, profile));
        TRY(devices::persist_object(client, key.handle, profile.persistent_handle));
        TRY(devices::flush_object(client, key.handle));
    }
    TRY(certify_tpm(client, vm, authority));
    TRY(client.shutdown());
    TRY(tpm->make_durable());
    return store.take();
}

Result<NewTpm> make_tpm(HomeRoot const& root, KeeperProcess& keeper, Uuid const& provider, devices::PcrBankMask banks,
                        Uuid const& vm) {
    auto const opened = TRY(AuthorityStore(root).open_or_make(keeper, provider));
    auto state = make_tpm(banks, vm, opened.authority);
    if (!state) return std::move(state).error().with_context("cannot make a TPM");
    return NewTpm{std::move(*state), opened.made};
}

Result<TpmCertificates> read_tpm_certificates(devices::TpmClient& client) {
    TpmCertificates found;
    auto read = [&](uint32_t index, ByteVector& to) -> Result<void> {
        if (auto content = TRY(devices::read_platform_nv(client, index))) to = std::move(*content);
        return {};
    };
    for (size_t i = 0; i < found.endorsement.size(); ++i)
        TRY(read(devices::k_ek_profiles[i].certificate_index, found.endorsement[i]));
    TRY(read(devices::k_platform_certificate_index, found.platform));
    TRY(read(devices::k_ek_chain_index, found.chain));
    return found;
}

Result<std::vector<crypto::Certificate>> parse_chain(Bytes der) {
    std::vector<crypto::Certificate> chain;
    while (!der.empty()) {
        // SEQUENCE with a length of two octets, as all certificates but toys have.
        if (der.size() < 4 || der[0] != std::byte{0x30} || der[1] != std::byte{0x82})
            return make_error(ErrorCode::Corrupt, "the chain of certificates is malformed");
        auto const size = size_t{4} + load_be<uint16_t>(der, 2);
        if (size > der.size()) return make_error(ErrorCode::Corrupt, "the chain of certificates is cut short");
        chain.push_back(TRY(crypto::Certificate::parse_der(der.first(size))));
        der = der.subspan(size);
    }
    return chain;
}

Result<bool> is_about(crypto::Certificate const& certificate, devices::EkPublic const& key) {
    return TRY(certificate.public_key()) == endorsement_key_info(key);
}

} // namespace coffer::vmm
