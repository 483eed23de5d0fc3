// How often a guest's driver leaves the vCPU for a command of the TPM, counted with the access pattern of Linux'
// tpm_crb (drivers/char/tpm/tpm_crb.c: request locality, cmdReady, withdraw a cancel, send, start, look, receive,
// goIdle, relinquish; a look after each request).
#include <gtest/gtest.h>

#include "devices/tpm/tpm_command.hpp"
#include "tests/support/fake_tpm.hpp"
#include "tests/support/fakes.hpp"
#include "tests/unit/kvm/micro_guest.hpp"
#include "vmm/machine/tpm_pages.hpp"

namespace coffer::tests {
namespace {

constexpr GuestPhysAddr k_tpm{0xFED4'0000};
constexpr uint64_t k_command = 0x3000;
constexpr uint64_t k_response = 0x4000;

TEST(TpmExits, ACommandTakesFour) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    ManualScheduler scheduler;
    FakeTpm tpm;
    auto pages = must(vmm::TpmPages::create(*guest.partition, scheduler, tpm, k_tpm));
    auto& crb = pages->device();
    crb.reset(devices::ResetKind::Cold);

    unsigned exits = 0;
    guest.io.on_access = [&](Access const& access) {
        if (access.address >= k_tpm.value() && access.address < k_tpm.value() + 0x2000) {
            ++exits;
            EXPECT_EQ(access.kind, Access::Kind::MmioWrite) << access.address;
            std::array<std::byte, 8> bytes{};
            store_le<uint64_t>(bytes, 0, access.value);
            (void)crb.mmio_write(access.address - k_tpm.value(), Bytes(bytes).first(access.size));
            crb.wait_after_write();
        }
        guest.stop_at_end(access);
    };
    auto command = devices::TpmCommand(devices::TpmTag::NoSessions, devices::TpmCommandCode::GetRandom).u16(8).take();
    ASSERT_EQ(command.size(), 12U);
    std::copy(command.begin(), command.end(), guest.ram.data() + k_command);
    // clang-format off
    guest.enter(user_mode, {
        0xBB, 0x00, 0x00, 0xD4, 0xFE,              // mov ebx, 0xFED40000
        0xC7, 0x43, 0x08, 0x01, 0x00, 0x00, 0x00,  // mov dword [rbx+LOC_CTRL], 1
        0x8B, 0x03, 0x24, 0x82, 0x3C, 0x82,        // mov eax, [rbx]; and al, 0x82; cmp al, 0x82
        0x75, 0xF8,                                // jne: until assigned and valid
        0xC7, 0x43, 0x40, 0x01, 0x00, 0x00, 0x00,  // mov dword [rbx+CTRL_REQ], 1
        0x8B, 0x43, 0x40, 0xA8, 0x01, 0x75, 0xF9,  // mov eax, [rbx+CTRL_REQ]; test al, 1; jnz
        0xC7, 0x43, 0x48, 0x00, 0x00, 0x00, 0x00,  // mov dword [rbx+CTRL_CANCEL], 0
        0x8B, 0x7B, 0x5C,                          // mov edi, [rbx+CTRL_CMD_LADDR]
        0xBE, 0x00, 0x30, 0x00, 0x00,              // mov esi, 0x3000
        0xB9, 0x0C, 0x00, 0x00, 0x00,              // mov ecx, 12
        0xFC, 0xF3, 0xA4,                          // cld; rep movsb
        0xC7, 0x43, 0x4C, 0x01, 0x00, 0x00, 0x00,  // mov dword [rbx+CTRL_START], 1
        0x8B, 0x43, 0x4C, 0xA8, 0x01, 0x75, 0xF9,  // mov eax, [rbx+CTRL_START]; test al, 1; jnz
        0x8B, 0x43, 0x44,                          // mov eax, [rbx+CTRL_STS]
        0x8B, 0x73, 0x68,                          // mov esi, [rbx+CTRL_RSP_LADDR]
        0xBF, 0x00, 0x40, 0x00, 0x00,              // mov edi, 0x4000
        0xB9, 0x16, 0x00, 0x00, 0x00,              // mov ecx, 22
        0xF3, 0xA4,                                // rep movsb
        0xC7, 0x43, 0x40, 0x02, 0x00, 0x00, 0x00,  // mov dword [rbx+CTRL_REQ], 2
        0x8B, 0x43, 0x40, 0xA8, 0x02, 0x75, 0xF9,  // mov eax, [rbx+CTRL_REQ]; test al, 2; jnz
        0xC7, 0x43, 0x08, 0x02, 0x00, 0x00, 0x00,  // mov dword [rbx+LOC_CTRL], 2
        0x8B, 0x03, 0xA8, 0x02, 0x75, 0xFA,        // mov eax, [rbx]; test al, 2; jnz
        0xB8, 0x00, 0x0F, 0xB0, 0xFE,              // mov eax, 0xFEB00F00
        0xC6, 0x00, 0x01,                          // mov byte [rax], 1
    });
    // clang-format on
    guest.run_to_end();
    EXPECT_EQ(tpm.executed, 1U);
    // The fake echoes the command behind its header.
    auto response = std::as_bytes(guest.ram.bytes()).subspan(k_response, 22);
    EXPECT_EQ(load_be<uint32_t>(response, devices::k_tpm_code_offset), 0U);
    EXPECT_TRUE(std::equal(command.begin(), command.end(), response.begin() + 10));
    RecordProperty("exits", static_cast<int>(exits));
    EXPECT_LE(exits, 4U);
    // The doorbell's request is seen by whoever looks next.
    std::array<std::byte, 4> status{};
    EXPECT_EQ(crb.mmio_read(0x44, status), devices::IoStatus::Ok);
    EXPECT_EQ(load_le<uint32_t>(status), 2U);
}

} // namespace
} // namespace coffer::tests
