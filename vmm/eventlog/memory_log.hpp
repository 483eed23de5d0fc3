// Finds event logs in a guest's memory. The firmware keeps its log where nobody is told, the kernel's EFI stub and the
// kernel make copies of their own, and what the guest measures when it leaves the firmware stands in another table: so
// the guest's memory is searched for all of them, and the one that agrees best with the PCRs is taken. A guest can
// plant what it likes there, or wipe it; the PCRs are the judge either way.
//
// Source of what is searched for: PC Client Platform Firmware Profile 1.05, 10.4.5.1 (the header event), TCG EFI
// Protocol 1.0 rev 0.13, chapter 7 (final events), Linux drivers/firmware/efi/libstub (struct linux_efi_tpm_eventlog).
#pragma once

#include <functional>

#include "base/file.hpp"
#include "vmm/eventlog/event_log.hpp"

namespace coffer::vmm {

struct MemorySpan {
    uint64_t address = 0; // the guest's
    Bytes bytes;
};

// Writes what may be a log to a file, a bounded number of bounded pieces. Runs in the machine's process, where nothing
// of it is parsed; the guest may run and write on. `cancelled` is asked every few MiB.
Result<void> collect_log_pieces(std::vector<MemorySpan> const& memory, int fd, std::filesystem::path const& name,
                                std::function<bool()> const& cancelled);
constexpr size_t k_max_pieces_file = size_t{8} << 20;

// The log that agrees with most of the PCRs, as a file that ends with it. NotFound where there is none in the pieces;
// Corrupt where they are malformed.
Result<ByteVector> choose_log(Bytes pieces, PcrBanks const& pcrs);

// How many of a bank's touched PCRs are as the replay says, over all banks of both.
size_t agreement(Replay const& replayed, PcrBanks const& pcrs);

} // namespace coffer::vmm
