// The framing of swtpm's control protocol; tests/integration/test_tpm_serve.py has what the commands do.
#include <gtest/gtest.h>

#include "vmm/tpm/control_message.hpp"

namespace coffer::vmm::tpm_control {
namespace {

ByteVector request(Command command, std::initializer_list<int> body = {}) {
    ByteVector bytes(4);
    store_be<uint32_t>(bytes, 0, static_cast<uint32_t>(command));
    for (int b : body) bytes.push_back(static_cast<std::byte>(b));
    return bytes;
}

// Every prefix is incomplete, and the whole has this body.
void expect_framed(ByteVector const& bytes, size_t body) {
    for (size_t size = 0; size < bytes.size(); ++size)
        EXPECT_EQ(parse_request(Bytes(bytes).first(size)).framing, Framing::Incomplete) << size;
    auto parsed = parse_request(bytes);
    EXPECT_EQ(parsed.framing, Framing::Complete);
    EXPECT_EQ(parsed.body.size(), body);
    EXPECT_EQ(parsed.size, bytes.size());
}

TEST(ControlMessage, EveryCommandEndsWhereItShould) {
    for (auto command :
         {Command::GetCapability, Command::Shutdown, Command::GetEstablished, Command::HashStart, Command::HashEnd,
          Command::CancelCommand, Command::StoreVolatile, Command::Stop, Command::GetConfig, Command::SetDataFd})
        expect_framed(request(command), 0);
    expect_framed(request(Command::Init, {0, 0, 0, 1}), 4);
    expect_framed(request(Command::SetBufferSize, {0, 0, 16, 0}), 4);
    expect_framed(request(Command::SetLocality, {1}), 1);
    expect_framed(request(Command::HashData, {0, 0, 0, 3, 'a', 'b', 'c'}), 7);
    expect_framed(request(Command::HashData, {0, 0, 0, 0}), 4);
    expect_framed(request(Command::GetStateBlob, {0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}), 12);
    expect_framed(request(Command::SetStateBlob, {0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 7, 8}), 14);
    expect_framed(request(Command::GetInfo, {0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}), 16);
}

TEST(ControlMessage, PaddingBehindALocalityIsSkipped) {
    for (auto command : {Command::SetLocality, Command::ResetEstablished}) {
        auto bytes = request(command, {3, 0, 0, 0});
        auto parsed = parse_request(bytes);
        EXPECT_EQ(parsed.framing, Framing::Complete);
        EXPECT_EQ(parsed.size, 8U);
        ASSERT_EQ(parsed.body.size(), 1U);
        EXPECT_EQ(parsed.body[0], std::byte{3});
    }
}

TEST(ControlMessage, WhatFollowsIsLeftAlone) {
    auto bytes = request(Command::Stop);
    append(bytes, request(Command::Init, {0, 0, 0, 0}));
    auto first = parse_request(bytes);
    ASSERT_EQ(first.size, 4U);
    EXPECT_EQ(parse_request(Bytes(bytes).subspan(4)).command, Command::Init);
}

TEST(ControlMessage, UnknownAndTooLargeAreToldApart) {
    for (uint32_t number : {0x00U, 0x13U, 0x100U, 0xFFFF'FFFFU})
        EXPECT_EQ(parse_request(request(static_cast<Command>(number), {1, 2, 3})).framing, Framing::Unknown);
    EXPECT_EQ(parse_request(request(Command::HashData, {0xFF, 0xFF, 0xFF, 0xFF})).framing, Framing::TooLarge);
    EXPECT_EQ(parse_request(request(Command::HashData, {0, 0x10, 0, 1})).framing, Framing::TooLarge);
    EXPECT_EQ(parse_request(request(Command::HashData, {0, 0x10, 0, 0})).framing, Framing::Incomplete);
}

TEST(ControlMessage, ResponsesAreBigEndian) {
    Response response(ControlResult::BadLocality);
    response.u8(1).u64(2);
    auto bytes = response.view();
    ASSERT_EQ(bytes.size(), 13U);
    EXPECT_EQ(load_be<uint32_t>(bytes), 0x3DU);
    EXPECT_EQ(load_be<uint64_t>(bytes, 5), 2U);
}

} // namespace
} // namespace coffer::vmm::tpm_control
