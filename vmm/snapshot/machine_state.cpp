#include "vmm/snapshot/machine_state.hpp"

#include <algorithm>
#include <ctime>
#include <span>

#include <fmt/ranges.h>

#include "base/tagged.hpp"

namespace coffer::vmm {

namespace {

constexpr std::string_view k_magic = "COFRMACH";
constexpr uint32_t k_version = 1;
constexpr uint32_t k_x86_64 = 62; // as ELF numbers machines
constexpr size_t k_head = 16;

enum Register : size_t { Eax, Ebx, Ecx, Edx };

// A register of CPUID whose bits are features (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E). Names are for
// people; a bit without one is shown by its number. Bits that a guest's own settings or the topology decide (OSXSAVE,
// OSPKE, HTT) and the hypervisor bit are not compared.
struct FeatureWord {
    uint32_t leaf;
    uint32_t subleaf;
    Register which;
    uint32_t ignored;
    std::span<std::pair<unsigned, std::string_view> const> names;
};

using Name = std::pair<unsigned, std::string_view>;
constexpr std::array k_1_ecx{Name{0, "sse3"},          Name{1, "pclmulqdq"}, Name{3, "monitor"}, Name{9, "ssse3"},
                             Name{12, "fma"},          Name{13, "cx16"},     Name{17, "pcid"},   Name{19, "sse4.1"},
                             Name{20, "sse4.2"},       Name{21, "x2apic"},   Name{22, "movbe"},  Name{23, "popcnt"},
                             Name{24, "tsc-deadline"}, Name{25, "aes"},      Name{26, "xsave"},  Name{28, "avx"},
                             Name{29, "f16c"},         Name{30, "rdrand"}};
constexpr std::array k_1_edx{Name{0, "fpu"},   Name{4, "tsc"},  Name{6, "pae"},      Name{8, "cx8"},
                             Name{9, "apic"},  Name{11, "sep"}, Name{12, "mtrr"},    Name{13, "pge"},
                             Name{15, "cmov"}, Name{16, "pat"}, Name{19, "clflush"}, Name{23, "mmx"},
                             Name{24, "fxsr"}, Name{25, "sse"}, Name{26, "sse2"}};
constexpr std::array k_7_ebx{
    Name{0, "fsgsbase"},    Name{1, "tsc-adjust"},  Name{3, "bmi1"},    Name{4, "hle"},       Name{5, "avx2"},
    Name{7, "smep"},        Name{8, "bmi2"},        Name{9, "erms"},    Name{10, "invpcid"},  Name{11, "rtm"},
    Name{16, "avx512f"},    Name{17, "avx512dq"},   Name{18, "rdseed"}, Name{19, "adx"},      Name{20, "smap"},
    Name{21, "avx512ifma"}, Name{23, "clflushopt"}, Name{24, "clwb"},   Name{28, "avx512cd"}, Name{29, "sha"},
    Name{30, "avx512bw"},   Name{31, "avx512vl"}};
constexpr std::array k_7_ecx{Name{1, "avx512vbmi"},       Name{2, "umip"},        Name{3, "pku"},
                             Name{6, "avx512vbmi2"},      Name{8, "gfni"},        Name{9, "vaes"},
                             Name{10, "vpclmulqdq"},      Name{11, "avx512vnni"}, Name{12, "avx512bitalg"},
                             Name{14, "avx512vpopcntdq"}, Name{16, "la57"},       Name{22, "rdpid"}};
constexpr std::array k_7_edx{Name{4, "fsrm"},       Name{10, "md-clear"}, Name{14, "serialize"},
                             Name{22, "amx-bf16"},  Name{24, "amx-tile"}, Name{25, "amx-int8"},
                             Name{26, "spec-ctrl"}, Name{27, "stibp"},    Name{29, "arch-capabilities"},
                             Name{31, "ssbd"}};
constexpr std::array k_d_eax{Name{0, "xsaveopt"}, Name{1, "xsavec"}, Name{3, "xsaves"}};
constexpr std::array k_ext_ecx{Name{0, "lahf"}, Name{5, "abm"}, Name{6, "sse4a"}, Name{8, "3dnowprefetch"}};
constexpr std::array k_ext_edx{Name{11, "syscall"}, Name{20, "nx"}, Name{26, "pdpe1gb"}, Name{27, "rdtscp"},
                               Name{29, "lm"}};
constexpr std::array k_power_edx{Name{8, "invariant-tsc"}};
constexpr std::span<Name const> k_unnamed;

constexpr std::array k_words{
    FeatureWord{1, 0, Ecx, 1U << 27 | 1U << 31, k_1_ecx},
    FeatureWord{1, 0, Edx, 1U << 28, k_1_edx},
    FeatureWord{7, 0, Ebx, 0, k_7_ebx},
    FeatureWord{7, 0, Ecx, 1U << 4, k_7_ecx},
    FeatureWord{7, 0, Edx, 0, k_7_edx},
    FeatureWord{7, 1, Eax, 0, k_unnamed},
    FeatureWord{0xD, 0, Eax, 0, k_unnamed}, // components that XCR0 may enable
    FeatureWord{0xD, 1, Eax, 0, k_d_eax},
    FeatureWord{0x4000'0001, 0, Eax, 0, k_unnamed}, // the hypervisor's own
    FeatureWord{0x8000'0001, 0, Ecx, 0, k_ext_ecx},
    FeatureWord{0x8000'0001, 0, Edx, 0, k_ext_edx},
    FeatureWord{0x8000'0007, 0, Edx, 0, k_power_edx},
    FeatureWord{0x8000'0008, 0, Ebx, 0, k_unnamed},
};

// Leaves that are kept as they are: vendor, family, feature words, address widths.
constexpr std::array<std::pair<uint32_t, uint32_t>, 13> k_leaves{{{0, 0},
                                                                  {1, 0},
                                                                  {7, 0},
                                                                  {7, 1},
                                                                  {0xD, 0},
                                                                  {0xD, 1},
                                                                  {0x4000'0000, 0},
                                                                  {0x4000'0001, 0},
                                                                  {0x8000'0000, 0},
                                                                  {0x8000'0001, 0},
                                                                  {0x8000'0007, 0},
                                                                  {0x8000'0008, 0},
                                                                  {0x15, 0}}};

uint32_t word_of(std::vector<SavedCpuid> const& cpuid, uint32_t leaf, uint32_t subleaf, Register which) {
    auto found = std::ranges::find_if(cpuid, [&](auto const& c) { return c.leaf == leaf && c.subleaf == subleaf; });
    return found == cpuid.end() ? 0 : found->registers[which];
}

std::string name_of(FeatureWord const& word, unsigned bit) {
    for (auto const& [at, name] : word.names)
        if (at == bit) return std::string(name);
    constexpr std::array k_registers{"EAX", "EBX", "ECX", "EDX"};
    return fmt::format("CPUID {:#x}.{:#x} {} bit {}", word.leaf, word.subleaf, k_registers[word.which], bit);
}

std::string vendor_of(std::vector<SavedCpuid> const& cpuid) {
    std::string name;
    for (auto which : {Ebx, Edx, Ecx})
        for (unsigned shift = 0; shift < 32; shift += 8) {
            auto const c = static_cast<char>(word_of(cpuid, 0, 0, which) >> shift & 0xFF);
            name += c >= ' ' && c <= '~' ? c : '?';
        }
    return name;
}

} // namespace

int64_t wall_clock_ns() noexcept {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

ByteVector encode_machine_state(MachineState state) {
    ByteVector bytes(k_head);
    std::memcpy(bytes.data(), k_magic.data(), k_magic.size());
    store_le<uint32_t>(bytes, 8, k_version);
    store_le<uint32_t>(bytes, 12, k_x86_64);
    append(bytes, encode_fields(std::move(state)));
    return bytes;
}

Result<MachineState> decode_machine_state(Bytes bytes) {
    if (bytes.size() < k_head || std::memcmp(bytes.data(), k_magic.data(), k_magic.size()) != 0)
        return make_error(ErrorCode::Corrupt, "this is no saved machine");
    if (auto version = load_le<uint32_t>(bytes, 8); version != k_version)
        return make_error(ErrorCode::Unsupported,
                          "the saved machine has format version {}, and this coffer knows version {}: use the coffer "
                          "that saved it",
                          version, k_version);
    if (auto architecture = load_le<uint32_t>(bytes, 12); architecture != k_x86_64)
        return make_error(ErrorCode::Unsupported, "the saved machine is one of architecture {}, not x86-64",
                          architecture);
    MachineState state;
    TRY_CONTEXT(decode_fields(bytes.subspan(k_head), state), "saved machine");
    return state;
}

std::vector<SavedCpuid> read_guest_cpuid(Partition const& partition) {
    std::vector<SavedCpuid> cpuid;
    for (auto [leaf, subleaf] : k_leaves) {
        auto found = partition.guest_cpuid(leaf, subleaf);
        cpuid.push_back({leaf, subleaf, {found.eax, found.ebx, found.ecx, found.edx}});
    }
    return cpuid;
}

std::vector<std::string> missing_features(std::vector<SavedCpuid> const& saved, std::vector<SavedCpuid> const& now) {
    std::vector<std::string> missing;
    for (auto const& word : k_words) {
        uint32_t lost = word_of(saved, word.leaf, word.subleaf, word.which) & ~word.ignored &
                        ~word_of(now, word.leaf, word.subleaf, word.which);
        for (unsigned bit = 0; bit < 32; ++bit)
            if (lost >> bit & 1) missing.push_back(name_of(word, bit));
    }
    return missing;
}

Result<void> check_cpu_fits(MachineState const& saved, Partition const& partition) {
    auto now = read_guest_cpuid(partition);
    auto name = partition.capabilities().name;
    if (vendor_of(saved.cpuid) != vendor_of(now))
        return make_error(
            ErrorCode::Unsupported,
            "the saved machine (backend '{}') ran on a CPU of vendor {}, and the backend '{}' shows {} here",
            saved.backend, vendor_of(saved.cpuid), name, vendor_of(now));
    auto missing = missing_features(saved.cpuid, now);
    if (!missing.empty())
        return make_error(
            ErrorCode::Unsupported,
            "the saved machine (backend '{}') uses CPU features that the backend '{}' does not have here: "
            "{}. Resume it where they are, or drop the saved state",
            saved.backend, name, fmt::join(missing, ", "));
    // More of them are of no harm: the guest was told once.
    if (saved.physical_address_bits > partition.physical_address_bits())
        return make_error(ErrorCode::Unsupported,
                          "the saved machine has physical addresses of {} bits, and the backend '{}' of {} at most",
                          saved.physical_address_bits, name, partition.physical_address_bits());
    // A guest calibrates once; its NTP then tolerates 500 ppm.
    uint64_t hz = partition.tsc_hz();
    uint64_t difference = std::max(saved.tsc_hz, hz) - std::min(saved.tsc_hz, hz);
    if (difference > hz / 2000)
        return make_error(ErrorCode::Unsupported,
                          "the saved machine's TSC runs at {} kHz and this host's at {} kHz: its guest would lose time",
                          saved.tsc_hz / 1000, hz / 1000);
    return {};
}

} // namespace coffer::vmm
