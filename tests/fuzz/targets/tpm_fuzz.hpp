// A guest that does what the input says to a TPM's registers, with a real libtpms behind them.
//
// The input is a sequence of operations, one byte each (modulo 16), with their operands:
//   0-3   write of 1, 2, 4, 8 bytes: u16 offset, bytes        4   write: u8 size (modulo 17), u16 offset, bytes
//   5-8   read of 1, 2, 4, 8 bytes: u16 offset                9   read: u8 size (modulo 17), u16 offset
//   10    a whole command as a driver sends it: u16 length, bytes
//   11 reset   12 save and restore   13 a millisecond passes   14 the store fails from now on, or works again
//   15 the guest waits a moment
// Whatever came: saved state is accepted back, and after a reset the TPM starts up.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>

#include "devices/core/bus.hpp"
#include "devices/tpm/libtpms_backend.hpp"
#include "devices/tpm/tpm_command.hpp"
#include "tests/support/fakes.hpp"

namespace coffer::tests {

class FuzzInput {
public:
    explicit FuzzInput(Bytes bytes) : m_rest(bytes) {}
    bool empty() const noexcept { return m_rest.empty(); }
    // Short where the input ends.
    Bytes take(size_t size) {
        auto taken = m_rest.first(std::min(size, m_rest.size()));
        m_rest = m_rest.subspan(taken.size());
        return taken;
    }
    template <class T>
    T number() {
        std::array<std::byte, sizeof(T)> bytes{};
        auto taken = take(sizeof(T));
        std::copy(taken.begin(), taken.end(), bytes.begin());
        return load_le<T>(bytes);
    }

private:
    Bytes m_rest;
};

// `Front` knows the register interface: its type, create(), window size, and a driver's way to send a command.
template <class Front>
class TpmFuzzer {
public:
    static void run(Bytes bytes) {
        TpmFuzzer fuzzer;
        FuzzInput input(bytes);
        for (unsigned steps = 0; steps < k_max_steps && !input.empty(); ++steps) fuzzer.step(input);
        fuzzer.finish();
    }

private:
    static constexpr unsigned k_max_steps = 512;
    static constexpr GuestPhysAddr k_address{0xFED4'0000};

    // One TPM is manufactured; every input starts with a copy of it.
    static ByteVector const& new_tpm() {
        static ByteVector const state = [] {
            FakeNvStore store;
            auto tpm = devices::LibtpmsBackend::create(std::nullopt, devices::TpmManufacture::Yes, store);
            COFFER_ASSERT(tpm.has_value());
            return store.content;
        }();
        return state;
    }

    TpmFuzzer()
        : m_tpm(std::move(devices::LibtpmsBackend::create(new_tpm(), devices::TpmManufacture::No, m_store).value())),
          m_device(Front::create(*m_tpm, m_scheduler, k_address)) {
        COFFER_ASSERT(m_bus.attach(k_address, Front::k_size, *m_device).has_value());
        m_device->reset(devices::ResetKind::Cold);
    }

    void write(uint64_t offset, Bytes bytes) {
        // As the machine does; what the bus refuses goes to the device nevertheless, which must bear it.
        auto hit = m_bus.find(GuestPhysAddr(k_address.value() + offset), bytes.size());
        (void)m_device->mmio_write(hit ? hit->offset : offset, bytes);
        m_device->wait_after_write();
    }
    void read(uint64_t offset, size_t size) {
        std::array<std::byte, 32> buffer;
        buffer.fill(std::byte{0x5A});
        auto status = m_device->mmio_read(offset, MutBytes(buffer).first(size));
        if (status != devices::IoStatus::Ok)
            COFFER_ASSERT(std::all_of(buffer.begin(), buffer.begin() + static_cast<ptrdiff_t>(size),
                                      [](std::byte b) { return b == std::byte{0xFF}; }));
        COFFER_ASSERT(std::all_of(buffer.begin() + static_cast<ptrdiff_t>(size), buffer.end(),
                                  [](std::byte b) { return b == std::byte{0x5A}; }));
    }
    template <class T>
    T get(uint64_t offset) {
        std::array<std::byte, sizeof(T)> bytes{};
        COFFER_ASSERT(m_device->mmio_read(offset, bytes) == devices::IoStatus::Ok);
        return load_le<T>(bytes);
    }
    template <class T>
    void put(uint64_t offset, std::type_identity_t<T> value) {
        write(offset, object_bytes(value));
    }
    // Waits for a command, which a failing store may hold up for good.
    bool wait() {
        using namespace std::chrono_literals;
        auto deadline = std::chrono::steady_clock::now() + (m_store.fail ? 2ms : 60'000ms);
        while (!m_front.ended(*this)) {
            if (std::chrono::steady_clock::now() > deadline) return false;
            m_scheduler.advance(k_ns_per_ms);
            std::this_thread::sleep_for(20us);
        }
        return true;
    }
    ByteVector transact(Bytes command) {
        m_front.begin(*this, command);
        if (!wait()) {
            COFFER_ASSERT(m_store.fail);
            return {};
        }
        auto response = m_front.end(*this);
        auto header = devices::parse_tpm_header(response);
        COFFER_ASSERT(header && header->size == response.size());
        return response;
    }

    void step(FuzzInput& input) {
        unsigned operation = input.number<uint8_t>() % 16;
        switch (operation) {
        case 0:
        case 1:
        case 2:
        case 3: {
            uint64_t offset = input.number<uint16_t>() % (Front::k_size + 16);
            ByteVector bytes(size_t{1} << operation);
            auto given = input.take(bytes.size());
            std::copy(given.begin(), given.end(), bytes.begin());
            write(offset, bytes);
            break;
        }
        case 4: {
            ByteVector bytes(input.number<uint8_t>() % 17);
            uint64_t offset = input.number<uint16_t>() % (Front::k_size + 16);
            auto given = input.take(bytes.size());
            std::copy(given.begin(), given.end(), bytes.begin());
            write(offset, bytes);
            break;
        }
        case 5:
        case 6:
        case 7:
        case 8: read(input.number<uint16_t>() % (Front::k_size + 16), size_t{1} << (operation - 5)); break;
        case 9: {
            size_t size = input.number<uint8_t>() % 17;
            read(input.number<uint16_t>() % (Front::k_size + 16), size);
            break;
        }
        case 10: {
            auto command = input.take(input.number<uint16_t>());
            if (command.size() >= devices::k_tpm_header_size) transact(command);
            break;
        }
        case 11: m_device->reset(devices::ResetKind::Warm); break;
        case 12: {
            if (m_store.fail) break; // a held response takes a save to its time limit
            auto state = m_device->save();
            COFFER_ASSERT(state.has_value());
            COFFER_ASSERT(m_device->restore(*state).has_value());
            break;
        }
        case 13: m_scheduler.advance(k_ns_per_ms); break;
        case 14: m_store.fail = !m_store.fail; break;
        case 15: m_device->wait_after_write(); break;
        default: break;
        }
    }

    void finish() {
        m_store.fail = false;
        m_device->reset(devices::ResetKind::Warm);
        auto startup = devices::TpmCommand(devices::TpmTag::NoSessions, devices::TpmCommandCode::Startup).u16(0).take();
        auto header = devices::parse_tpm_header(transact(startup));
        COFFER_ASSERT(header && header->code == 0);
    }

    friend Front;

    // Read by the TPM's thread while the guest's flips it.
    struct Store final : devices::NvStore {
        Result<void> commit(Bytes) override {
            if (fail) return Error(ErrorCode::NoSpace, "fake store is full");
            return {};
        }
        std::atomic<bool> fail{false};
    };

    Store m_store;
    ManualScheduler m_scheduler;
    std::unique_ptr<devices::LibtpmsBackend> m_tpm;
    std::unique_ptr<typename Front::Device> m_device;
    devices::MmioBus m_bus;
    Front m_front;
};

} // namespace coffer::tests
