// PCR values as tpm2_pcrread prints them: "sha256:" and below it lines like "  0 : 0x00AA...".
#pragma once

#include "vmm/eventlog/event_log.hpp"

namespace coffer::vmm {

// Banks that this program knows; a value that is missing is empty. Corrupt, with the line's number, for what is no such
// line.
Result<PcrBanks> parse_pcr_text(std::string_view text);

} // namespace coffer::vmm
