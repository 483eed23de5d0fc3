#include "vmm/home/home_history.hpp"

#include "base/tagged.hpp"

namespace coffer::vmm {

namespace {

struct HistoryFile {
    std::vector<HistoryEvent> events;

    template <class V>
    void fields(V& v) {
        v.required(1, events);
    }
};

} // namespace

std::string_view to_string(HistoryKind kind) noexcept {
    switch (kind) {
    case HistoryKind::Created: return "created";
    case HistoryKind::Rekeyed: return "rekeyed";
    case HistoryKind::ProviderChanged: return "provider changed";
    case HistoryKind::DeepRekeyed: return "deep rekey";
    case HistoryKind::RollbackAccepted: return "rollback accepted";
    case HistoryKind::Cloned: return "cloned";
    case HistoryKind::Restored: return "restored";
    case HistoryKind::TpmAdded: return "TPM added";
    case HistoryKind::TpmRemoved: return "TPM removed";
    case HistoryKind::HandedOver: return "handed over";
    case HistoryKind::Received: return "received";
    case HistoryKind::Reverted: return "reverted";
    case HistoryKind::Other: break;
    }
    return "event";
}

std::string history_text(std::string_view text) {
    std::string line(text.substr(0, k_max_history_text));
    for (char& c : line)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
    return line;
}

ByteVector encode_history(std::vector<HistoryEvent> events) {
    return encode_fields(HistoryFile{std::move(events)});
}

Result<std::vector<HistoryEvent>> decode_history(Bytes content) {
    HistoryFile file;
    TRY(decode_fields(content, file));
    uint64_t last = 0;
    for (auto& event : file.events) {
        if (event.number <= last) return make_error(ErrorCode::Corrupt, "the history's events are out of order");
        last = event.number;
        event.text = history_text(event.text);
    }
    if (file.events.size() > k_max_history) return make_error(ErrorCode::Corrupt, "the history is too long");
    return std::move(file.events);
}

std::vector<HistoryEvent> merge_history(std::vector<HistoryEvent> older, std::vector<HistoryEvent> const& newer) {
    for (auto const& event : newer)
        if (older.empty() || event.number > older.back().number) older.push_back(event);
    if (older.size() > k_max_history)
        older.erase(older.begin(), older.end() - static_cast<std::ptrdiff_t>(k_max_history));
    return older;
}

} // namespace coffer::vmm
