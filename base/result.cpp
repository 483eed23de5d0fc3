#include "base/result.hpp"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace coffer {

std::string_view to_string(ErrorCode code) noexcept {
    switch (code) {
    case ErrorCode::Internal: return "internal error";
    case ErrorCode::InvalidArgument: return "invalid argument";
    case ErrorCode::NotFound: return "not found";
    case ErrorCode::AlreadyExists: return "already exists";
    case ErrorCode::Permission: return "permission denied";
    case ErrorCode::Busy: return "busy";
    case ErrorCode::Io: return "input/output error";
    case ErrorCode::NoSpace: return "no space";
    case ErrorCode::Corrupt: return "malformed input";
    case ErrorCode::Integrity: return "integrity check failed";
    case ErrorCode::KeyUnavailable: return "key unavailable";
    case ErrorCode::Unsupported: return "unsupported";
    case ErrorCode::Timeout: return "timed out";
    case ErrorCode::Cancelled: return "cancelled";
    }
    return "unknown error";
}

Error errno_error(int errno_value, std::string_view what) {
    ErrorCode code = ErrorCode::Io;
    switch (errno_value) {
    case EACCES:
    case EPERM:
    case EROFS: code = ErrorCode::Permission; break;
    case ENOENT: code = ErrorCode::NotFound; break;
    case EEXIST: code = ErrorCode::AlreadyExists; break;
    case ENOSPC:
    case EDQUOT: code = ErrorCode::NoSpace; break;
    default: break;
    }
    char buffer[128] = {};
    return Error(code, fmt::format("{}: {}", what, strerror_r(errno_value, buffer, sizeof buffer)));
}

void abort_with(std::string_view what) noexcept {
    std::fprintf(stderr, "coffer: internal error: %.*s\n", static_cast<int>(what.size()), what.data());
    std::abort();
}

}  // namespace coffer
