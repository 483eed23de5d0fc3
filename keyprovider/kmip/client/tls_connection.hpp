// TLS 1.2 and 1.3 with a client certificate. The server's certificate must chain to the given authority, be valid now
// and carry the endpoint's host name (or address); where a pin is set it must also be that very certificate. There is
// no way to connect without these checks.
#pragma once

#include "crypto/tls.hpp"
#include "keyprovider/kmip/client/connection.hpp"

namespace coffer::kmip {

using crypto::TlsIdentity;

// InvalidArgument where a certificate or the key cannot be read, or they do not belong together.
Result<void> check_identity(TlsIdentity const& identity);

// The connector keeps what it needs of the identity. Errors as check_identity(); those of a connection attempt are
// KeyUnavailable or Timeout, with the endpoint named.
Result<Connector> make_tls_connector(TlsIdentity const& identity, Resolver resolver);

} // namespace coffer::kmip
