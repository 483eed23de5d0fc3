#include "vmm/cli/vm_status.hpp"

#include <nlohmann/json.hpp>

#include "vmm/control/client.hpp"
#include "vmm/home/home_open.hpp"
#include "vmm/home/host_record.hpp"
#include "vmm/home/migration_journal.hpp"

namespace coffer::cli {

std::string_view to_string(VmState state) noexcept {
    switch (state) {
    case VmState::Off: return "off";
    case VmState::Running: return "running";
    case VmState::HandedOver: return "handed-over";
    case VmState::Arriving: return "arriving";
    case VmState::Locked: return "locked";
    }
    return "unknown";
}

Result<crypto::BundleKey> VmInspector::unwrap(vmm::BundleHeader const& header) {
    if (!m_keeper) m_keeper.emplace(TRY(vmm::KeeperProcess::start(m_root, m_options)));
    return m_keeper->unwrap(header);
}

namespace {

// Nothing where the home's user takes no requests, or does not answer: what is not told is not shown.
std::optional<vmm::control::StatusAnswer> ask_vm(vmm::HomeLocation const& location) {
    constexpr Nanoseconds k_patience = 5 * k_ns_per_s;
    auto client = vmm::control::Client::connect(location);
    if (!client) return std::nullopt;
    auto answer = client->call(vmm::control::StatusRequest{}, {.silence_limit = k_patience});
    if (!answer) return std::nullopt;
    return std::move(*answer);
}

} // namespace

Result<VmStatus> VmInspector::inspect(std::string const& name) {
    vmm::HomeLocation const location{m_root, name};
    VmStatus status;
    status.name = name;
    if (auto summary = vmm::summarize_home(location)) {
        status.summary = std::move(*summary);
    } else {
        if (summary.error().code() == ErrorCode::NotFound || summary.error().code() == ErrorCode::InvalidArgument)
            return std::move(summary).error();
        status.state = VmState::Locked;
        status.reason = summary.error().message();
    }
    if (status.summary && status.summary->encrypted)
        if (auto provider = m_registry.find(status.summary->provider)) status.provider = std::move(*provider);
    auto home = vmm::open_home(location, vmm::HomeAccess::ReadOnly,
                               [this](vmm::BundleHeader const& header) { return unwrap(header); });
    auto lock = [&status](Error const& why) {
        status.state = VmState::Locked;
        status.reason = why.message();
    };
    if (home) {
        status.config = (*home)->config();
        status.deep_rekey_pending = (*home)->deep_rekey_pending();
        if (auto layers = vmm::load_disk_layers(**home))
            status.disk_layers = std::move(*layers);
        else
            lock(layers.error());
        if (auto history = (*home)->history())
            status.history = std::move(*history);
        else
            lock(history.error());
    } else {
        lock(home.error());
    }
    if (status.summary && status.summary->running) {
        status.state = VmState::Running;
        status.live = ask_vm(location);
    }
    auto const record = vmm::read_host_record(location.host_record());
    if (record && *record && (*record)->standing == vmm::Standing::HandedOver) {
        status.state = VmState::HandedOver;
        status.reason = vmm::handed_over(location, (*record)->migration).message();
    } else if (record && *record && (*record)->standing == vmm::Standing::Arriving) {
        auto const entry = vmm::MigrationJournal(m_root).read_incoming((*record)->migration);
        if (!entry || !*entry || (*entry)->state != vmm::IncomingState::Started) status.state = VmState::Arriving;
    }
    return status;
}

namespace {

nlohmann::json config_json(vmm::VmConfig const& config, vmm::DiskLayers const& layers) {
    auto disks = nlohmann::json::array();
    for (auto const& disk : config.disks)
        disks.push_back({{"path", disk.path},
                         {"read_only", disk.read_only},
                         {"protection", vmm::to_string(disk.protection)},
                         {"layers", layers.depth(disk.path)}});
    nlohmann::json json = {{"memory", config.memory},           {"cpus", config.cpus},
                           {"disks", std::move(disks)},         {"tpm", vmm::to_string(config.tpm)},
                           {"firmware", config.firmware_code},  {"variables", config.firmware_variables},
                           {"secure_boot", config.secure_boot}, {"created", config.created},
                           {"encrypt", config.encrypt},         {"template", config.is_template}};
    if (config.tpm != vmm::TpmKind::None) json["pcr_banks"] = devices::format_pcr_banks(config.pcr_banks);
    return json;
}

} // namespace

nlohmann::json to_json(VmStatus const& status) {
    nlohmann::json json = {{"name", status.name}, {"state", to_string(status.state)}};
    if (!status.reason.empty()) json["reason"] = status.reason;
    if (auto const& summary = status.summary) {
        json["uuid"] = summary->uuid.to_string();
        json["encrypted"] = summary->encrypted;
        if (summary->running && *summary->running > 0) json["pid"] = *summary->running;
        if (summary->encrypted) {
            json["provider"] = {{"id", summary->provider.to_string()}};
            if (status.provider) {
                json["provider"]["name"] = status.provider->name;
                json["provider"]["passphrase"] = status.provider->needs_passphrase;
            }
            json["key_id"] = summary->key_id;
            json["sequence"] = summary->sequence;
        }
        auto files = nlohmann::json::array();
        for (auto const& file : summary->files)
            files.push_back({{"name", file.name},
                             {"size", file.content_size},
                             {"generation", file.generation},
                             {"written", file.written}});
        json["files"] = std::move(files);
    }
    if (status.live) {
        json["backend"] = status.live->backend;
        json["uptime"] = static_cast<double>(status.live->uptime_ms) / 1000;
    }
    if (!status.config) return json;
    json["config"] = config_json(*status.config, status.disk_layers);
    auto history = nlohmann::json::array();
    for (auto const& event : status.history)
        history.push_back({{"number", event.number},
                           {"time", event.time},
                           {"kind", vmm::to_string(event.kind)},
                           {"text", event.text}});
    json["history"] = std::move(history);
    if (status.deep_rekey_pending) json["deep_rekey_pending"] = true;
    return json;
}

} // namespace coffer::cli
