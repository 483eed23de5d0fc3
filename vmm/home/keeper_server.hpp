// The keeper process: the only one that runs provider code and maps a provider's keys. It answers wrap and unwrap
// requests of the process that started it, and ends when that one closes its end.
#pragma once

#include <filesystem>

#include "base/result.hpp"
#include "keyprovider/kmip/client/endpoint.hpp"
#include "keyprovider/native/host_tpm.hpp"

namespace coffer::vmm::keeper {

struct Settings {
    std::filesystem::path providers; // the registry's folder
    int socket = -1;
    int passphrase_fd = -1; // -1: ask on the terminal
    bool may_prompt = true;
    bool manage = false;  // answer the requests that change providers
    int password_fd = -1; // a backup's password; as passphrase_fd
    std::string host_tpm; // the TCTI of a TPM to connect to, besides those of the providers there are
};

// Answers until the other end is closed. An error means that the other end broke the protocol; failures of providers
// are answers.
// `resolver` finds the addresses of key servers, `tpms` the TPMs of the host that are connected to.
Result<void> serve(Settings const& settings, kmip::Resolver resolver = kmip::resolve_here, HostTpms tpms = {});

// What the hidden verb `coffer keeper` runs: argv is as start_keeper() (keeper_client.hpp) makes it. Gives the exit
// code.
int keeper_main(int argc, char** argv) noexcept;

} // namespace coffer::vmm::keeper
