// What list and show tell of a VM: what stands in the clear, and, where the key can be had, the configuration.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "keyprovider/registry.hpp"
#include "vmm/control/status.hpp"
#include "vmm/disk/disk_layers.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/keeper_client.hpp"

namespace coffer::cli {

enum class VmState : uint8_t {
    Off,
    Running,
    HandedOver, // to another host; VmStatus::reason says to which
    Arriving,   // from another host, which has it still
    Locked,     // the home does not open: no key, or not intact; VmStatus::reason says which
};
std::string_view to_string(VmState state) noexcept;

struct VmStatus {
    std::string name;
    VmState state = VmState::Off;
    std::string reason;                      // of Locked and HandedOver
    std::optional<vmm::HomeSummary> summary; // nothing where not even that is readable
    std::optional<ProviderInfo> provider;    // of an encrypted home, where this host has it
    std::optional<vmm::VmConfig> config;     // where the home opens
    vmm::DiskLayers disk_layers;
    std::optional<vmm::control::StatusAnswer> live; // what the process that runs the VM says
    std::vector<vmm::HistoryEvent> history;         // where the home opens; the oldest first
    bool deep_rekey_pending = false;                // the same: files are left under an older key
};

// Looks at VMs of one root. Keeps one keeper for all of them, started when first needed.
class VmInspector {
public:
    VmInspector(vmm::HomeRoot root, vmm::KeeperOptions options)
        : m_registry(root.providers()), m_root(std::move(root)), m_options(std::move(options)) {}

    // NotFound where there is no such VM. A home that does not open is no error.
    Result<VmStatus> inspect(std::string const& name);

private:
    Result<crypto::BundleKey> unwrap(vmm::BundleHeader const& header);

    ProviderRegistry m_registry;
    vmm::HomeRoot m_root;
    vmm::KeeperOptions m_options;
    std::optional<vmm::KeeperProcess> m_keeper;
};

nlohmann::json to_json(VmStatus const& status);

} // namespace coffer::cli
