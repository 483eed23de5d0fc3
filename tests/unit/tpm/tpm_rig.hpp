// Guest drivers for the TPM's register interfaces, and a machine around them: what Linux's tpm_crb and tpm_tis_core and
// edk2's Tpm2DeviceLibDTpm do, register by register.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include <gtest/gtest.h>

#include "devices/core/bus.hpp"
#include "devices/tpm/crb.hpp"
#include "devices/tpm/libtpms_backend.hpp"
#include "devices/tpm/tis.hpp"
#include "devices/tpm/tpm_command.hpp"
#include "tests/support/fakes.hpp"

namespace coffer::tests {

constexpr GuestPhysAddr k_tpm_address{0xFED4'0000};
constexpr auto k_patience = std::chrono::seconds(60);

// Waits as a polling driver does.
inline bool poll_until(std::function<bool()> const& condition) {
    auto deadline = std::chrono::steady_clock::now() + k_patience;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > deadline) return false;
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return true;
}

// The guest's side of the bus. As in the machine, wait_after_write() follows each write.
class GuestBus {
public:
    void attach(devices::MmioDevice& device, uint64_t size) {
        ASSERT_TRUE(m_bus.attach(k_tpm_address, size, device).has_value());
    }
    template <class T>
    T read(uint64_t offset) {
        std::array<std::byte, sizeof(T)> bytes{};
        auto hit = m_bus.find(GuestPhysAddr(k_tpm_address.value() + offset), sizeof(T));
        if (!hit || hit->target->mmio_read(hit->offset, bytes) != devices::IoStatus::Ok) fill_all_ones(bytes);
        return load_le<T>(bytes);
    }
    template <class T>
    void write(uint64_t offset, std::type_identity_t<T> value) {
        std::array<std::byte, sizeof(T)> bytes{};
        store_le<T>(bytes, 0, value);
        auto hit = m_bus.find(GuestPhysAddr(k_tpm_address.value() + offset), sizeof(T));
        if (!hit) return;
        (void)hit->target->mmio_write(hit->offset, bytes);
        hit->target->wait_after_write();
    }

private:
    devices::MmioBus m_bus;
};

// edk2 PtpCrbTpmCommand, Linux crb_send and crb_recv.
class CrbDriver {
public:
    explicit CrbDriver(GuestBus& bus) : m_bus(bus) {}

    bool request_locality() {
        m_bus.write<uint32_t>(0x08, 1);
        return poll_until([&] { return (m_bus.read<uint32_t>(0x0C) & 1) != 0; });
    }
    void relinquish() { m_bus.write<uint32_t>(0x08, 2); }
    bool go_ready() {
        m_bus.write<uint32_t>(0x40, 1);
        return poll_until([&] { return m_bus.read<uint32_t>(0x40) == 0; }) && (m_bus.read<uint32_t>(0x44) & 2) == 0;
    }
    bool go_idle() {
        m_bus.write<uint32_t>(0x40, 2);
        return poll_until([&] { return m_bus.read<uint32_t>(0x40) == 0; }) && (m_bus.read<uint32_t>(0x44) & 2) != 0;
    }
    // Byte by byte, and the control area rewritten, as edk2 does.
    void put(Bytes command) {
        for (size_t i = 0; i < command.size() && i < 3968; ++i)
            m_bus.write<uint8_t>(0x80 + i, std::to_integer<uint8_t>(command[i]));
        m_bus.write<uint32_t>(0x60, 0);
        m_bus.write<uint32_t>(0x5C, 0xFED4'0080);
        m_bus.write<uint32_t>(0x58, 0xF80);
        m_bus.write<uint64_t>(0x68, 0xFED4'0080);
        m_bus.write<uint32_t>(0x64, 0xF80);
    }
    void start() { m_bus.write<uint32_t>(0x4C, 1); }
    bool running() { return m_bus.read<uint32_t>(0x4C) != 0; }
    void cancel(bool on) { m_bus.write<uint32_t>(0x48, on ? 1 : 0); }
    // Dwords, as Linux's memcpy_fromio does.
    ByteVector get() {
        ByteVector head(12);
        for (size_t i = 0; i < head.size(); i += 4) store_le<uint32_t>(head, i, m_bus.read<uint32_t>(0x80 + i));
        size_t size = std::min<size_t>(load_be<uint32_t>(head, 2), 3968);
        ByteVector all(align_up(size, 4));
        for (size_t i = 0; i < all.size(); i += 4) store_le<uint32_t>(all, i, m_bus.read<uint32_t>(0x80 + i));
        all.resize(size);
        return all;
    }
    bool begin(Bytes command) {
        if (!request_locality() || !go_ready()) return false;
        put(command);
        cancel(false);
        start();
        return true;
    }
    ByteVector end() {
        EXPECT_TRUE(poll_until([&] { return !running(); }));
        auto response = get();
        EXPECT_TRUE(go_idle());
        relinquish();
        return response;
    }
    ByteVector transact(Bytes command) {
        EXPECT_TRUE(begin(command));
        return end();
    }

private:
    GuestBus& m_bus;
};

// Linux tpm_tis_core, edk2 Tpm2TisTpmCommand; one locality.
class TisDriver {
public:
    explicit TisDriver(GuestBus& bus, unsigned locality = 0) : m_bus(bus), m_base(locality * 0x1000U) {}

    uint8_t access() { return m_bus.read<uint8_t>(m_base); }
    void set_access(uint8_t value) { m_bus.write<uint8_t>(m_base, value); }
    uint32_t status() { return m_bus.read<uint32_t>(m_base + 0x18); }
    void set_status(uint8_t value) { m_bus.write<uint8_t>(m_base + 0x18, value); }
    bool request_locality() {
        set_access(0x02);
        return poll_until([&] { return (access() & 0xA0) == 0xA0; });
    }
    void relinquish() { set_access(0x20); }
    bool make_ready() {
        if ((status() & 0x40) == 0) set_status(0x40);
        return poll_until([&] { return (status() & 0xC0) == 0xC0; });
    }
    // All but the last byte in bursts, as Linux does, then the last.
    bool put(Bytes command) {
        for (size_t sent = 0; sent < command.size();) {
            size_t burst = (status() >> 8) & 0xFFFF;
            if (burst == 0) return false;
            size_t bytes = std::min({burst, command.size() - sent, std::max<size_t>(command.size() - 1 - sent, 1)});
            for (; bytes > 0; --bytes) m_bus.write<uint8_t>(m_base + 0x24, std::to_integer<uint8_t>(command[sent++]));
            if (sent < command.size() && (status() & 0x88) != 0x88) return false;
        }
        return (status() & 0x88) == 0x80;
    }
    void go() { set_status(0x20); }
    bool has_response() { return (status() & 0x90) == 0x90; }
    ByteVector read_some(size_t size) {
        ByteVector bytes;
        while (bytes.size() < size) {
            size_t burst = (status() >> 8) & 0xFFFF;
            if (!has_response() || burst == 0) break;
            for (size_t i = std::min(burst, size - bytes.size()); i > 0; --i)
                bytes.push_back(static_cast<std::byte>(m_bus.read<uint8_t>(m_base + 0x24)));
        }
        return bytes;
    }
    ByteVector get() {
        auto response = read_some(10);
        if (response.size() < 10) return response;
        append(response, read_some(load_be<uint32_t>(response, 2) - 10));
        return response;
    }

private:
    GuestBus& m_bus;
    uint64_t m_base;
};

// A FakeNvStore for the TPM's thread and the test's at once.
class SharedNvStore final : public devices::NvStore {
public:
    Result<void> commit(Bytes bytes) override {
        if (fail) {
            ++refusals;
            return Error(ErrorCode::NoSpace, "fake store is full");
        }
        std::lock_guard lock(m_mutex);
        m_content.assign(bytes.begin(), bytes.end());
        return {};
    }
    ByteVector content() const {
        std::lock_guard lock(m_mutex);
        return m_content;
    }
    std::atomic<bool> fail{false};
    std::atomic<unsigned> refusals{0};

private:
    mutable std::mutex m_mutex;
    ByteVector m_content;
};

// A machine with a real TPM. power_cycle() is what a power button does: all but the store is new.
class TpmMachine {
public:
    virtual ~TpmMachine() = default;
    void power_cycle() {
        unplug();
        m_tpm.reset();
        power_on(devices::TpmManufacture::No);
    }
    ManualScheduler& scheduler() { return m_scheduler; }
    GuestBus& bus() { return *m_bus; }
    ByteVector transact(Bytes command) {
        begin(command);
        return end();
    }
    virtual devices::Device& device() = 0;
    virtual void begin(Bytes command) = 0;
    virtual bool running() = 0;
    virtual void cancel() = 0;
    // What a driver does with a command it no longer waits for.
    virtual void give_up() = 0;
    virtual ByteVector end() = 0;

protected:
    explicit TpmMachine(SharedNvStore& store) : m_store(store) {}
    void power_on(devices::TpmManufacture manufacture) {
        std::optional<ByteVector> stored;
        if (manufacture == devices::TpmManufacture::No) stored = m_store.content();
        auto tpm = devices::LibtpmsBackend::create(std::move(stored), manufacture, m_store);
        ASSERT_TRUE(tpm) << tpm.error().message();
        m_tpm = *std::move(tpm);
        m_bus = std::make_unique<GuestBus>();
        plug(*m_tpm);
        device().reset(devices::ResetKind::Cold);
    }
    virtual void plug(devices::TpmBackend& tpm) = 0;
    virtual void unplug() = 0;

private:
    SharedNvStore& m_store;
    ManualScheduler m_scheduler;
    std::unique_ptr<devices::LibtpmsBackend> m_tpm;
    std::unique_ptr<GuestBus> m_bus;
};

class CrbMachine final : public TpmMachine {
public:
    explicit CrbMachine(SharedNvStore& store) : TpmMachine(store) { power_on(devices::TpmManufacture::Yes); }
    devices::Device& device() override { return *m_crb; }
    void begin(Bytes command) override { ASSERT_TRUE(m_driver->begin(command)); }
    bool running() override { return m_driver->running(); }
    void cancel() override { m_driver->cancel(true); }
    void give_up() override { ASSERT_TRUE(m_driver->go_idle()); }
    ByteVector end() override { return m_driver->end(); }

protected:
    void plug(devices::TpmBackend& tpm) override {
        auto crb = devices::TpmCrb::create(tpm, scheduler(), k_tpm_address);
        ASSERT_TRUE(crb) << crb.error().message();
        m_crb = *std::move(crb);
        bus().attach(*m_crb, devices::crb::k_window_size);
        m_driver = std::make_unique<CrbDriver>(bus());
    }
    void unplug() override { m_crb.reset(); }

private:
    std::unique_ptr<devices::TpmCrb> m_crb;
    std::unique_ptr<CrbDriver> m_driver;
};

class TisMachine final : public TpmMachine {
public:
    explicit TisMachine(SharedNvStore& store) : TpmMachine(store) { power_on(devices::TpmManufacture::Yes); }
    devices::Device& device() override { return *m_tis; }
    void begin(Bytes command) override {
        ASSERT_TRUE(m_driver->request_locality());
        ASSERT_TRUE(m_driver->make_ready());
        ASSERT_TRUE(m_driver->put(command));
        m_driver->go();
    }
    bool running() override { return !m_driver->has_response(); }
    void cancel() override { bus().write<uint8_t>(0x1B, 1); }
    void give_up() override { ASSERT_TRUE(m_driver->make_ready()); }
    ByteVector end() override {
        EXPECT_TRUE(poll_until([&] { return !running(); }));
        auto response = m_driver->get();
        EXPECT_FALSE(m_driver->has_response());
        m_driver->set_status(0x40);
        m_driver->relinquish();
        return response;
    }

protected:
    void plug(devices::TpmBackend& tpm) override {
        auto tis = devices::TpmTis::create(tpm, scheduler());
        ASSERT_TRUE(tis) << tis.error().message();
        m_tis = *std::move(tis);
        bus().attach(*m_tis, devices::tis::k_window_size);
        m_driver = std::make_unique<TisDriver>(bus());
    }
    void unplug() override { m_tis.reset(); }

private:
    std::unique_ptr<devices::TpmTis> m_tis;
    std::unique_ptr<TisDriver> m_driver;
};

// Commands, as TPM 2.0 Library 1.59 Part 3 lays them out.
namespace commands {

using devices::TpmCommand;
using devices::TpmCommandCode;
using devices::TpmTag;

inline ByteVector startup() {
    return TpmCommand(TpmTag::NoSessions, TpmCommandCode::Startup).u16(0).take();
}
inline ByteVector shutdown() {
    return TpmCommand(TpmTag::NoSessions, TpmCommandCode::Shutdown).u16(0).take();
}
inline ByteVector self_test() {
    return TpmCommand(TpmTag::NoSessions, TpmCommandCode::SelfTest).u8(1).take();
}
inline ByteVector get_random(uint16_t count) {
    return TpmCommand(TpmTag::NoSessions, TpmCommandCode::GetRandom).u16(count).take();
}
constexpr uint16_t k_sha1 = 0x0004;
constexpr uint16_t k_sha256 = 0x000B;
constexpr uint16_t k_sha384 = 0x000C;

inline ByteVector pcr_read(uint16_t bank, uint8_t pcr) {
    std::array<std::byte, 3> select{};
    select[pcr / 8] = static_cast<std::byte>(1U << (pcr % 8));
    return TpmCommand(TpmTag::NoSessions, TpmCommandCode::PcrRead).u32(1).u16(bank).u8(3).bytes(select).take();
}
inline ByteVector pcr_extend(uint32_t pcr, uint16_t bank, Bytes digest) {
    return TpmCommand(TpmTag::Sessions, TpmCommandCode::PcrExtend)
        .u32(pcr)
        .empty_password()
        .u32(1)
        .u16(bank)
        .bytes(digest)
        .take();
}
constexpr uint32_t k_nv_index = 0x0180'0001;
inline ByteVector nv_define(uint16_t size) {
    // AUTHREAD, AUTHWRITE, OWNERREAD, OWNERWRITE, NO_DA
    return TpmCommand(TpmTag::Sessions, TpmCommandCode::NvDefineSpace)
        .u32(devices::k_tpm_rh_owner)
        .empty_password()
        .u16(0)
        .u16(14)
        .u32(k_nv_index)
        .u16(k_sha256)
        .u32(0x0206'0006)
        .u16(0)
        .u16(size)
        .take();
}
inline ByteVector nv_write(Bytes data) {
    return TpmCommand(TpmTag::Sessions, TpmCommandCode::NvWrite)
        .u32(devices::k_tpm_rh_owner)
        .u32(k_nv_index)
        .empty_password()
        .sized(data)
        .u16(0)
        .take();
}
inline ByteVector nv_read(uint16_t size) {
    return TpmCommand(TpmTag::Sessions, TpmCommandCode::NvRead)
        .u32(devices::k_tpm_rh_owner)
        .u32(k_nv_index)
        .empty_password()
        .u16(size)
        .u16(0)
        .take();
}
// An ECC P-256 storage key (fast) or an RSA key of `rsa_bits` (slow) under the owner's hierarchy.
inline ByteVector create_primary(uint16_t rsa_bits = 0) {
    TpmCommand area(TpmTag::NoSessions, TpmCommandCode::CreatePrimary);
    // TPMT_PUBLIC: restricted, decrypt, fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth
    area.u16(rsa_bits ? 0x0001 : 0x0023).u16(k_sha256).u32(0x0003'0072).u16(0);
    area.u16(0x0006).u16(128).u16(0x0043); // AES-128-CFB
    if (rsa_bits)
        area.u16(0x0010).u16(rsa_bits).u32(0).u16(0);
    else
        area.u16(0x0010).u16(0x0003).u16(0x0010).u16(0).u16(0);
    auto public_area = area.take();
    return TpmCommand(TpmTag::Sessions, TpmCommandCode::CreatePrimary)
        .u32(devices::k_tpm_rh_owner)
        .empty_password()
        .u16(4)
        .u16(0)
        .u16(0)
        .sized(Bytes(public_area).subspan(devices::k_tpm_header_size))
        .u16(0)
        .u32(0)
        .take();
}
constexpr uint32_t k_persistent = 0x8100'0001;
inline ByteVector make_persistent(uint32_t object) {
    return TpmCommand(TpmTag::Sessions, TpmCommandCode::EvictControl)
        .u32(devices::k_tpm_rh_owner)
        .u32(object)
        .empty_password()
        .u32(k_persistent)
        .take();
}
inline ByteVector read_public(uint32_t object) {
    return TpmCommand(TpmTag::NoSessions, TpmCommandCode::ReadPublic).u32(object).take();
}

} // namespace commands

inline uint32_t response_code(Bytes response) {
    auto header = devices::parse_tpm_header(response);
    return header ? header->code : UINT32_MAX;
}
inline bool succeeded(Bytes response) {
    return response_code(response) == 0;
}
constexpr uint32_t rc(devices::TpmResponseCode code) {
    return static_cast<uint32_t>(code);
}

} // namespace coffer::tests
