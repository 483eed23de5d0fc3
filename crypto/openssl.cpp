#include "crypto/openssl.hpp"

#include <openssl/err.h>

namespace coffer::crypto {

Error openssl_error(std::string_view what) {
    unsigned long code = ::ERR_peek_last_error();
    char const* reason = code != 0 ? ::ERR_reason_error_string(code) : nullptr;
    ::ERR_clear_error();
    return make_error(ErrorCode::Internal, "{}: {}", what, reason ? reason : "OpenSSL gives no reason");
}

} // namespace coffer::crypto
