#include "vmm/home/process_hygiene.hpp"

#include <cerrno>
#include <sys/prctl.h>
#include <sys/resource.h>

namespace coffer::vmm {

Result<void> forbid_dumps() {
    rlimit const none{0, 0};
    if (::setrlimit(RLIMIT_CORE, &none) != 0) return errno_error(errno, "cannot forbid core dumps");
    if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) return errno_error(errno, "cannot forbid dumps of this process");
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return errno_error(errno, "cannot give up new privileges");
    return {};
}

} // namespace coffer::vmm
