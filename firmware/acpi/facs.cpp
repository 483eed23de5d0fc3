#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

// No waking vector: the machine has no S3. The FACS has neither header nor checksum.
ByteVector build_facs() {
    Facs facs{};
    facs.signature = {'F', 'A', 'C', 'S'};
    facs.length = sizeof facs;
    facs.version = 2;
    Bytes bytes = object_bytes(facs);
    return ByteVector(bytes.begin(), bytes.end());
}

} // namespace coffer::firmware::acpi
