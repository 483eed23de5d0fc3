// What the keeper and the process that asks it say to each other: one message a packet over a SOCK_SEQPACKET pair, so
// that no message is ever half read. Little-endian.
//
//     offset  size
//     0       4     "CKPR"
//     4       2     version: 1
//     6       2     type (MessageType)
//     8       4     number of the request; an answer has its request's
//     12      4     size of the body, at most 8192
//     16      -     body
//
// Bodies are tagged fields (base/tagged.hpp); the bundle key stands before them as 32 bytes, so that it never passes
// through common memory.
#pragma once

#include <optional>
#include <string>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/uuid.hpp"
#include "crypto/keys.hpp"
#include "crypto/secret.hpp"
#include "keyprovider/key_provider.hpp"
#include "keyprovider/provider_info.hpp"

namespace coffer::vmm::keeper {

constexpr size_t k_max_message = 16 + 8192;

enum class MessageType : uint16_t {
    Wrap = 1,           // bundle key, WrapRequest -> Wrapped
    Unwrap = 2,         // UnwrapRequest -> Unwrapped
    Test = 3,           // TestRequest -> Tested
    Add = 4,            // AddRequest -> Changed; this and the next three of a managing keeper alone
    Rotate = 5,         // RotateRequest -> Changed
    Backup = 6,         // BackupRequest -> Changed
    Restore = 7,        // RestoreRequest -> Changed
    Wrapped = 0x8001,   // WrapAnswer
    Unwrapped = 0x8002, // bundle key
    Tested = 0x8003,    // TestAnswer
    Changed = 0x8004,   // ChangeAnswer
    Failed = 0xFFFF,    // Failure
};

struct WrapRequest {
    Uuid provider;
    std::string label;

    template <class V>
    void fields(V& v) {
        v.required(1, provider);
        v.required(2, label);
    }
};

struct WrapAnswer {
    std::string key_id;
    ByteVector wrapped;

    template <class V>
    void fields(V& v) {
        v.required(1, key_id);
        v.required(2, wrapped);
    }
};

struct UnwrapRequest {
    Uuid provider;
    std::string key_id;
    ByteVector wrapped;

    template <class V>
    void fields(V& v) {
        v.required(1, provider);
        v.required(2, key_id);
        v.required(3, wrapped);
    }
};

struct TestRequest {
    Uuid provider;

    template <class V>
    void fields(V& v) {
        v.required(1, provider);
    }
};

constexpr size_t k_max_steps = 16;
constexpr size_t k_max_step_text = 400; // so that all of them fit a message

struct TestAnswer {
    std::vector<ProviderTestStep> steps;

    template <class V>
    void fields(V& v) {
        v.required(1, steps);
    }
};

// Changes of native providers. Their passphrases and passwords come to the keeper by descriptor or terminal.
struct AddRequest {
    std::string name;
    bool passphrase = false;
    bool require_backup = false;
    std::string host_tpm;

    template <class V>
    void fields(V& v) {
        v.required(1, name);
        v.required(2, passphrase);
        v.required(3, require_backup);
        v.required(4, host_tpm);
    }
};

struct RotateRequest {
    Uuid provider;

    template <class V>
    void fields(V& v) {
        v.required(1, provider);
    }
};

struct BackupRequest {
    Uuid provider;
    std::string path; // absolute
    bool overwrite = false;

    template <class V>
    void fields(V& v) {
        v.required(1, provider);
        v.required(2, path);
        v.required(3, overwrite);
    }
};

struct RestoreRequest {
    std::string path; // absolute
    std::string name; // empty: as in the backup
    bool passphrase = false;
    bool require_backup = false;
    std::string host_tpm;

    template <class V>
    void fields(V& v) {
        v.required(1, path);
        v.required(2, name);
        v.required(3, passphrase);
        v.required(4, require_backup);
        v.required(5, host_tpm);
    }
};

struct ChangeAnswer {
    ProviderInfo provider;          // as it is now
    bool merged = false;            // Restored
    std::vector<uint32_t> versions; // Restored

    template <class V>
    void fields(V& v) {
        v.required(1, provider);
        v.required(2, merged);
        v.required(3, versions);
    }
};

struct Failure {
    ErrorCode code = ErrorCode::Internal;
    std::string message;

    template <class V>
    void fields(V& v) {
        v.required(1, code);
        v.required(2, message);
    }
};

struct Message {
    MessageType type{};
    uint32_t number = 0;
    std::optional<crypto::BundleKey> key; // of the types that carry one
    ByteVector fields;
};

// Waits for a message. Nothing where the other end is closed; Corrupt where the packet is no well-formed message.
Result<std::optional<Message>> receive(int fd);
Result<void> send(int fd, Message const& message);

// An error as a Failure, with a bounded message; and the reverse, for which a failure is hostile input.
ByteVector encode_failure(Error const& error);
Error decode_failure(Bytes fields);

} // namespace coffer::vmm::keeper
