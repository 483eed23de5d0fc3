#include "vmm/eventlog/memory_log.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace coffer::vmm {

namespace {

using namespace std::string_view_literals;

// A log begins with an event of PCR 0, EV_NO_ACTION and a digest of zeros, whose data begins with this.
constexpr auto k_signature = "Spec ID Event03\0"sv;
constexpr size_t k_signature_at = 32;
// The kernel's EFI stub has a u32 size, a u32 and a u8 version in front of its copy.
constexpr size_t k_prefix = 9;
constexpr uint8_t k_crypto_agile_version = 2;
constexpr size_t k_log_window = size_t{256} << 10;
// The table of final events: u64 version, u64 number, events. OVMF gives it 32 KiB of its own pages.
constexpr size_t k_page = 4096;
constexpr size_t k_final_window = size_t{32} << 10;
constexpr size_t k_max_final_events = 4096;

constexpr size_t k_max_logs = 16;
constexpr size_t k_max_finals = 16;
constexpr size_t k_step = size_t{16} << 20; // of the search, between two looks at `cancelled`

enum class PieceKind : uint32_t { Log = 1, FinalEvents = 2 };
// Kind, size of what is in front of the log, address, size; then the bytes.
constexpr size_t k_piece_header = 4 + 4 + 8 + 8;
static_assert(k_max_logs * (k_log_window + k_prefix + k_piece_header) +
                  k_max_finals * (k_final_window + k_piece_header) <=
              k_max_pieces_file);

class PieceWriter {
public:
    PieceWriter(int fd, std::filesystem::path const& name) : m_fd(fd), m_name(name) {}

    // From guest memory straight to the file: it is copied once, by the host's kernel.
    Result<void> write(PieceKind kind, size_t prefix, uint64_t address, Bytes bytes) {
        std::array<std::byte, k_piece_header> header{};
        store_le<uint32_t>(header, 0, static_cast<uint32_t>(kind));
        store_le<uint32_t>(header, 4, static_cast<uint32_t>(prefix));
        store_le<uint64_t>(header, 8, address);
        store_le<uint64_t>(header, 16, bytes.size());
        TRY(pwrite_all(m_fd, header, m_at, m_name));
        TRY(pwrite_all(m_fd, bytes, m_at + header.size(), m_name));
        m_at += header.size() + bytes.size();
        return {};
    }

private:
    int m_fd;
    std::filesystem::path const& m_name;
    uint64_t m_at = 0;
};

// Guest memory changes while it is looked at: every value is read once, and what is decided here is decided again from
// the copy.
bool may_be_final_events(Bytes page) {
    if (page.size() < 32 || load_le<uint64_t>(page, 0) != 1) return false;
    auto const count = load_le<uint64_t>(page, 8);
    auto const algorithms = load_le<uint32_t>(page, 24);
    return count > 0 && count <= k_max_final_events && load_le<uint32_t>(page, 16) < devices::k_pcr_count &&
           algorithms > 0 && algorithms <= 16 && devices::find_pcr_bank(load_le<uint16_t>(page, 28)) != nullptr;
}

// All places of the signature in `bytes` that have room for what stands in front of it.
template <class Found>
Result<void> search(Bytes bytes, std::function<bool()> const& cancelled, Found&& found) {
    for (size_t from = 0; from < bytes.size(); from += k_step) {
        if (cancelled()) return make_error(ErrorCode::Cancelled, "the search for an event log was given up");
        auto const overlap = k_signature.size() - 1;
        auto step = bytes.subspan(from, std::min(k_step + overlap, bytes.size() - from));
        for (;;) {
            auto const* hit = static_cast<std::byte const*>(
                ::memmem(step.data(), step.size(), k_signature.data(), k_signature.size()));
            if (!hit) break;
            TRY(found(static_cast<size_t>(hit - bytes.data())));
            step = step.subspan(static_cast<size_t>(hit - step.data()) + 1);
        }
    }
    return {};
}

struct Piece {
    PieceKind kind{};
    size_t prefix = 0;
    Bytes bytes;
};

Result<std::vector<Piece>> parse_pieces(Bytes bytes) {
    auto malformed = [] { return make_error(ErrorCode::Corrupt, "what was found in the guest's memory is malformed"); };
    std::vector<Piece> pieces;
    while (!bytes.empty()) {
        if (bytes.size() < k_piece_header || pieces.size() == k_max_logs + k_max_finals) return malformed();
        Piece piece;
        piece.kind = PieceKind(load_le<uint32_t>(bytes, 0));
        piece.prefix = load_le<uint32_t>(bytes, 4);
        auto const size = load_le<uint64_t>(bytes, 16);
        bytes = bytes.subspan(k_piece_header);
        if (size > bytes.size() || size > k_prefix + k_log_window || piece.prefix > size) return malformed();
        piece.bytes = bytes.first(size);
        bytes = bytes.subspan(size);
        pieces.push_back(piece);
    }
    return pieces;
}

// The bytes that a log piece can be taken for: as long as the stub's header says, and as far as it goes.
std::vector<Bytes> readings(Piece const& piece) {
    auto const log = piece.bytes.subspan(piece.prefix);
    std::vector<Bytes> all{log};
    if (piece.prefix == k_prefix && load_le<uint8_t>(piece.bytes, 8) == k_crypto_agile_version) {
        auto const size = load_le<uint32_t>(piece.bytes, 0);
        if (size > k_signature_at && size < log.size()) all.push_back(log.first(size));
    }
    return all;
}

// Final events that the log has not: the kernel's stub asks for the log, from when on events stand in both, and then
// leaves the firmware, which only the table of final events tells of.
std::vector<Event> missing_events(std::vector<Event> const& log, std::vector<Event> const& finals) {
    auto same = [](Event const& a, Event const& b) { return std::ranges::equal(a.whole, b.whole); };
    for (size_t shared = std::min(log.size(), finals.size()); shared > 0; --shared)
        if (std::equal(finals.begin(), finals.begin() + static_cast<ptrdiff_t>(shared),
                       log.end() - static_cast<ptrdiff_t>(shared), same))
            return {finals.begin() + static_cast<ptrdiff_t>(shared), finals.end()};
    return finals;
}

} // namespace

Result<void> collect_log_pieces(std::vector<MemorySpan> const& memory, int fd, std::filesystem::path const& name,
                                std::function<bool()> const& cancelled) {
    PieceWriter writer(fd, name);
    size_t logs = 0;
    size_t finals = 0;
    for (auto const& span : memory) {
        TRY(search(span.bytes, cancelled, [&](size_t at) -> Result<void> {
            if (at < k_signature_at || logs == k_max_logs) return {};
            auto const start = at - k_signature_at;
            if (load_le<uint32_t>(span.bytes, start) != 0 ||
                EventType(load_le<uint32_t>(span.bytes, start + 4)) != EventType::NoAction)
                return {};
            ++logs;
            auto const prefix = std::min(start, k_prefix);
            auto const size = std::min(prefix + k_log_window, span.bytes.size() - (start - prefix));
            return writer.write(PieceKind::Log, prefix, span.address + start, span.bytes.subspan(start - prefix, size));
        }));
        for (size_t at = 0; at + k_page <= span.bytes.size() && finals < k_max_finals; at += k_page) {
            if (at % k_step == 0 && cancelled())
                return make_error(ErrorCode::Cancelled, "the search for an event log was given up");
            if (!may_be_final_events(span.bytes.subspan(at, k_page))) continue;
            ++finals;
            auto const size = std::min(k_final_window, span.bytes.size() - at);
            TRY(writer.write(PieceKind::FinalEvents, 0, span.address + at, span.bytes.subspan(at, size)));
        }
    }
    return {};
}

size_t agreement(Replay const& replayed, PcrBanks const& pcrs) {
    size_t same = 0;
    for (auto const& [algorithm, values] : replayed.banks) {
        auto const found = pcrs.find(algorithm);
        if (found == pcrs.end()) continue;
        for (size_t pcr = 0; pcr < values.size(); ++pcr)
            if ((replayed.touched >> pcr & 1U) != 0 && values[pcr] == found->second[pcr]) ++same;
    }
    return same;
}

Result<ByteVector> choose_log(Bytes bytes, PcrBanks const& pcrs) {
    auto const pieces = TRY(parse_pieces(bytes));
    ByteVector best;
    size_t best_score = 0;
    auto consider = [&](Bytes log_bytes, EventLog const& log, std::vector<Event> const& more) -> Result<void> {
        auto whole = log;
        whole.events.insert(whole.events.end(), more.begin(), more.end());
        // One more for being a log at all, so that one that agrees with nothing is still shown.
        auto const score = agreement(TRY(replay(whole)), pcrs) + 1;
        if (score <= best_score) return {};
        best_score = score;
        best.assign(log_bytes.begin(), log_bytes.begin() + static_cast<ptrdiff_t>(log.size));
        for (auto const& event : more) append(best, event.whole);
        return {};
    };
    for (auto const& piece : pieces) {
        if (piece.kind != PieceKind::Log) continue;
        for (auto const& reading : readings(piece)) {
            auto const log = parse_event_log(reading);
            if (!log) continue;
            TRY(consider(reading, *log, {}));
            for (auto const& other : pieces) {
                if (other.kind != PieceKind::FinalEvents || other.bytes.size() < 16) continue;
                auto const finals =
                    parse_events(other.bytes.subspan(16), log->algorithms, load_le<uint64_t>(other.bytes, 8));
                TRY(consider(reading, *log, missing_events(log->events, finals)));
            }
        }
    }
    if (best.empty())
        return make_error(ErrorCode::NotFound,
                          "there is no event log in the guest's memory: its firmware has not measured anything yet, or "
                          "the guest wiped it. 'coffer tpm eventlog --file' reads one that was taken from the guest "
                          "(/sys/kernel/security/tpm0/binary_bios_measurements)");
    return best;
}

} // namespace coffer::vmm
