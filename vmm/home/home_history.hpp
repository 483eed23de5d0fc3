// What befell a home: a bounded list of events that only who can open the home can read or write. An event is durable
// in the same writing of `keys` as the change that it tells of (docs/formats/home.md, "History"). Pure functions of
// bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer::vmm {

// Values are stored; a reader shows one that it does not know as "event".
enum class HistoryKind : uint8_t {
    Created = 1,
    Rekeyed = 2,         // new bundle key under a new key of the same provider
    ProviderChanged = 3, // new bundle key under another provider's key
    DeepRekeyed = 4,     // new data encryption key, too
    RollbackAccepted = 5,
    Cloned = 6,
    Restored = 7,
    TpmAdded = 8,
    TpmRemoved = 9,
    HandedOver = 10, // to another host
    Received = 11,   // from another host
    Reverted = 12,   // to a snapshot
    Other = 255,
};
std::string_view to_string(HistoryKind kind) noexcept;

struct HistoryEvent {
    uint64_t number = 0; // from 1; given by the home
    int64_t time = 0;    // seconds since 1970-01-01 UTC; given by the home
    HistoryKind kind = HistoryKind::Other;
    std::string text; // one line for people; cut after 400 bytes

    template <class V>
    void fields(V& v) {
        v.required(1, number);
        v.required(2, time);
        v.required(3, kind);
        v.required(4, text);
    }
    bool operator==(HistoryEvent const&) const = default;
};

constexpr size_t k_max_history = 256; // events; beyond that the oldest are dropped
constexpr size_t k_max_history_text = 400;

// Without control characters, which would reach the owner's terminal, and not too long.
std::string history_text(std::string_view text);

// The content of the file `history`.
ByteVector encode_history(std::vector<HistoryEvent> events);
// Corrupt where the content is malformed or numbers do not rise.
Result<std::vector<HistoryEvent>> decode_history(Bytes content);

// Events of both in the order of their numbers, each once, at most the newest k_max_history.
std::vector<HistoryEvent> merge_history(std::vector<HistoryEvent> older, std::vector<HistoryEvent> const& newer);

} // namespace coffer::vmm
