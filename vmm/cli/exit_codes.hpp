// What `coffer` ends with. Where a number of sysexits.h fits, it is that one. docs/cli.md has the same table for users.
#pragma once

#include "base/result.hpp"

namespace coffer::cli {

enum class ExitCode : int {
    Ok = 0,           // the guest powered off, too
    Failure = 1,      // malformed input that is no home: a kernel image, a peer's message; a guest that crashed
    Usage = 2,        // the command line, or a value on it
    Integrity = 65,   // a file of a home or provider was changed, is missing or was rolled back (EX_DATAERR)
    NotFound = 66,    // no such VM, provider or file (EX_NOINPUT)
    Unsupported = 69, // this host, backend or version cannot do it (EX_UNAVAILABLE)
    Internal = 70,    // a fault of coffer's own (EX_SOFTWARE)
    Exists = 73,      // the name is taken (EX_CANTCREAT)
    Io = 74,          // the host failed: disk, memory, system call (EX_IOERR)
    Busy = 75,        // another process uses the VM (EX_TEMPFAIL)
    NoAccess = 77,    // no key for the home, or the host's permissions forbid it (EX_NOPERM)
    Timeout = 124,    // --timeout ended the run, as timeout(1) has it
    Cancelled = 130,  // the user stopped it, as shells have it for Ctrl-C
};

constexpr int to_int(ExitCode code) noexcept {
    return static_cast<int>(code);
}

constexpr ExitCode exit_code_for(ErrorCode code) noexcept {
    switch (code) {
    case ErrorCode::Internal: return ExitCode::Internal;
    case ErrorCode::InvalidArgument: return ExitCode::Usage;
    case ErrorCode::NotFound: return ExitCode::NotFound;
    case ErrorCode::AlreadyExists: return ExitCode::Exists;
    case ErrorCode::Permission: return ExitCode::NoAccess;
    case ErrorCode::Busy: return ExitCode::Busy;
    case ErrorCode::Io: return ExitCode::Io;
    case ErrorCode::NoSpace: return ExitCode::Io;
    case ErrorCode::Corrupt: return ExitCode::Failure;
    case ErrorCode::Integrity: return ExitCode::Integrity;
    case ErrorCode::KeyUnavailable: return ExitCode::NoAccess;
    case ErrorCode::Unsupported: return ExitCode::Unsupported;
    case ErrorCode::Timeout: return ExitCode::Timeout;
    case ErrorCode::Cancelled: return ExitCode::Cancelled;
    }
    return ExitCode::Internal;
}

} // namespace coffer::cli
