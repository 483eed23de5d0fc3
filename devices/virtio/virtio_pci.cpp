#include "devices/virtio/virtio_pci.hpp"

#include <algorithm>

#include "base/log.hpp"

namespace coffer::devices {

using namespace virtio;

namespace {

constexpr unsigned k_region_bar = 4;
constexpr unsigned k_msix_bar = 1;
constexpr uint64_t k_common = 0x0000;
constexpr uint64_t k_isr = 0x1000;
constexpr uint64_t k_device = 0x2000;
constexpr uint64_t k_notify = 0x3000;
constexpr uint32_t k_notify_multiplier = 4;

// The natural width of a common register, 0 where none begins at `offset`.
size_t common_width(uint64_t offset) noexcept {
    switch (offset) {
    case DEVICE_FEATURE_SELECT:
    case DEVICE_FEATURE:
    case DRIVER_FEATURE_SELECT:
    case DRIVER_FEATURE: return 4;
    case DEVICE_STATUS:
    case CONFIG_GENERATION: return 1;
    case CONFIG_MSIX_VECTOR:
    case NUM_QUEUES:
    case QUEUE_SELECT:
    case QUEUE_SIZE:
    case QUEUE_MSIX_VECTOR:
    case QUEUE_ENABLE:
    case QUEUE_NOTIFY_OFF: return 2;
    case QUEUE_DESC:
    case QUEUE_DRIVER:
    case QUEUE_DEVICE: return 8;
    case QUEUE_DESC + 4:
    case QUEUE_DRIVER + 4:
    case QUEUE_DEVICE + 4: return 4;
    default: return 0;
    }
}

// 4.1.3.1: 64-bit registers are also accessed as two of 32 bits.
bool legal_common_access(uint64_t offset, size_t size) noexcept {
    size_t width = common_width(offset);
    return size == width || (width == 8 && size == 4);
}

void set_part(uint64_t& target, uint64_t offset, size_t size, uint64_t value, uint64_t alignment) noexcept {
    if (size == 8)
        target = value;
    else if (offset % 8 == 0)
        target = (target & 0xFFFF'FFFF'0000'0000) | value;
    else
        target = (target & 0xFFFF'FFFF) | value << 32;
    // 2.7: the alignment of each part of the queue. A driver that breaks it gets the aligned address.
    target = align_down(target, alignment);
}

} // namespace

VirtioPci::VirtioPci(Setup const& setup, std::vector<uint16_t> const& queue_sizes, GuestMemory& memory,
                     Scheduler& scheduler)
    : PciFunction({.vendor = k_pci_vendor,
                   .device = static_cast<uint16_t>(k_pci_device_base + static_cast<uint16_t>(setup.type)),
                   .class_code = setup.pci_class,
                   .revision = k_pci_revision,
                   .subsystem_vendor = k_pci_vendor,
                   // Drivers of firmware tell modern devices by a number from 0x40 up (4.1.2.1).
                   .subsystem = static_cast<uint16_t>(0x40 + static_cast<uint16_t>(setup.type)),
                   .interrupt_pin = 1,
                   .express = false}),
      m_setup(setup), m_scheduler(scheduler), m_self(std::make_shared<VirtioPci*>(this)) {
    for (uint16_t size : queue_sizes) m_queues.emplace_back(memory, size);
    add_memory_bar(k_region_bar, BarKind::Memory64, k_region_size, *this);
    // One vector for configuration changes, one a queue.
    add_msix(static_cast<unsigned>(queue_sizes.size()) + 1, k_msix_bar);
    add_capabilities();
}

uint16_t VirtioPci::add_virtio_capability(CapabilityType type, uint16_t bytes, uint32_t offset, uint32_t size) {
    uint16_t at = add_capability(pci::CapabilityId::VendorSpecific, bytes);
    set_config8(static_cast<uint16_t>(at + CAP_LENGTH), static_cast<uint8_t>(bytes));
    set_config8(static_cast<uint16_t>(at + CAP_TYPE), static_cast<uint8_t>(type));
    set_config8(static_cast<uint16_t>(at + CAP_BAR), k_region_bar);
    set_config32(static_cast<uint16_t>(at + CAP_OFFSET), offset);
    set_config32(static_cast<uint16_t>(at + CAP_SIZE), size);
    return at;
}

void VirtioPci::add_capabilities() {
    add_virtio_capability(CapabilityType::Common, CAP_BYTES, k_common, COMMON_BYTES);
    uint16_t notify = add_virtio_capability(CapabilityType::Notify, CAP_LONG_BYTES, k_notify,
                                            static_cast<uint32_t>(m_queues.size()) * k_notify_multiplier);
    set_config32(static_cast<uint16_t>(notify + CAP_NOTIFY_MULTIPLIER), k_notify_multiplier);
    add_virtio_capability(CapabilityType::Isr, CAP_BYTES, k_isr, 1);
    if (m_setup.config_bytes != 0)
        add_virtio_capability(CapabilityType::Device, CAP_BYTES, k_device, static_cast<uint32_t>(m_setup.config_bytes));
    uint16_t at = add_virtio_capability(CapabilityType::Pci, CAP_LONG_BYTES, 0, 0);
    m_access_capability = at;
    set_config8(static_cast<uint16_t>(at + CAP_BAR), 0, 0xFF);
    set_config32(static_cast<uint16_t>(at + CAP_OFFSET), 0, 0xFFFF'FFFF);
    set_config32(static_cast<uint16_t>(at + CAP_SIZE), 0, 0xFFFF'FFFF);
    set_config32(static_cast<uint16_t>(at + CAP_PCI_DATA), 0, 0xFFFF'FFFF);
}

uint64_t VirtioPci::offered_features() const noexcept {
    return m_setup.features | F_VERSION_1 | F_INDIRECT_DESC;
}

// --- configuration access capability (4.1.4.9) ---

std::optional<std::pair<uint64_t, size_t>> VirtioPci::window_access() const noexcept {
    uint64_t offset = config<uint32_t>(static_cast<uint16_t>(m_access_capability + CAP_OFFSET));
    auto size = config<uint32_t>(static_cast<uint16_t>(m_access_capability + CAP_SIZE));
    if (config<uint8_t>(static_cast<uint16_t>(m_access_capability + CAP_BAR)) != k_region_bar) return std::nullopt;
    if ((size != 1 && size != 2 && size != 4) || offset % size != 0 || offset > k_region_size - size)
        return std::nullopt;
    return std::pair{offset, size_t{size}};
}

void VirtioPci::config_about_to_be_read(uint16_t offset, size_t) noexcept {
    auto data = static_cast<uint16_t>(m_access_capability + CAP_PCI_DATA);
    if (offset != data) return;
    std::array<std::byte, 4> bytes{};
    if (auto access = window_access())
        if (mmio_read(access->first, MutBytes(bytes).first(access->second)) != IoStatus::Ok) fill_all_ones(bytes);
    poke_config<uint32_t>(data, load_le<uint32_t>(bytes));
}

void VirtioPci::config_written(uint16_t offset, size_t) noexcept {
    auto data = static_cast<uint16_t>(m_access_capability + CAP_PCI_DATA);
    if (offset == data) {
        if (auto access = window_access()) {
            auto value = config<uint32_t>(data);
            (void)mmio_write(access->first, object_bytes(value).first(access->second));
        }
        return;
    }
    if (messages_enabled()) set_intx(false);
}

// --- BAR 4 ---

IoStatus VirtioPci::mmio_read(uint64_t offset, MutBytes to) {
    if (offset >= k_notify) {
        std::fill(to.begin(), to.end(), std::byte{0});
        return IoStatus::Ok;
    }
    if (offset >= k_device) {
        uint64_t first = offset - k_device;
        if (first >= m_setup.config_bytes || to.size() > m_setup.config_bytes - first) return IoStatus::NoSuchRegister;
        if (to.size() > 8) return IoStatus::BadSize;
        read_device_config(first, to);
        return IoStatus::Ok;
    }
    if (offset >= k_isr) {
        if (offset != k_isr || to.size() != 1) return IoStatus::NoSuchRegister;
        to[0] = std::byte{m_isr};
        m_isr = 0;
        set_intx(false);
        return IoStatus::Ok;
    }
    return read_common(offset, to);
}

IoStatus VirtioPci::mmio_write(uint64_t offset, Bytes from) {
    if (offset >= k_notify) {
        // 4.1.5.2: the 16-bit queue index is written; which queue it is follows from the address.
        if (from.size() != 2 && from.size() != 4) return IoStatus::BadSize;
        uint64_t index = (offset - k_notify) / k_notify_multiplier;
        if ((offset - k_notify) % k_notify_multiplier != 0 || index >= m_queues.size()) return IoStatus::NoSuchRegister;
        if (queue_usable(static_cast<unsigned>(index))) queue_notified(static_cast<unsigned>(index));
        return IoStatus::Ok;
    }
    if (offset >= k_isr) return IoStatus::NoSuchRegister; // no device here has writable configuration
    return write_common(offset, from);
}

IoStatus VirtioPci::read_common(uint64_t offset, MutBytes to) {
    if (!legal_common_access(offset, to.size())) return IoStatus::BadSize;
    VirtQueue const* queue = m_queue_select < m_queues.size() ? &m_queues[m_queue_select] : nullptr;
    auto feature_half = [](uint64_t features, uint32_t select) -> uint64_t {
        return select < 2 ? features >> (32 * select) & 0xFFFF'FFFF : 0;
    };
    auto address = [&](uint64_t base, uint64_t value) {
        return offset == base && to.size() == 8 ? value : offset == base ? value & 0xFFFF'FFFF : value >> 32;
    };
    uint64_t value = 0;
    switch (offset) {
    case DEVICE_FEATURE_SELECT: value = m_device_feature_select; break;
    case DEVICE_FEATURE: value = feature_half(offered_features(), m_device_feature_select); break;
    case DRIVER_FEATURE_SELECT: value = m_driver_feature_select; break;
    case DRIVER_FEATURE: value = feature_half(m_driver_features, m_driver_feature_select); break;
    case CONFIG_MSIX_VECTOR: value = m_config_vector; break;
    case NUM_QUEUES: value = m_queues.size(); break;
    case DEVICE_STATUS: value = m_status; break;
    case CONFIG_GENERATION: value = 0; break; // device configuration does not change
    case QUEUE_SELECT: value = m_queue_select; break;
    case QUEUE_SIZE: value = queue ? queue->size() : 0; break;
    case QUEUE_MSIX_VECTOR: value = queue ? queue->vector : k_no_vector; break;
    case QUEUE_ENABLE: value = queue && queue->enabled() ? 1 : 0; break;
    case QUEUE_NOTIFY_OFF: value = m_queue_select; break;
    case QUEUE_DESC:
    case QUEUE_DESC + 4: value = queue ? address(QUEUE_DESC, queue->descriptors) : 0; break;
    case QUEUE_DRIVER:
    case QUEUE_DRIVER + 4: value = queue ? address(QUEUE_DRIVER, queue->driver_area) : 0; break;
    case QUEUE_DEVICE:
    case QUEUE_DEVICE + 4: value = queue ? address(QUEUE_DEVICE, queue->device_area) : 0; break;
    default: return IoStatus::NoSuchRegister;
    }
    store_le_sized(to, value);
    return IoStatus::Ok;
}

IoStatus VirtioPci::write_common(uint64_t offset, Bytes from) {
    if (!legal_common_access(offset, from.size())) return IoStatus::BadSize;
    uint64_t value = load_le_sized(from);
    auto vector_or_none = [this](uint64_t wanted) {
        return wanted <= m_queues.size() ? static_cast<uint16_t>(wanted) : k_no_vector; // 4.1.5.1.2
    };
    switch (offset) {
    case DEVICE_FEATURE_SELECT: m_device_feature_select = static_cast<uint32_t>(value); return IoStatus::Ok;
    case DRIVER_FEATURE_SELECT: m_driver_feature_select = static_cast<uint32_t>(value); return IoStatus::Ok;
    case DRIVER_FEATURE:
        // Features are settled with FEATURES_OK (3.1.1).
        if ((m_status & STATUS_FEATURES_OK) == 0 && m_driver_feature_select < 2) {
            unsigned shift = 32 * m_driver_feature_select;
            m_driver_features = (m_driver_features & ~(uint64_t{0xFFFF'FFFF} << shift)) | value << shift;
        }
        return IoStatus::Ok;
    case CONFIG_MSIX_VECTOR: m_config_vector = vector_or_none(value); return IoStatus::Ok;
    case DEVICE_STATUS: write_status(static_cast<uint8_t>(value)); return IoStatus::Ok;
    case QUEUE_SELECT: m_queue_select = static_cast<uint16_t>(value); return IoStatus::Ok;
    case DEVICE_FEATURE:
    case NUM_QUEUES:
    case CONFIG_GENERATION:
    case QUEUE_NOTIFY_OFF: return IoStatus::Ok; // read-only
    default: break;
    }
    if (m_queue_select >= m_queues.size()) return IoStatus::Ok;
    VirtQueue& queue = m_queues[m_queue_select];
    if (offset == QUEUE_MSIX_VECTOR) {
        queue.vector = vector_or_none(value);
        return IoStatus::Ok;
    }
    // The rest is fixed once the queue is enabled (4.1.4.3.2).
    if (queue.enabled()) return IoStatus::Ok;
    switch (offset) {
    case QUEUE_SIZE: queue.set_size(static_cast<uint16_t>(value)); break;
    case QUEUE_ENABLE:
        if (value == 1 && (m_status & STATUS_FEATURES_OK) != 0) queue.enable();
        break;
    case QUEUE_DESC:
    case QUEUE_DESC + 4: set_part(queue.descriptors, offset, from.size(), value, 16); break;
    case QUEUE_DRIVER:
    case QUEUE_DRIVER + 4: set_part(queue.driver_area, offset, from.size(), value, 2); break;
    case QUEUE_DEVICE:
    case QUEUE_DEVICE + 4: set_part(queue.device_area, offset, from.size(), value, 4); break;
    default: return IoStatus::NoSuchRegister;
    }
    return IoStatus::Ok;
}

void VirtioPci::write_status(uint8_t value) {
    if (value == 0) {
        reset_device();
        return;
    }
    uint8_t old = m_status;
    // The driver sets bits and never clears them; NEEDS_RESET is the device's (2.1.1).
    auto added = static_cast<uint8_t>(value & ~old & ~STATUS_NEEDS_RESET);
    if ((added & STATUS_FEATURES_OK) != 0) {
        bool acceptable = (m_driver_features & ~offered_features()) == 0 && (m_driver_features & F_VERSION_1) != 0;
        if (!acceptable) added &= static_cast<uint8_t>(~STATUS_FEATURES_OK);
    }
    // 3.1.1: only after the features are settled.
    if (((old | added) & STATUS_FEATURES_OK) == 0) added &= static_cast<uint8_t>(~STATUS_DRIVER_OK);
    m_status = static_cast<uint8_t>(old | added);
    if ((added & STATUS_DRIVER_OK) != 0) driver_ready();
}

void VirtioPci::reset_device() noexcept {
    for (auto& queue : m_queues) queue.reset();
    m_device_feature_select = m_driver_feature_select = 0;
    m_driver_features = 0;
    m_status = m_isr = 0;
    m_config_vector = k_no_vector;
    m_queue_select = 0;
    set_intx(false);
    driver_reset();
}

void VirtioPci::reset(ResetKind) noexcept {
    reset_device();
    reset_pci();
}

// --- for devices ---

bool VirtioPci::queue_usable(unsigned index) const noexcept {
    return (m_status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)) == STATUS_DRIVER_OK && bus_master() &&
           m_queues[index].enabled();
}

bool VirtioPci::take(unsigned index, VirtQueue::Chain& chain) {
    if (!queue_usable(index)) return false;
    switch (m_queues[index].next(chain)) {
    case VirtQueue::Next::Chain: return true;
    case VirtQueue::Next::Empty: return false;
    case VirtQueue::Next::Broken: needs_reset("a malformed queue"); return false;
    }
    return false;
}

void VirtioPci::finish(unsigned index, VirtQueue::Chain const& chain, uint32_t written) {
    VirtQueue& queue = m_queues[index];
    if (!queue.complete(chain.head, written)) {
        needs_reset("a used ring that is not in RAM");
        return;
    }
    if (queue.wants_interrupt()) interrupt(queue.vector, k_isr_queue);
}

void VirtioPci::needs_reset(std::string_view what) {
    static log::RateLimit limit;
    if (limit.allow()) log::warning("{}: the guest's driver gave {}; the device waits for a reset", unit_name(), what);
    m_status |= STATUS_NEEDS_RESET;
    if ((m_status & STATUS_DRIVER_OK) != 0) interrupt(m_config_vector, k_isr_config);
}

void VirtioPci::interrupt(uint16_t vector, uint8_t isr_bit) noexcept {
    if (messages_enabled()) {
        if (vector != k_no_vector) signal_vector(vector);
        return;
    }
    m_isr |= isr_bit;
    set_intx(true);
}

void VirtioPci::notify_later(unsigned index) {
    m_scheduler.post([weak = std::weak_ptr(m_self), index] {
        auto self = weak.lock();
        if (self && (*self)->queue_usable(index)) (*self)->queue_notified(index);
    });
}

VirtioState VirtioPci::save_virtio() const {
    VirtioState state;
    state.pci = save_pci();
    state.device_feature_select = m_device_feature_select;
    state.driver_feature_select = m_driver_feature_select;
    state.driver_features = m_driver_features;
    state.status = m_status;
    state.isr = m_isr;
    state.config_vector = m_config_vector;
    state.queue_select = m_queue_select;
    for (auto const& queue : m_queues) state.queues.push_back(queue.save());
    return state;
}

Result<void> VirtioPci::check_virtio(VirtioState const& state) const {
    TRY(check_pci(state.pci));
    auto refuse = [this](std::string_view what) {
        return make_error(ErrorCode::Corrupt, "{}: saved state has {}", unit_name(), what);
    };
    if (state.queues.size() != m_queues.size()) return refuse("another number of queues");
    auto vector_valid = [this](uint16_t vector) { return vector == k_no_vector || vector <= m_queues.size(); };
    for (size_t i = 0; i < m_queues.size(); ++i)
        if (!VirtQueue::valid(state.queues[i], m_queues[i].max_size()) || !vector_valid(state.queues[i].vector))
            return refuse("an impossible queue");
    bool features_ok = (state.status & STATUS_FEATURES_OK) != 0;
    if (features_ok && (state.driver_features & ~offered_features()) != 0)
        return refuse("features that are not offered; it comes from a newer version");
    if ((!features_ok && (state.status & STATUS_DRIVER_OK) != 0) || !vector_valid(state.config_vector))
        return refuse("an impossible device status");
    return {};
}

void VirtioPci::restore_virtio(VirtioState const& state) {
    m_device_feature_select = state.device_feature_select;
    m_driver_feature_select = state.driver_feature_select;
    m_driver_features = state.driver_features;
    m_status = state.status;
    m_isr = state.isr;
    m_config_vector = state.config_vector;
    m_queue_select = state.queue_select;
    for (size_t i = 0; i < m_queues.size(); ++i) m_queues[i].restore(state.queues[i]);
    restore_pci(state.pci);
    // A notification may have been lost between save and restore: look at every queue once RAM is back.
    for (unsigned index = 0; index < m_queues.size(); ++index) notify_later(index);
}

} // namespace coffer::devices
