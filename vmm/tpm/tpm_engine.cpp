#include "vmm/tpm/tpm_engine.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include <string.h>

#include "base/log.hpp"
#include "devices/tpm/tpm_command.hpp"

namespace coffer::vmm {

using namespace tpm_control;

namespace {

constexpr auto k_cancel_interval = std::chrono::milliseconds(1);
constexpr auto k_first_retry = std::chrono::milliseconds(20);
constexpr auto k_last_retry = std::chrono::milliseconds(1000);

log::RateLimit s_limit;

void warn(Error const& error) {
    if (s_limit.allow()) log::warning("{}", error.message());
}

void wipe(ByteVector& secret) noexcept {
    if (!secret.empty()) explicit_bzero(secret.data(), secret.size());
    secret.clear();
}

// Labels under which state leaves the home.
std::string_view blob_label(uint32_t type) noexcept {
    if (type == k_blob_permanent) return "tpm-blob-permanent";
    if (type == k_blob_volatile) return "tpm-blob-volatile";
    return {};
}

void report_store_failure(Error const& error) {
    if (s_limit.allow())
        log::error("TPM state cannot be stored, so the TPM answers nothing for now: {}", error.message());
}

} // namespace

Result<size_t> TpmEngine::execute(Bytes command, MutBytes response, std::function<bool()> const& gone) {
    COFFER_ASSERT(response.size() >= k_max_command);
    std::unique_lock lock(m_mutex);
    if (m_stop) return make_error(ErrorCode::Cancelled, "the TPM server is stopping");
    if (!m_running) return devices::write_tpm_response(response, devices::TpmResponseCode::Failure);
    // Left by a command whose peer went away.
    if (auto durable = m_tpm.make_durable(); !durable) {
        report_store_failure(durable.error());
        return devices::write_tpm_response(response, devices::TpmResponseCode::Retry);
    }
    m_executing = ++m_commands;
    auto size = m_tpm.execute(m_locality, command, response);
    m_executing = 0;
    if (!size) {
        warn(size.error());
        return devices::write_tpm_response(response, devices::TpmResponseCode::Failure);
    }
    auto delay = k_first_retry;
    for (;;) {
        auto durable = m_tpm.make_durable();
        if (durable) return size;
        report_store_failure(durable.error());
        lock.unlock();
        for (auto waited = std::chrono::milliseconds(0); waited < delay && !m_stop; waited += k_first_retry)
            std::this_thread::sleep_for(k_first_retry);
        lock.lock();
        if (m_stop) return make_error(ErrorCode::Cancelled, "the TPM server is stopping");
        if (gone && gone()) return make_error(ErrorCode::Cancelled, "nobody waits for the response");
        delay = std::min(2 * delay, k_last_retry);
    }
}

void TpmEngine::stop() noexcept {
    m_stop = true;
    // A cancel that comes before libtpms has begun is lost, so it is repeated.
    while (m_executing != 0) {
        m_tpm.cancel();
        std::this_thread::sleep_for(k_cancel_interval);
    }
}

Response TpmEngine::control(Request const& request) {
    // Without the mutex, which a running command holds.
    if (request.command == Command::CancelCommand) return cancel();
    std::lock_guard lock(m_mutex);
    return locked_control(request);
}

Response TpmEngine::cancel() {
    uint64_t const target = m_executing;
    while (target != 0 && m_executing == target) {
        m_tpm.cancel();
        std::this_thread::sleep_for(k_cancel_interval);
    }
    return Response(ControlResult::Success);
}

Response TpmEngine::report(Result<void> const& result) {
    if (!result) {
        warn(result.error());
        return Response(ControlResult::Fail);
    }
    // What the command has changed is durable before the peer is told that it is done.
    if (auto durable = m_tpm.make_durable(); !durable) {
        warn(durable.error());
        return Response(ControlResult::IoError);
    }
    return Response(ControlResult::Success);
}

Response TpmEngine::with_running(std::function<Result<void>()> const& action) {
    if (!m_running) return Response(ControlResult::BadOrdinal);
    return report(action());
}

Response TpmEngine::locked_control(Request const& request) {
    auto const& body = request.body;
    switch (request.command) {
    case Command::GetCapability: return Response().u64(k_capabilities);
    case Command::Init: return init(load_be<uint32_t>(body));
    case Command::Stop: m_running = false; return report({});
    case Command::GetEstablished: return established();
    case Command::SetLocality: return set_locality(load_be<uint8_t>(body));
    case Command::ResetEstablished: return reset_established(load_be<uint8_t>(body));
    case Command::HashStart: return with_running([&] { return m_tpm.hash_start(); });
    case Command::HashData: return with_running([&] { return m_tpm.hash_data(body.subspan(4)); });
    case Command::HashEnd: return with_running([&] { return m_tpm.hash_end(); });
    case Command::StoreVolatile: return store_volatile();
    case Command::GetStateBlob: return get_state_blob(body);
    case Command::SetStateBlob: return set_state_blob(body);
    case Command::GetConfig: return Response(ControlResult::Success).u32(k_config_file_key | k_config_migration_key);
    case Command::SetBufferSize: return set_buffer_size(load_be<uint32_t>(body));
    case Command::GetInfo: return get_info(body);
    case Command::CancelCommand:
    case Command::SetDataFd:
    case Command::Shutdown: break;
    }
    return Response(ControlResult::BadOrdinal);
}

// A volatile state is used once, whether or not the flag to delete it is given: on a later start it would be stale.
Response TpmEngine::init(uint32_t) {
    m_running = false;
    m_locality = devices::Locality::Zero;
    auto permanent = std::exchange(m_next_permanent, {});
    auto volatile_state = std::exchange(m_next_volatile, {});
    Result<void> powered;
    if (!volatile_state.empty()) {
        if (permanent.empty())
            if (auto current = m_tpm.permanent_state()) permanent = std::move(*current);
        powered = m_tpm.restore(permanent, volatile_state);
    } else if (!permanent.empty()) {
        powered = make_error(ErrorCode::InvalidArgument,
                             "a TPM's permanent state came without the volatile state that goes with it");
    } else {
        powered = m_tpm.power_cycle();
    }
    wipe(permanent);
    wipe(volatile_state);
    auto response = report(powered);
    m_running = powered.has_value();
    return response;
}

Response TpmEngine::set_locality(uint8_t locality) {
    if (locality >= devices::k_locality_count) return Response(ControlResult::BadLocality);
    m_locality = static_cast<devices::Locality>(locality);
    return Response(ControlResult::Success);
}

Response TpmEngine::reset_established(uint8_t locality) {
    if (locality >= devices::k_locality_count) return Response(ControlResult::BadLocality);
    if (!m_running) return Response(ControlResult::BadOrdinal);
    auto reset = m_tpm.reset_established(static_cast<devices::Locality>(locality));
    // Localities 0 to 2 may not: TPM_ESTABLISHMENT is reset by the D-RTM's side alone.
    if (!reset && reset.error().code() == ErrorCode::Permission) return Response(ControlResult::BadLocality);
    return report(reset);
}

Response TpmEngine::established() {
    if (!m_running) return Response(ControlResult::BadOrdinal).u32(0);
    return Response(ControlResult::Success).u8(m_tpm.established() ? 1 : 0).u8(0).u8(0).u8(0);
}

Response TpmEngine::store_volatile() {
    if (!m_running) return Response(ControlResult::BadOrdinal);
    auto state = m_tpm.volatile_state();
    if (!state) {
        warn(state.error());
        return Response(ControlResult::Fail);
    }
    wipe(m_next_volatile);
    m_next_volatile = std::move(*state);
    return Response(ControlResult::Success);
}

Response TpmEngine::get_state_blob(Bytes body) {
    uint32_t type = load_be<uint32_t>(body, 4);
    size_t offset = load_be<uint32_t>(body, 8);
    // The whole fixed part always comes, so that no client waits for the rest of a refusal.
    auto refused = [](ControlResult result) { return Response(result).u32(0).u32(0).u32(0); };
    if (type == k_blob_save_state) return Response(ControlResult::Success).u32(0).u32(0).u32(0);
    auto label = blob_label(type);
    if (label.empty()) return refused(ControlResult::BadParameter);
    if (offset == 0) {
        if (!m_running) return refused(ControlResult::BadOrdinal);
        auto state = type == k_blob_permanent ? m_tpm.permanent_state() : m_tpm.volatile_state();
        auto sealed = state ? m_home.seal(label, *state) : Result<ByteVector>(std::move(state).error());
        if (state) wipe(*state);
        if (!sealed) {
            warn(sealed.error());
            return refused(ControlResult::Fail);
        }
        m_sealed[type] = std::move(*sealed);
    }
    Bytes blob = m_sealed[type];
    if (offset > blob.size()) return refused(ControlResult::BadParameter);
    auto part = blob.subspan(offset);
    return Response(ControlResult::Success)
        .u32(k_blob_is_encrypted)
        .u32(static_cast<uint32_t>(blob.size()))
        .u32(static_cast<uint32_t>(part.size()))
        .bytes(part);
}

Response TpmEngine::set_state_blob(Bytes body) {
    if (m_running) return Response(ControlResult::BadOrdinal);
    uint32_t flags = load_be<uint32_t>(body);
    uint32_t type = load_be<uint32_t>(body, 4);
    auto data = body.subspan(12);
    if (type == k_blob_save_state && data.empty()) return Response(ControlResult::Success);
    auto label = blob_label(type);
    if (label.empty() || (flags & k_blob_is_encrypted) == 0) return Response(ControlResult::BadParameter);
    auto state = m_home.open_sealed(label, data);
    if (!state) {
        warn(std::move(state).error().with_context("a TPM state that a peer sent"));
        return Response(ControlResult::BadParameter);
    }
    auto& next = type == k_blob_permanent ? m_next_permanent : m_next_volatile;
    wipe(next);
    next = std::move(*state);
    return Response(ControlResult::Success);
}

Response TpmEngine::set_buffer_size(uint32_t size) {
    auto limits = m_tpm.buffer_size();
    if (size != 0) {
        if (m_running) return Response(ControlResult::BadOrdinal).u32(limits.now).u32(limits.least).u32(limits.most);
        auto wanted = std::clamp(size, limits.least, std::min<uint32_t>(limits.most, k_max_command));
        if (auto set = m_tpm.limit_buffer_size(wanted); !set) {
            warn(set.error());
            return Response(ControlResult::Fail).u32(limits.now).u32(limits.least).u32(limits.most);
        }
        limits = m_tpm.buffer_size();
    }
    return Response(ControlResult::Success).u32(limits.now).u32(limits.least).u32(limits.most);
}

Response TpmEngine::get_info(Bytes body) {
    auto flags = load_be<uint64_t>(body);
    size_t offset = load_be<uint32_t>(body, 8);
    auto text = m_tpm.info(static_cast<uint32_t>(flags & UINT32_MAX));
    if (offset > text.size()) return Response(ControlResult::BadParameter).u32(0).u32(0);
    auto part = as_bytes(text).subspan(offset);
    return Response(ControlResult::Success)
        .u32(static_cast<uint32_t>(text.size()))
        .u32(static_cast<uint32_t>(part.size()))
        .bytes(part);
}

} // namespace coffer::vmm
