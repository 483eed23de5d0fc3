// The PC's pair of 8259A interrupt controllers with the edge/level control registers. Sources: see pic_spec.hpp.
//
// Ports: master_ports() at 0x20 (2), slave_ports() at 0xA0 (2), elcr_ports() at 0x4D0 (2).
// Not emulated: MCS-80/85 mode, ICW1.LTIM (ELCR takes its place), buffered mode, cascade IDs other than the PC's.
// Deviation: an edge request stays latched when its line falls before INTA, so that a pulse is never lost.
//
// Thread rule: port and Device functions take the interrupt lock themselves; the others want it held.
#pragma once

#include <functional>

#include "devices/chipset/interrupt_lock.hpp"
#include "devices/chipset/pic_spec.hpp"
#include "devices/chipset/pic_state.hpp"
#include "devices/chipset/port_face.hpp"

namespace coffer::devices {

class Pic final : public Device {
    IoStatus master_read(uint16_t offset, MutBytes to);
    IoStatus master_write(uint16_t offset, Bytes from);
    IoStatus slave_read(uint16_t offset, MutBytes to);
    IoStatus slave_write(uint16_t offset, Bytes from);
    IoStatus elcr_read(uint16_t offset, MutBytes to);
    IoStatus elcr_write(uint16_t offset, Bytes from);

public:
    // Called with the lock held whenever the INTR output may have changed.
    using Output = std::function<void(InterruptGuard const&, bool asserted)>;

    Pic(InterruptLock& lock, Output output);

    PioDevice& master_ports() noexcept { return m_master_ports; }
    PioDevice& slave_ports() noexcept { return m_slave_ports; }
    PioDevice& elcr_ports() noexcept { return m_elcr_ports; }

    // Input `irq` (0-15, not 2).
    void set_line(InterruptGuard const& guard, unsigned irq, bool asserted);
    bool output(InterruptGuard const&) const noexcept { return m_output; }
    // INTA: the vector, which is the spurious one (input 7) where the request is gone.
    uint8_t acknowledge(InterruptGuard const& guard);

    std::string_view unit_name() const noexcept override { return "pic"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    enum class InitStep : uint8_t { Done, Icw2, Icw3, Icw4 };

    struct Chip {
        uint8_t irr = 0;
        uint8_t isr = 0;
        uint8_t imr = 0;
        uint8_t lines = 0;
        uint8_t elcr = 0;
        uint8_t vector_base = 0;
        uint8_t top_priority = 0; // the input that comes first
        InitStep init_step = InitStep::Done;
        bool expect_icw4 = false;
        bool single = false;
        bool read_isr = false;
        bool poll = false;
        bool special_mask = false;
        bool auto_eoi = false;
        bool rotate_on_auto_eoi = false;
        bool special_fully_nested = false;

        void set_line(unsigned input, bool asserted) noexcept;
        // The input to be served now, or -1.
        int pending(bool is_master) const noexcept;
        void acknowledge(unsigned input) noexcept;
        void write_command(uint8_t value) noexcept;
        void write_icw1(uint8_t value) noexcept;
        void write_ocw2(uint8_t value) noexcept;
        void write_data(uint8_t value) noexcept;
        unsigned rank_of_first(uint8_t inputs) const noexcept;
        void end_of_interrupt(uint8_t inputs, bool rotate) noexcept;
        PicChipState saved() const;
    };
    static Result<Chip> loaded(PicChipState const& state, uint8_t elcr_mask);

    IoStatus read(Chip& chip, uint16_t offset, MutBytes to);
    IoStatus write(Chip& chip, uint16_t offset, Bytes from);
    void update(InterruptGuard const& guard);

    // Glue
    InterruptLock& m_lock;
    Output m_report_output;
    PortFace<Pic, &Pic::master_read, &Pic::master_write> m_master_ports{*this};
    PortFace<Pic, &Pic::slave_read, &Pic::slave_write> m_slave_ports{*this};
    PortFace<Pic, &Pic::elcr_read, &Pic::elcr_write> m_elcr_ports{*this};

    // Volatile state
    Chip m_master;
    Chip m_slave;
    bool m_output = false;
};

} // namespace coffer::devices
