#include "vmm/machine/tpm_pages.hpp"

#include <cerrno>

#include <sys/eventfd.h>
#include <unistd.h>

namespace coffer::vmm {

using devices::crb::Register;

namespace {

constexpr auto k_page = devices::crb::k_block_size;

GuestPhysAddr buffer_address(GuestPhysAddr registers) noexcept {
    return GuestPhysAddr(registers.value() + devices::crb::k_buffer_page);
}

} // namespace

Result<std::unique_ptr<TpmPages>> TpmPages::create(Partition& partition, devices::Scheduler& scheduler,
                                                   devices::TpmBackend& tpm, GuestPhysAddr address) {
    std::unique_ptr<TpmPages> pages(new TpmPages(partition, scheduler, address));
    auto* channels = partition.event_channels();
    if (!channels) {
        pages->m_device = TRY(devices::TpmCrb::create(tpm, scheduler, address));
        return pages;
    }
    pages->m_registers = TRY(HostMapping::create(k_page));
    pages->m_buffer = TRY(HostMapping::create(k_page));
    devices::CrbPages const memory{pages->m_registers.bytes(), pages->m_buffer.bytes()};
    pages->m_device = TRY(devices::TpmCrb::create(tpm, scheduler, address, memory));
    TRY(partition.map({.gpa = address, .size = k_page, .host = memory.registers.data(), .read_only = true}));
    TRY(partition.map({.gpa = buffer_address(address), .size = k_page, .host = memory.buffer.data()}));
    TRY(pages->attach_doorbells(*channels));
    return pages;
}

TpmPages::~TpmPages() {
    auto* channels = m_partition.event_channels();
    if (!channels) return;
    if (m_idle.valid()) {
        (void)channels->detach_doorbell(doorbell(Register::CTRL_REQ, devices::crb::k_request_idle), m_idle.get());
        (void)channels->detach_doorbell(doorbell(Register::CTRL_CANCEL, 0), m_no_cancel.get());
        m_scheduler.unwatch(m_idle.get());
    }
    (void)m_partition.unmap(buffer_address(m_address));
    (void)m_partition.unmap(m_address);
}

Doorbell TpmPages::doorbell(Register name, uint64_t value) const noexcept {
    return {.address = m_address.value() + static_cast<uint64_t>(name), .size = 4, .datamatch = value};
}

Result<void> TpmPages::attach_doorbells(EventChannels& channels) {
    for (auto* event : {&m_idle, &m_no_cancel}) {
        *event = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (!event->valid()) return errno_error(errno, "cannot make an event for the TPM");
    }
    TRY(channels.attach_doorbell(doorbell(Register::CTRL_REQ, devices::crb::k_request_idle), m_idle.get()));
    TRY(channels.attach_doorbell(doorbell(Register::CTRL_CANCEL, 0), m_no_cancel.get()));
    m_device->set_idle_doorbell([fd = m_idle.get()] {
        uint64_t count = 0;
        return ::read(fd, &count, sizeof count) == sizeof count;
    });
    m_scheduler.watch_readable(m_idle.get(), [this] { m_device->look(); });
    return {};
}

} // namespace coffer::vmm
