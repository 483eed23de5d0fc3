// The protocol between `coffer run --exec` and the agent in the guest: docs/formats/agent.md. Shared by both sides, and
// free of everything else, for the agent is a small static program.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace coffer::agent {

constexpr uint16_t k_version = 1;
constexpr char k_port_name[] = "org.coffer.agent.0";

// A frame: u32 payload length, u16 type, payload; little-endian.
constexpr size_t k_header_size = 6;
constexpr uint32_t k_max_payload = 64 * 1024;

enum class FrameType : uint16_t {
    Hello = 1,    // both    u16 version
    Exec = 2,     // host    u32 id, command for /bin/sh -c
    Shutdown = 3, // host
    Stdout = 16,  // agent   u32 id, bytes
    Stderr = 17,  // agent   u32 id, bytes
    Exit = 18,    // agent   u32 id, u32 kind, u32 value
    Error = 19,   // agent   u32 id or 0, text
};

enum class ExitKind : uint32_t { Code = 0, Signal = 1 };

constexpr uint32_t k_max_command = k_max_payload - 4;

} // namespace coffer::agent
