// One of several port or memory ranges of a device, as the bus sees it: forwards to a pair of member functions. For
// devices whose registers lie in ranges apart (8259A, fw_cfg, MC146818).
#pragma once

#include "devices/core/device.hpp"

namespace coffer::devices {

template <class Owner, IoStatus (Owner::*Read)(uint16_t, MutBytes), IoStatus (Owner::*Write)(uint16_t, Bytes)>
class PortFace final : public PioDevice {
public:
    explicit PortFace(Owner& owner) : m_owner(owner) {}
    IoStatus pio_read(uint16_t offset, MutBytes to) override { return (m_owner.*Read)(offset, to); }
    IoStatus pio_write(uint16_t offset, Bytes from) override { return (m_owner.*Write)(offset, from); }

private:
    Owner& m_owner;
};

} // namespace coffer::devices
