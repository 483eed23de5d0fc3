#include "vmm/migrate/proof.hpp"

namespace coffer::vmm::migrate {

namespace {
constexpr std::string_view k_label = "coffer migration proof 1";
}

Result<crypto::Digest> make_proof(crypto::MacKey const& key, Side prover, ProofContext const& context) {
    auto hmac = TRY(crypto::HmacSha256::create(key));
    // All parts are of fixed sizes.
    return hmac.compute({as_bytes(k_label), object_bytes(prover), context.migration.bytes(), context.vm.bytes(),
                         context.nonce, context.exporter});
}

Result<void> check_proof(crypto::MacKey const& key, Side prover, ProofContext const& context,
                         crypto::Digest const& proof) {
    auto const expected = TRY(make_proof(key, prover, context));
    if (crypto::equal_in_constant_time(expected, proof)) return {};
    return make_error(ErrorCode::KeyUnavailable, "the other host does not prove that it has the key of this VM's home");
}

} // namespace coffer::vmm::migrate
