#include "vmm/ca/endorsement_key_info.hpp"

#include "crypto/der.hpp"
#include "vmm/ca/tcg_oids.hpp"

namespace coffer::vmm {

namespace der = crypto::der;

ByteVector endorsement_key_info(devices::EkPublic const& key) {
    if (key.kind == devices::EkKind::Rsa2048) {
        auto const numbers = der::sequence({der::integer(Bytes(key.modulus)), der::integer(uint64_t{65537})});
        auto const algorithm = der::sequence({der::oid(oid::k_rsa), der::element(der::Null, Bytes())});
        return der::sequence({algorithm, der::bits(numbers)});
    }
    auto const curve = key.kind == devices::EkKind::EccP384 ? oid::k_curve_p384 : oid::k_curve_p256;
    ByteVector point{std::byte{4}}; // not compressed
    append(point, key.x);
    append(point, key.y);
    return der::sequence({der::sequence({der::oid(oid::k_ec_public_key), der::oid(curve)}), der::bits(point)});
}

} // namespace coffer::vmm
