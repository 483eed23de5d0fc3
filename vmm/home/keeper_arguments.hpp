// The keeper's command line, which start_keeper() writes and keeper_main() reads. It holds no secret.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "vmm/home/keeper_server.hpp"

namespace coffer::vmm::keeper {

// Of the coffer program; not in its help.
constexpr std::string_view k_verb = "keeper";

// The descriptors that a keeper finds open, apart from the standard ones.
constexpr int k_socket = 3;
constexpr int k_passphrase = 4;
constexpr int k_password = 5;

enum class PassphraseFrom { Nowhere, Descriptor, Terminal };

// "coffer", "keeper", providers folder, where passphrases come from; of a managing keeper also "manage", where a
// backup's password comes from, and the TCTI of the TPM that a new provider is to be bound to (empty: of none).
std::vector<std::string> make_arguments(std::filesystem::path const& providers, PassphraseFrom from);
std::vector<std::string> make_arguments(std::filesystem::path const& providers, PassphraseFrom from,
                                        PassphraseFrom password, std::string const& host_tpm);
Result<Settings> parse_arguments(int argc, char** argv);

} // namespace coffer::vmm::keeper
