// The admin command set: NVMe 1.4, section 5. Executed under the device lock; none of these touches the disk.
#include <algorithm>

#include "devices/storage/nvme.hpp"

#include "base/log.hpp"

namespace coffer::devices {

using namespace nvme;

namespace {

constexpr uint16_t k_temperature = 273 + 35; // kelvin
constexpr uint16_t k_temperature_warning = 273 + 70;
constexpr uint16_t k_temperature_critical = 273 + 80;
constexpr std::string_view k_firmware_revision = "0.1";

// ASCII fields are padded with spaces (1.5).
void put_text(MutBytes to, size_t offset, size_t size, std::string_view text) {
    for (size_t i = 0; i < size; ++i) to[offset + i] = static_cast<std::byte>(i < text.size() ? text[i] : ' ');
}

} // namespace

NvmeController::MaybeOutcome NvmeController::execute_admin(Command const& command) {
    switch (command.opcode) {
    case DELETE_IO_SQ: return delete_sq(command);
    case CREATE_IO_SQ: return create_sq(command);
    case GET_LOG_PAGE: return get_log_page(command);
    case DELETE_IO_CQ: return delete_cq(command);
    case CREATE_IO_CQ: return create_cq(command);
    case IDENTIFY: return identify(command);
    // 5.1: aborting is a best effort; result bit 0 says that nothing was aborted.
    case ABORT: return Outcome{Status::Success, 1};
    case SET_FEATURES: return set_features(command);
    case GET_FEATURES: return get_features(command);
    case ASYNC_EVENT: return async_event(command);
    default: return Outcome{Status::InvalidOpcode};
    }
}

NvmeController::Outcome NvmeController::create_cq(Command const& command) {
    uint32_t id = command.cdw10 & 0xFFFF;
    uint32_t size = (command.cdw10 >> 16) + 1;
    uint32_t vector = command.cdw11 >> 16;
    if (id == 0 || id >= k_queues || m_cqs[id].valid) return {Status::InvalidQueueId};
    if (size < 2 || size > k_max_entries || (m_regs.cc >> k_cc_cq_entry_shift & 15) != 4)
        return {Status::InvalidQueueSize};
    if ((command.cdw11 & 1) == 0) return {Status::InvalidField}; // contiguous queues only (CAP.CQR)
    if (command.prp1 % k_page_size != 0) return {Status::PrpOffsetInvalid};
    if (vector >= k_vectors) return {Status::InvalidVector};
    m_cqs[id] = {.valid = true,
                 .interrupts = (command.cdw11 & 2) != 0,
                 .size = static_cast<uint16_t>(size),
                 .vector = static_cast<uint16_t>(vector),
                 .base = command.prp1,
                 .waiting = {}};
    return {};
}

NvmeController::Outcome NvmeController::create_sq(Command const& command) {
    uint32_t id = command.cdw10 & 0xFFFF;
    uint32_t size = (command.cdw10 >> 16) + 1;
    uint32_t cq = command.cdw11 >> 16;
    if (id == 0 || id >= k_queues || m_sqs[id].valid) return {Status::InvalidQueueId};
    if (size < 2 || size > k_max_entries || (m_regs.cc >> k_cc_sq_entry_shift & 15) != 6)
        return {Status::InvalidQueueSize};
    if (cq == 0 || cq >= k_queues || !m_cqs[cq].valid) return {Status::CqInvalid};
    if ((command.cdw11 & 1) == 0) return {Status::InvalidField};
    if (command.prp1 % k_page_size != 0) return {Status::PrpOffsetInvalid};
    m_sqs[id] = {.valid = true,
                 .size = static_cast<uint16_t>(size),
                 .cq = static_cast<uint16_t>(cq),
                 .base = command.prp1,
                 .deletion = {}};
    return {};
}

NvmeController::Outcome NvmeController::delete_cq(Command const& command) {
    uint32_t id = command.cdw10 & 0xFFFF;
    if (id == 0 || id >= k_queues || !m_cqs[id].valid) return {Status::InvalidQueueId};
    for (auto const& sq : m_sqs)
        if (sq.valid && sq.cq == id) return {Status::InvalidQueueDeletion};
    m_cqs[id] = {};
    update_intx();
    return {};
}

// Commands at the disk complete before the deletion does (7.3.3).
NvmeController::MaybeOutcome NvmeController::delete_sq(Command const& command) {
    uint32_t id = command.cdw10 & 0xFFFF;
    if (id == 0 || id >= k_queues || !m_sqs[id].valid || m_sqs[id].deletion) return Outcome{Status::InvalidQueueId};
    if (m_sqs[id].in_flight > 0) {
        m_sqs[id].deletion = command.id;
        return std::nullopt;
    }
    m_sqs[id] = {};
    return Outcome{};
}

NvmeController::Outcome NvmeController::reply(Command const& command, Bytes data) {
    std::vector<Extent> extents;
    Status status = resolve_prps(m_memory, command.prp1, command.prp2, data.size(), extents);
    if (status != Status::Success) return {status};
    if (!copy_to_guest(m_memory, extents, data)) return {Status::DataTransferError};
    return {};
}

NvmeController::Outcome NvmeController::identify(Command const& command) {
    ByteVector data(k_identify_size);
    switch (command.cdw10 & 0xFF) {
    case IDENTIFY_NAMESPACE:
        if (command.nsid != k_namespace) return {Status::InvalidNamespace};
        data = identify_namespace();
        break;
    case IDENTIFY_CONTROLLER: data = identify_controller(); break;
    case IDENTIFY_ACTIVE_NAMESPACES:
        // Identifiers above the one given; the last two values are not ones that a list can follow (5.15.2.3).
        if (command.nsid >= k_all_namespaces - 1) return {Status::InvalidNamespace};
        if (command.nsid < k_namespace) store_le<uint32_t>(data, 0, k_namespace);
        break;
    case IDENTIFY_NAMESPACE_DESCRIPTORS:
        if (command.nsid != k_namespace) return {Status::InvalidNamespace};
        data[0] = std::byte{k_descriptor_nguid};
        data[1] = std::byte{16};
        std::copy(m_settings.nguid.begin(), m_settings.nguid.end(), data.begin() + 4);
        break;
    default: return {Status::InvalidField};
    }
    return reply(command, data);
}

ByteVector NvmeController::identify_controller() const {
    ByteVector data(k_identify_size);
    store_le<uint16_t>(data, IC_VID, k_pci_vendor);
    store_le<uint16_t>(data, IC_SSVID, k_pci_vendor);
    put_text(data, IC_SN, 20, m_settings.serial);
    put_text(data, IC_MN, 40, "Coffer NVMe Disk");
    put_text(data, IC_FR, 8, k_firmware_revision);
    data[IC_MDTS] = std::byte{k_transfer_shift};
    store_le<uint32_t>(data, IC_VER, k_version);
    data[IC_CNTRLTYPE] = std::byte{1}; // I/O controller
    data[IC_ACL] = std::byte{3};
    data[IC_AERL] = std::byte{k_max_events - 1};
    data[IC_FRMW] = std::byte{k_frmw_one_read_only_slot};
    data[IC_LPA] = std::byte{k_lpa_extended};
    store_le<uint16_t>(data, IC_WCTEMP, k_temperature_warning);
    store_le<uint16_t>(data, IC_CCTEMP, k_temperature_critical);
    data[IC_SQES] = std::byte{0x66};
    data[IC_CQES] = std::byte{0x44};
    store_le<uint32_t>(data, IC_NN, 1);
    store_le<uint16_t>(data, IC_ONCS, k_oncs_dataset_management | k_oncs_write_zeroes);
    data[IC_VWC] = std::byte{k_vwc_present | k_vwc_flush_all};
    std::string name = "nqn.2026-11.org.coffer:nvme:" + m_settings.serial;
    for (size_t i = 0; i < std::min<size_t>(name.size(), 223); ++i)
        data[IC_SUBNQN + i] = static_cast<std::byte>(name[i]);
    store_le<uint16_t>(data, IC_PSD0, 500); // 5 W, in 0.01 W
    return data;
}

ByteVector NvmeController::identify_namespace() const {
    ByteVector data(k_identify_size);
    uint64_t blocks = m_backend.size() >> k_lba_shift;
    store_le<uint64_t>(data, IN_NSZE, blocks);
    store_le<uint64_t>(data, IN_NCAP, blocks);
    store_le<uint64_t>(data, IN_NUSE, blocks);
    if (m_backend.read_only()) data[IN_NSATTR] = std::byte{k_nsattr_write_protected};
    std::copy(m_settings.nguid.begin(), m_settings.nguid.end(), data.begin() + IN_NGUID);
    store_le<uint32_t>(data, IN_LBAF0, k_lba_shift << 16);
    return data;
}

ByteVector NvmeController::smart_log() const {
    ByteVector data(k_log_size);
    store_le<uint16_t>(data, 1, k_temperature);
    data[3] = std::byte{100}; // available spare, per cent
    data[4] = std::byte{10};  // its threshold
    // Data units are thousands of 512-byte blocks, rounded up (figure 194).
    store_le<uint64_t>(data, 32, (m_regs.counters[0] + 999) / 1000);
    store_le<uint64_t>(data, 48, (m_regs.counters[1] + 999) / 1000);
    store_le<uint64_t>(data, 64, m_regs.counters[2]);
    store_le<uint64_t>(data, 80, m_regs.counters[3]);
    store_le<uint64_t>(data, 160, m_regs.media_errors);
    store_le<uint64_t>(data, 176, m_regs.error_count);
    return data;
}

NvmeController::Outcome NvmeController::get_log_page(Command const& command) {
    uint64_t size = ((uint64_t{command.cdw11 & 0xFFFF} << 16 | command.cdw10 >> 16) + 1) * 4;
    uint64_t offset = uint64_t{command.cdw13} << 32 | command.cdw12;
    if (size > k_max_transfer || offset % 4 != 0) return {Status::InvalidField};
    ByteVector page;
    switch (command.cdw10 & 0xFF) {
    case LOG_ERROR:
        page.resize(k_error_entry_size);
        std::memcpy(page.data(), m_regs.last_error.data(), k_error_entry_size);
        if ((command.cdw10 & k_retain_event) == 0) m_regs.events_masked = false;
        break;
    case LOG_SMART:
        if (command.nsid != 0 && command.nsid != k_all_namespaces) return {Status::InvalidField};
        page = smart_log();
        break;
    case LOG_FIRMWARE_SLOT:
        page.resize(k_log_size);
        page[0] = std::byte{1}; // slot 1 is active
        put_text(page, 8, 8, k_firmware_revision);
        break;
    default: return {Status::InvalidLogPage};
    }
    if (offset > page.size()) return {Status::InvalidField};
    // What lies past the page is zero.
    ByteVector data(size);
    std::copy_n(page.begin() + static_cast<std::ptrdiff_t>(offset), std::min<size_t>(size, page.size() - offset),
                data.begin());
    Outcome outcome = reply(command, data);
    deliver_events();
    return outcome;
}

void NvmeController::reset_features() noexcept {
    m_regs.features = {};
    m_regs.features[ARBITRATION] = 7; // no burst limit
    m_regs.features[TEMPERATURE_THRESHOLD] = k_temperature_warning;
    m_regs.features[VOLATILE_WRITE_CACHE] = 1;
    m_regs.features[NUMBER_OF_QUEUES] = (k_io_queues - 1) << 16 | (k_io_queues - 1);
    for (uint32_t vector = 0; vector < k_vectors; ++vector) m_regs.vector_configuration[vector] = vector;
    m_regs.vector_configuration[0] |= 1U << 16; // the admin queue's interrupts are not coalesced
}

NvmeController::Outcome NvmeController::set_features(Command const& command) {
    uint32_t value = command.cdw11;
    // Features are not saveable (ONCS bit 4 is 0).
    if ((command.cdw10 & k_set_features_save) != 0) return {Status::FeatureNotSaveable};
    uint32_t feature = command.cdw10 & 0xFF;
    switch (feature) {
    case ARBITRATION:
    case INTERRUPT_COALESCING:
    case WRITE_ATOMICITY:
    case ERROR_RECOVERY:
    case ASYNC_EVENT_CONFIGURATION:
    case TEMPERATURE_THRESHOLD: break;
    case VOLATILE_WRITE_CACHE: value &= 1; break;
    case POWER_MANAGEMENT:
        if ((value & 0x1F) != 0) return {Status::InvalidField}; // there is power state 0 alone
        break;
    case NUMBER_OF_QUEUES: {
        if ((value & 0xFFFF) == 0xFFFF || value >> 16 == 0xFFFF) return {Status::InvalidField};
        // 5.21.1.7: only before any I/O queue is made.
        for (unsigned id = 1; id < k_queues; ++id)
            if (m_sqs[id].valid || m_cqs[id].valid) return {Status::InvalidField};
        // All are granted whatever is asked for.
        return {Status::Success, m_regs.features[NUMBER_OF_QUEUES]};
    }
    case INTERRUPT_VECTOR_CONFIGURATION: {
        uint32_t vector = value & 0xFFFF;
        if (vector >= k_vectors) return {Status::InvalidField};
        m_regs.vector_configuration[vector] = value & 0x1'FFFF;
        return {};
    }
    default: return {Status::InvalidField};
    }
    m_regs.features[feature] = value;
    return {};
}

NvmeController::Outcome NvmeController::get_features(Command const& command) {
    uint32_t feature = command.cdw10 & 0xFF;
    switch (feature) {
    case ARBITRATION:
    case POWER_MANAGEMENT:
    case TEMPERATURE_THRESHOLD:
    case ERROR_RECOVERY:
    case VOLATILE_WRITE_CACHE:
    case NUMBER_OF_QUEUES:
    case INTERRUPT_COALESCING:
    case WRITE_ATOMICITY:
    case ASYNC_EVENT_CONFIGURATION: return {Status::Success, m_regs.features[feature]};
    case INTERRUPT_VECTOR_CONFIGURATION: {
        uint32_t vector = command.cdw11 & 0xFFFF;
        if (vector >= k_vectors) return {Status::InvalidField};
        return {Status::Success, m_regs.vector_configuration[vector]};
    }
    default: return {Status::InvalidField};
    }
}

NvmeController::MaybeOutcome NvmeController::async_event(Command const& command) {
    if (m_regs.events.size() >= k_max_events) return Outcome{Status::EventLimitExceeded};
    m_regs.events.push_back(command.id);
    deliver_events();
    return std::nullopt;
}

void NvmeController::report_error_event(ErrorEvent event) {
    static log::RateLimit limit;
    if (limit.allow())
        log::warning("{}: a doorbell was written with {}", m_settings.unit,
                     event == ErrorEvent::InvalidDoorbellRegister ? "no queue behind it" : "an impossible value");
    m_regs.events_pending |= static_cast<uint8_t>(1U << static_cast<unsigned>(event));
    deliver_events();
}

// 5.2: after an event of a type was reported, further ones wait until its log page is read.
void NvmeController::deliver_events() {
    while (m_regs.events_pending != 0 && !m_regs.events_masked && !m_regs.events.empty()) {
        unsigned event = (m_regs.events_pending & 1U) != 0 ? 0 : 1;
        m_regs.events_pending &= static_cast<uint8_t>(~(1U << event));
        m_regs.events_masked = true;
        uint16_t command = m_regs.events.front();
        m_regs.events.erase(m_regs.events.begin());
        complete(0, command, {Status::Success, event << 8 | uint32_t{LOG_ERROR} << 16});
    }
}

// The one entry of the error log (figure 193).
void NvmeController::note_error(uint16_t sq, Command const& command, Status status) noexcept {
    ++m_regs.error_count;
    std::array<std::byte, k_error_entry_size> entry{};
    store_le<uint64_t>(entry, 0, m_regs.error_count);
    store_le<uint16_t>(entry, 8, sq);
    store_le<uint16_t>(entry, 10, command.id);
    store_le<uint16_t>(entry, 12, static_cast<uint16_t>(static_cast<unsigned>(status) << 1));
    store_le<uint16_t>(entry, 14, 0xFFFF); // no byte of the command in particular
    store_le<uint64_t>(entry, 16, uint64_t{command.cdw11} << 32 | command.cdw10);
    store_le<uint32_t>(entry, 24, command.nsid);
    std::memcpy(m_regs.last_error.data(), entry.data(), entry.size());
}

} // namespace coffer::devices
