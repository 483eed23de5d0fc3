// Each end proves to the other that it can open the VM's home: HMAC-SHA-256 over the other's fresh nonce, the TLS
// exporter of this connection, and which VM and migration it is about, under a key derived from the home's bundle key.
// It tells nothing about the key, is of no use on another connection, and neither end's can be passed for the other's.
#pragma once

#include "vmm/migrate/message.hpp"

namespace coffer::vmm::migrate {

enum class Side : uint8_t { Source = 1, Destination = 2 };

struct ProofContext {
    Exporter exporter{};
    Uuid migration;
    Uuid vm;
    Nonce nonce{}; // of the side that checks
};

Result<crypto::Digest> make_proof(crypto::MacKey const& key, Side prover, ProofContext const& context);
// In constant time. KeyUnavailable where it is not the prover's.
Result<void> check_proof(crypto::MacKey const& key, Side prover, ProofContext const& context,
                         crypto::Digest const& proof);

} // namespace coffer::vmm::migrate
