// A bank of NOR flash over memory that the machine owns. Sources: see cfi_flash_spec.hpp.
//
// In array mode the machine maps the content as a read-only slot, so that reads and fetches do not exit; a write exits
// and may start a command. In command mode reads exit too and give status or identifiers.
//
// Not emulated: the CFI query table, block locks, buffered programming, suspend, lanes of several chips (the low byte
// of a wide write is the command). Deviation: programming replaces the bytes (a real part can only clear bits), which
// is what firmware for virtual flash is written for; operations take no time.
#pragma once

#include <functional>
#include <string>

#include "devices/chipset/cfi_flash_spec.hpp"
#include "devices/core/device.hpp"

namespace coffer::devices {

enum class FlashAccess : uint8_t { ReadOnly, Writable };

class CfiFlash final : public Device, public MmioDevice {
public:
    struct Callbacks {
        // Reads go to the array (true) or to this device (false). Called on changes only; after construction and reset
        // it is the array.
        std::function<void(bool array)> on_mode;
        // Bytes of the content that changed.
        std::function<void(uint64_t offset, uint64_t length)> on_change;
    };

    // `content` is a multiple of `block_size` bytes, which is a power of two, and outlives this.
    CfiFlash(std::string_view name, MutBytes content, size_t block_size, FlashAccess access, Callbacks callbacks);

    bool array_mode() const noexcept { return m_mode == Mode::Array; }

    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;

    std::string_view unit_name() const noexcept override { return m_name; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    enum class Mode : uint8_t { Array, Status, Id };
    enum class Pending : uint8_t { None, Program, Erase };

    void set_mode(Mode mode);
    void command(uint8_t value);
    void program(uint64_t offset, Bytes from);
    void erase(uint64_t offset, uint8_t confirm);

    // Static configuration and glue
    std::string m_name;
    MutBytes m_content;
    size_t m_block_size;
    FlashAccess m_access;
    Callbacks m_callbacks;

    // Volatile state
    Mode m_mode = Mode::Array;
    Pending m_pending = Pending::None;
    uint8_t m_status = cfi::k_status_ready;
};

} // namespace coffer::devices
