// Where passphrases come from: a file descriptor, or a person at the terminal. Never from the command line or the
// environment.
#pragma once

#include <string_view>

#include "base/result.hpp"
#include "crypto/secret.hpp"

namespace coffer::vmm {

constexpr size_t k_max_passphrase = 1024; // bytes

// Up to the first newline or the end; the newline is not part of it. InvalidArgument where it is empty or longer than
// k_max_passphrase.
Result<crypto::SecretBytes> read_passphrase(int fd);

// Asks on /dev/tty ("<what>: ") with echo off, and puts the terminal back whatever happens. Ends early, Cancelled, at
// Ctrl-C, or when `hang_up_fd` (where not -1) is closed at its other end. KeyUnavailable where there is no terminal.
Result<crypto::SecretBytes> ask_passphrase(std::string_view what, int hang_up_fd = -1);

} // namespace coffer::vmm
