// A stopped machine as saved: everything but its RAM and the content of its disks. Tags are never reused.
//
// Which machine it was (backend, CPUID, platform) comes first, so that one that cannot take the state refuses it before
// anything is changed, and says why.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "vmm/accel/accelerator.hpp"
#include "vmm/accel/cpu_state.hpp"

namespace coffer::vmm {

struct SavedCpuid {
    uint32_t leaf = 0;
    uint32_t subleaf = 0;
    std::array<uint32_t, 4> registers{}; // EAX, EBX, ECX, EDX

    template <class V>
    void fields(V& v) {
        v.required(1, leaf);
        v.required(2, subleaf);
        v.required(3, registers);
    }
};

struct SavedUnit {
    std::string name; // Device::unit_name()
    ByteVector state;

    template <class V>
    void fields(V& v) {
        v.required(1, name);
        v.required(2, state);
    }
};

struct SavedPlatform {
    uint64_t memory = 0; // bytes
    uint32_t cpus = 0;
    uint8_t tpm = 0; // TpmKind
    bool agent = false;
    std::vector<uint64_t> disk_sizes; // bytes

    bool operator==(SavedPlatform const&) const = default;
    template <class V>
    void fields(V& v) {
        v.required(1, memory);
        v.required(2, cpus);
        v.required(3, tpm);
        v.required(4, agent);
        v.required(5, disk_sizes);
    }
};

struct MachineState {
    std::string backend;
    std::vector<SavedCpuid> cpuid;
    uint64_t tsc_hz = 0;
    uint8_t physical_address_bits = 0;
    SavedPlatform platform;
    ByteVector firmware_code;
    ByteVector variables;
    int64_t wall_ns = 0;  // Unix time when the vCPUs stopped
    ByteVector partition; // Partition::save()
    std::vector<CpuState> vcpus;
    std::vector<SavedUnit> units; // in the order of restoring
    ByteVector tpm_permanent;     // both empty where there is no TPM
    ByteVector tpm_volatile;
    ByteVector agent_session; // AgentSession::save(); empty: none

    template <class V>
    void fields(V& v) {
        v.required(1, backend);
        v.required(2, cpuid);
        v.required(3, tsc_hz);
        v.required(4, physical_address_bits);
        v.required(5, platform);
        v.required(6, firmware_code);
        v.required(7, variables);
        v.required(8, wall_ns);
        v.required(9, partition);
        v.required(10, vcpus);
        v.required(11, units);
        v.required(12, tpm_permanent);
        v.required(13, tpm_volatile);
        v.field(14, agent_session);
    }
};

// Nanoseconds since 1970-01-01 UTC, for MachineState::wall_ns.
int64_t wall_clock_ns() noexcept;

// With magic, version and architecture in front, which are looked at before the rest is decoded.
ByteVector encode_machine_state(MachineState state);
// Unsupported where a later coffer or another architecture wrote it, Corrupt where it is malformed.
Result<MachineState> decode_machine_state(Bytes bytes);

// The leaves of CPUID that say what a guest may use.
std::vector<SavedCpuid> read_guest_cpuid(Partition const& partition);
// Names of what `saved` shows a guest and `now` does not.
std::vector<std::string> missing_features(std::vector<SavedCpuid> const& saved, std::vector<SavedCpuid> const& now);
// Unsupported, with what differs named, where a guest that ran with `saved` cannot go on on `partition`.
Result<void> check_cpu_fits(MachineState const& saved, Partition const& partition);

} // namespace coffer::vmm
