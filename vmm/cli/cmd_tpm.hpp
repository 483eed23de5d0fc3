// The verbs of `coffer tpm`.
#pragma once

#include "vmm/cli/context.hpp"

namespace coffer::cli {

void register_tpm_show(CLI::App& tpm, Context& context);
void register_tpm_pcrs(CLI::App& tpm, Context& context);
void register_tpm_cert(CLI::App& tpm, Context& context);
void register_tpm_eventlog(CLI::App& tpm, Context& context);
void register_tpm_clear(CLI::App& tpm, Context& context);
void register_tpm_add(CLI::App& tpm, Context& context);
void register_tpm_remove(CLI::App& tpm, Context& context);
void register_tpm_serve(CLI::App& tpm, Context& context);

} // namespace coffer::cli
