#include "vmm/machine/io_dispatch.hpp"

namespace coffer::vmm {

using devices::IoStatus;

namespace {

std::string_view describe(IoStatus status) noexcept {
    switch (status) {
    case IoStatus::Ok: return "ok";
    case IoStatus::NoSuchRegister: return "no such register";
    case IoStatus::BadSize: return "bad size";
    case IoStatus::Unaligned: return "unaligned";
    }
    return "?";
}

} // namespace

void IoDispatch::read_ports(uint16_t port, MutBytes to) {
    if (auto hit = m_pio.find(IoPort{port}, to.size())) {
        if (hit->target->pio_read(hit->offset, to) != IoStatus::Ok) fill_all_ones(to);
        return;
    }
    if (to.size() > 1) {
        // Ports wrap at 64 Ki, as on the bus.
        for (size_t i = 0; i < to.size(); ++i) read_ports(static_cast<uint16_t>(port + i), to.subspan(i, 1));
        return;
    }
    fill_all_ones(to);
    if (m_log_limit.allow()) log::debug("unclaimed read of port {:#x}", port);
}

void IoDispatch::write_ports(uint16_t port, Bytes from) {
    if (auto hit = m_pio.find(IoPort{port}, from.size())) {
        auto status = hit->target->pio_write(hit->offset, from);
        if (status != IoStatus::Ok && m_log_limit.allow())
            log::debug("{}-byte write to port {:#x} refused: {}", from.size(), port, describe(status));
        return;
    }
    if (from.size() > 1) {
        for (size_t i = 0; i < from.size(); ++i) write_ports(static_cast<uint16_t>(port + i), from.subspan(i, 1));
        return;
    }
    if (m_log_limit.allow()) log::debug("unclaimed write to port {:#x}", port);
}

void IoDispatch::pio_read(uint16_t port, MutBytes to) noexcept {
    std::lock_guard lock(m_lock);
    read_ports(port, to);
}

void IoDispatch::pio_write(uint16_t port, Bytes from) noexcept {
    std::lock_guard lock(m_lock);
    write_ports(port, from);
}

void IoDispatch::mmio_read(GuestPhysAddr from, MutBytes to) noexcept {
    std::lock_guard lock(m_lock);
    auto hit = m_mmio.find(from, to.size());
    if (!hit || hit->target->mmio_read(hit->offset, to) != IoStatus::Ok) {
        fill_all_ones(to);
        if (m_log_limit.allow()) log::debug("read of {} bytes at {:#x} gives all ones", to.size(), from.value());
    }
}

void IoDispatch::mmio_write(GuestPhysAddr to, Bytes from) noexcept {
    devices::MmioDevice* target = nullptr;
    {
        std::lock_guard lock(m_lock);
        auto hit = m_mmio.find(to, from.size());
        IoStatus status = hit ? hit->target->mmio_write(hit->offset, from) : IoStatus::NoSuchRegister;
        if (status != IoStatus::Ok) {
            if (m_log_limit.allow())
                log::debug("write of {} bytes at {:#x} dropped: {}", from.size(), to.value(), describe(status));
            return;
        }
        target = hit->target;
    }
    target->wait_after_write();
}

} // namespace coffer::vmm
