// The TPM server's listening sockets.
#pragma once

#include <cstdint>
#include <filesystem>

#include "base/file.hpp"

namespace coffer::vmm {

struct TpmSockets {
    // Data on `port` and control on the next one, of 127.0.0.1. Any user of this host can connect.
    static Result<TpmSockets> on_loopback(uint16_t port);
    // `folder`/data and `folder`/ctrl, which only this user can connect to; the folder is made where it is missing.
    // Busy where another server listens there; sockets that nobody listens on are replaced.
    static Result<TpmSockets> in_folder(std::filesystem::path const& folder);

    TpmSockets(TpmSockets&&) = default;
    TpmSockets& operator=(TpmSockets&&) = default;
    ~TpmSockets(); // removes the sockets' names

    UniqueFd data;
    UniqueFd control;

private:
    TpmSockets() = default;
    std::filesystem::path m_folder; // empty with TCP
};

} // namespace coffer::vmm
