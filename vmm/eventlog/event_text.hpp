// What an event says, for a user to read. Hostile input, bounded; the text is one line of printable UTF-8.
#pragma once

#include "vmm/eventlog/event_log.hpp"

namespace coffer::vmm {

// Empty where the event has nothing to say beyond its type. At most some KiB.
std::string event_text(Event const& event);

} // namespace coffer::vmm
