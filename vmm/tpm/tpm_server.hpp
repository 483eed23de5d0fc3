// Serves a TPM over swtpm's data and control channels, one client each at a time.
//
// A client that stops in the middle of a request, or that does not take its response, is cut off after some seconds;
// one that is idle between requests may stay. A data channel that a control client hands over (SetDataFd) replaces the
// one before.
#pragma once

#include "vmm/tpm/server_sockets.hpp"
#include "vmm/tpm/tpm_engine.hpp"

namespace coffer::vmm {

// Blocks SIGINT, SIGTERM and SIGHUP in the process and enters a sandbox, so it is called once. Returns when a client
// asks for the end (Shutdown) or one of the signals comes; all that clients were told of is durable by then.
Result<void> serve_tpm(TpmEngine& engine, TpmSockets& sockets);

namespace tpm_server {
// What the server may still ask of the host's kernel: sockets it has or is given, the home's files, threads. No new
// sockets but accepted ones, no programs, no executable memory.
Result<void> enter_sandbox();
} // namespace tpm_server

} // namespace coffer::vmm
