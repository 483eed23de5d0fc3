#include "vmm/machine/host_memory.hpp"

#include <cerrno>
#include <fstream>
#include <optional>
#include <sstream>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;

// More than the VMM maps besides the guest's memory: libraries, translated code, threads' stacks and heaps. Mappings
// count against the limit whether they are touched or not.
constexpr uint64_t k_own_mappings = uint64_t{4} << 30;
constexpr unsigned k_deepest_mapping = 8; // LVM on RAID on LUKS is 3

std::string first_line(fs::path const& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

// A name of /proc/swaps: spaces and the like are written as \ and three octal digits (fs/seq_file.c, mangle_path()).
std::string unescape(std::string_view text) {
    std::string plain;
    for (size_t i = 0; i < text.size(); ++i) {
        auto digit = [&](size_t at) { return at < text.size() && text[at] >= '0' && text[at] <= '7'; };
        if (text[i] == '\\' && digit(i + 1) && digit(i + 2) && digit(i + 3)) {
            plain += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
            i += 3;
        } else {
            plain += text[i];
        }
    }
    return plain;
}

// Whether what is written to the block device is encrypted, or stays in memory.
bool is_protected(fs::path const& device, unsigned depth = 0) {
    if (depth > k_deepest_mapping) return false;
    // dm-crypt's mappings say so by the prefix of their UUID (cryptsetup; Linux,
    // Documentation/ABI/testing/sysfs-block-dm).
    if (first_line(device / "dm" / "uuid").starts_with("CRYPT-")) return true;
    std::error_code error;
    auto const real = fs::canonical(device, error);
    if (error) return false;
    // zram writes to a disk only where it was given one (Documentation/admin-guide/blockdev/zram.rst, "writeback").
    if (real.filename().native().starts_with("zram")) {
        auto const backing = first_line(real / "backing_dev");
        return backing.empty() || backing == "none";
    }
    // A partition lies in its disk's folder, and has no slaves of its own.
    if (fs::exists(real / "partition", error)) return is_protected(real.parent_path(), depth + 1);
    bool any = false;
    for (auto const& below : fs::directory_iterator(real / "slaves", error)) {
        if (!is_protected(below.path(), depth + 1)) return false;
        any = true;
    }
    return any && !error;
}

std::optional<dev_t> device_of(std::string const& name, bool is_partition) {
    struct stat info {};
    if (::stat(name.c_str(), &info) != 0) return std::nullopt;
    return is_partition ? info.st_rdev : info.st_dev;
}

} // namespace

Result<void> lock_memory(uint64_t guest_memory) {
    uint64_t const wanted = guest_memory + k_own_mappings;
    rlimit limit{};
    if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return errno_error(errno, "cannot read RLIMIT_MEMLOCK");
    if (::mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0) {
        // By privilege, or within the limit so far: what is mapped later has to fit as well.
        void* probe = ::mmap(nullptr, wanted, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (probe != MAP_FAILED) {
            ::munmap(probe, wanted);
            return {};
        }
    }
    if (errno == EINVAL)
        return make_error(ErrorCode::Unsupported, "this host's kernel cannot lock memory as it is touched "
                                                  "(mlockall with MCL_ONFAULT, Linux 4.4)");
    if (errno != ENOMEM && errno != EPERM && errno != EAGAIN) return errno_error(errno, "cannot lock memory");
    return make_error(ErrorCode::Permission,
                      "--lock-memory needs a locked-memory limit (RLIMIT_MEMLOCK) of {} MiB for this VM, and it is {} "
                      "KiB: raise it (ulimit -l, 'memlock' in /etc/security/limits.conf, or LimitMEMLOCK= of a systemd "
                      "service)",
                      wanted >> 20, limit.rlim_cur >> 10);
}

Result<std::vector<std::string>> unprotected_swaps(SwapSources const& sources) {
    std::ifstream file(sources.swaps);
    if (!file) return errno_error(errno, fmt::format("cannot read {}", sources.swaps.native()));
    std::vector<std::string> unprotected;
    std::string line;
    std::getline(file, line); // the head
    while (std::getline(file, line)) {
        std::istringstream words(line);
        std::string name;
        std::string type;
        if (!(words >> name >> type)) continue;
        name = unescape(name);
        auto const device = device_of(name, type == "partition");
        auto const numbers = device ? fmt::format("{}:{}", major(*device), minor(*device)) : std::string();
        if (!device || !is_protected(sources.devices / numbers)) unprotected.push_back(std::move(name));
    }
    return unprotected;
}

} // namespace coffer::vmm
