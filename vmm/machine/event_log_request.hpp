// The control request "event log", as the process that runs the VM answers it.
#pragma once

#include "vmm/control/event_log.hpp"
#include "vmm/control/server.hpp"
#include "vmm/machine/machine.hpp"

namespace coffer::vmm {

// On a control client's thread. Cancelled where the client or the machine ends first.
Result<control::EventLogAnswer> answer_event_log(Machine& machine, control::Conversation& with);

} // namespace coffer::vmm
