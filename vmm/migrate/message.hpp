// What the two ends of a migration say to each other: framed, bounded messages over a byte stream (docs/migration.md).
// What comes is hostile: sizes are bounded before anything is read, fields checked before they are used.
//
//   offset  size
//   0       4     "CMIG"
//   4       2     type
//   6       2     zero
//   8       4     size of the body
//   12            body: tagged fields (base/tagged.hpp), or bytes as they are (Firmware, FileData, Memory, State)
#pragma once

#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "base/tagged.hpp"
#include "base/uuid.hpp"
#include "crypto/mac.hpp"
#include "vmm/migrate/memory_batch.hpp"
#include "vmm/snapshot/machine_state.hpp"

namespace coffer::vmm::migrate {

constexpr uint32_t k_magic = 0x4749'4D43; // "CMIG"
constexpr uint16_t k_protocol = 2;
constexpr size_t k_header_size = 12;
constexpr size_t k_max_fields = size_t{256} << 10;
constexpr size_t k_max_chunk = size_t{1} << 20; // of Firmware, FileData and State
constexpr uint64_t k_max_firmware = uint64_t{16} << 20;
constexpr uint64_t k_max_state = uint64_t{64} << 20;
constexpr uint64_t k_max_file = uint64_t{1} << 46;
constexpr size_t k_max_files = 1024;
constexpr size_t k_max_text = 2048;
constexpr size_t k_nonce_size = 32;
constexpr size_t k_exporter_size = 32;
// The label of the TLS exporter (RFC 8446, 7.5); not registered, so it begins as RFC 5705, 4 has it.
constexpr std::string_view k_exporter_label = "EXPERIMENTAL coffer migration";

using Nonce = std::array<std::byte, k_nonce_size>;
using Exporter = std::array<std::byte, k_exporter_size>;

// Numbers are never reused. S: from the source, D: from the destination.
enum class MessageType : uint16_t {
    Channel = 1,   // of the process that holds the TLS connection, to the VM's, before all else
    Hello = 2,     // S: what is to come
    Welcome = 3,   // D: it fits, and the key is here
    Proof = 4,     // S: the key is there, too
    File = 5,      // S: a file begins; one of that name that came before is replaced
    FileData = 6,  // S: a piece of it
    Memory = 7,    // S: one batch (memory_batch.hpp)
    State = 8,     // S: a piece of the machine's state
    Prepare = 9,   // S: that was all
    Ready = 10,    // D: it is durable, and can start
    Go = 11,       // S: the VM is no longer here
    Started = 12,  // D: it is mine
    Settled = 13,  // S: heard
    Failure = 15,  // either: what went wrong, or that it was given up; the sender is about to close
    Ask = 16,      // S, in place of Hello: what became of a migration?
    Standing = 17, // D: this
    FilePart = 18, // S: of a file that comes in parts; FileData follows, or it is zeros
    Firmware = 19, // S: a piece of the code in the machine's flash, which does not change while it runs
    Mark = 20,     // S: what came before is to be taken, and then Reached to be said
    Reached = 21,  // D
};

struct ChannelMessage {
    static constexpr MessageType k_type = MessageType::Channel;
    Exporter exporter{};
    crypto::Digest peer{};
    std::string peer_name;

    template <class V>
    void fields(V& v) {
        v.required(1, exporter);
        v.required(2, peer);
        v.required(3, peer_name);
    }
};

struct HelloDisk {
    std::string path;
    uint64_t size = 0;
    bool read_only = false;
    bool in_home = false; // comes with the home's files
    bool copied = false;  // its content comes, too; otherwise it is expected to be there already

    template <class V>
    void fields(V& v) {
        v.required(1, path);
        v.required(2, size);
        v.required(3, read_only);
        v.required(4, in_home);
        v.required(5, copied);
    }
};

struct HelloMessage {
    static constexpr MessageType k_type = MessageType::Hello;
    uint16_t protocol = k_protocol;
    std::string version; // of the program, for messages
    Uuid migration;
    Uuid vm;
    std::string name;
    ByteVector keys; // the home's file `keys`
    Nonce nonce{};
    std::string backend;
    std::vector<SavedCpuid> cpuid;
    uint64_t tsc_hz = 0;
    uint8_t physical_address_bits = 0;
    SavedPlatform platform;
    std::vector<HelloDisk> disks;
    uint64_t firmware_size = 0; // of the code in flash, which is not in the machine's state
    crypto::Digest firmware{};  // SHA-256 of it

    template <class V>
    void fields(V& v) {
        v.required(1, protocol);
        v.required(2, version);
        v.required(3, migration);
        v.required(4, vm);
        v.required(5, name);
        v.required(6, keys);
        v.required(7, nonce);
        v.required(8, backend);
        v.required(9, cpuid);
        v.required(10, tsc_hz);
        v.required(11, physical_address_bits);
        v.required(12, platform);
        v.required(13, disks);
        v.required(14, firmware_size);
        v.required(15, firmware);
    }
};

struct WelcomeMessage {
    static constexpr MessageType k_type = MessageType::Welcome;
    uint16_t protocol = k_protocol;
    crypto::Digest proof{};
    Nonce nonce{};

    template <class V>
    void fields(V& v) {
        v.required(1, protocol);
        v.required(2, proof);
        v.required(3, nonce);
    }
};

struct ProofMessage {
    static constexpr MessageType k_type = MessageType::Proof;
    crypto::Digest proof{};

    template <class V>
    void fields(V& v) {
        v.required(1, proof);
    }
};

struct FileMessage {
    static constexpr MessageType k_type = MessageType::File;
    uint32_t disk = 0;     // 0: a file of the home; else one more than the number of the configuration's disk
    std::string name = {}; // of a file of the home
    uint64_t size = 0;
    bool in_parts = false; // zeros at first, and no FileData follows
    bool reserve = false;  // of one in parts: all of its blocks are the file's before they are written

    template <class V>
    void fields(V& v) {
        v.required(1, disk);
        v.required(2, name);
        v.required(3, size);
        v.required(4, in_parts);
        v.required(5, reserve);
    }
};

struct FilePartMessage {
    static constexpr MessageType k_type = MessageType::FilePart;
    uint32_t disk = 0; // as in FileMessage
    std::string name = {};
    uint64_t offset = 0; // bytes
    uint64_t size = 0;
    bool zeros = false; // no FileData follows

    template <class V>
    void fields(V& v) {
        v.required(1, disk);
        v.required(2, name);
        v.required(3, offset);
        v.required(4, size);
        v.required(5, zeros);
    }
};

struct PrepareMessage {
    static constexpr MessageType k_type = MessageType::Prepare;
    crypto::Digest memory{}; // over all batches (MemorySender::digest())
    uint64_t state_size = 0;
    uint64_t sequence = 0; // of the home's `keys`

    template <class V>
    void fields(V& v) {
        v.required(1, memory);
        v.required(2, state_size);
        v.required(3, sequence);
    }
};

template <MessageType type>
struct NumberMessage {
    static constexpr MessageType k_type = type;
    uint32_t number = 0;

    template <class V>
    void fields(V& v) {
        v.required(1, number);
    }
};
using MarkMessage = NumberMessage<MessageType::Mark>;
using ReachedMessage = NumberMessage<MessageType::Reached>;

template <MessageType type>
struct EmptyMessage {
    static constexpr MessageType k_type = type;
    template <class V>
    void fields(V&) {}
};
using ReadyMessage = EmptyMessage<MessageType::Ready>;
using GoMessage = EmptyMessage<MessageType::Go>;
using StartedMessage = EmptyMessage<MessageType::Started>;
using SettledMessage = EmptyMessage<MessageType::Settled>;

struct FailureMessage {
    static constexpr MessageType k_type = MessageType::Failure;
    ErrorCode code = ErrorCode::Internal;
    std::string text;

    template <class V>
    void fields(V& v) {
        v.required(1, code);
        v.required(2, text);
    }
};

struct AskMessage {
    static constexpr MessageType k_type = MessageType::Ask;
    uint16_t protocol = k_protocol;
    Uuid migration;
    std::string name;

    template <class V>
    void fields(V& v) {
        v.required(1, protocol);
        v.required(2, migration);
        v.required(3, name);
    }
};

enum class Fate : uint8_t {
    Prepared = 1,  // by a process that lives and can start it: Go may follow
    Started = 2,   // for good
    Abandoned = 3, // for good
};

struct StandingMessage {
    static constexpr MessageType k_type = MessageType::Standing;
    Fate fate = Fate::Abandoned;

    template <class V>
    void fields(V& v) {
        v.required(1, fate);
    }
};

// What a message of the type may have as its body, at most; 0: there is no such type.
size_t max_body(MessageType type) noexcept;

struct FrameHeader {
    MessageType type{};
    uint32_t size = 0;
};
std::array<std::byte, k_header_size> encode_header(FrameHeader const& header);
// Corrupt where the bytes are none, or announce more than max_body().
Result<FrameHeader> decode_header(Bytes header);

// Decoded, and checked as far as that goes without knowing more. Corrupt. A failure's text is cleaned of what a
// terminal would take for more than text.
Result<HelloMessage> decode_hello(Bytes body);
Result<ChannelMessage> decode_channel(Bytes body);
Result<FileMessage> decode_file(Bytes body);
Result<FilePartMessage> decode_file_part(Bytes body);
Result<PrepareMessage> decode_prepare(Bytes body);
Result<AskMessage> decode_ask(Bytes body);
Result<StandingMessage> decode_standing(Bytes body);
Error decode_failure(Bytes body);

// The names of files that a home may be sent with.
bool is_home_file_name(std::string_view name) noexcept;

} // namespace coffer::vmm::migrate
