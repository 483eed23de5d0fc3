#include "vmm/migrate/source.hpp"

#include <algorithm>
#include <fcntl.h>

#include "base/log.hpp"
#include "crypto/random.hpp"
#include "vmm/home/home_files.hpp"
#include "vmm/home/home_spec.hpp"
#include "vmm/migrate/proof.hpp"

namespace coffer::vmm::migrate {

namespace {

namespace fs = std::filesystem;

constexpr Nanoseconds k_start_limit = 60 * k_ns_per_s; // from Go to Started

Result<std::vector<HomeFileOnDisk>> files_to_send(fs::path const& folder) {
    auto files = TRY(list_home_files(folder));
    for (auto const& file : files)
        if (!is_home_file_name(file.name))
            return make_error(ErrorCode::Unsupported, "{} is no file of a home: take it out of the folder",
                              (folder / file.name).native());
    if (files.size() > k_max_files)
        return make_error(ErrorCode::NoSpace, "the home has {} files, and {} can be sent", files.size(), k_max_files);
    return files;
}

constexpr size_t k_max_replaced = size_t{72} << 20; // with headers and tags

// Whether a file is replaced as a whole while the VM runs. All others but the disks' are whole when they come to be;
// requests that make or drop such files wait until a migration is over.
bool is_replaced(std::string_view name) {
    if (name == home_spec::k_keys_file) return true;
    for (size_t i = 0; i < k_home_file_count; ++i)
        if (name == file_name(static_cast<HomeFile>(i))) return true;
    return false;
}

} // namespace

Result<Source> Source::begin(HomeSession& home, Stream& stream, Peer peer, HelloMessage machine, Bytes firmware,
                             std::set<std::string> disk_files) {
    if (!home.encrypted())
        return make_error(ErrorCode::Unsupported,
                          "VM '{}' has an unencrypted home: nothing could prove that the other host may have it. "
                          "'coffer tpm add' or a home that is made with --encrypt can be migrated",
                          home.config().name);
    machine.migration = TRY(crypto::random_uuid());
    machine.vm = home.config().uuid;
    machine.name = home.config().name;
    machine.keys =
        TRY(read_file(home.location().folder() / home_spec::k_keys_file,
                      home_spec::keys::k_prefix_size + home_spec::keys::k_max_header + home_spec::keys::k_max_sealed));
    TRY(crypto::random_bytes(machine.nonce));
    machine.firmware_size = firmware.size();
    machine.firmware = TRY(crypto::sha256({firmware}));
    return Source(home, stream, std::move(peer), std::move(machine), firmware, std::move(disk_files));
}

Result<void> Source::greet() {
    TRY(m_stream.send(m_hello));
    auto const body = TRY(m_stream.expect(MessageType::Welcome));
    WelcomeMessage welcome;
    TRY(decode_fields(body, welcome));
    auto const key = TRY(m_home.migration_key(m_hello.migration));
    ProofContext context{m_peer.exporter, m_hello.migration, m_hello.vm, m_hello.nonce};
    if (auto proven = check_proof(key, Side::Destination, context, welcome.proof); !proven) {
        auto const header = m_home.header();
        return make_error(ErrorCode::KeyUnavailable, "{}, which is under key {} of provider {}. Nothing has moved",
                          proven.error().message(), header ? header->key_id : "?",
                          header ? header->provider.to_string() : "?");
    }
    context.nonce = welcome.nonce;
    return m_stream.send(ProofMessage{TRY(make_proof(key, Side::Source, context))});
}

Result<void> Source::send_pieces(MessageType type, Bytes bytes) {
    for (size_t at = 0; at < bytes.size(); at += k_max_chunk)
        TRY(m_stream.send(type, bytes.subspan(at, std::min(k_max_chunk, bytes.size() - at))));
    return {};
}

Result<void> Source::send_file(FileMessage const& message, fs::path const& path,
                               std::function<void(uint64_t)> const& advance) {
    auto fd = TRY(open_file(path, O_RDONLY | O_NOFOLLOW));
    TRY(m_stream.send(message));
    ByteVector chunk(k_max_chunk);
    for (uint64_t at = 0; at < message.size;) {
        auto const size = std::min<uint64_t>(chunk.size(), message.size - at);
        TRY(pread_all(fd.get(), MutBytes(chunk).first(size), at, path));
        TRY(m_stream.send(MessageType::FileData, Bytes(chunk).first(size)));
        at += size;
        if (advance) advance(size);
    }
    return {};
}

Result<void> Source::send_home(Progress const& progress) {
    auto const folder = m_home.location().folder();
    uint64_t total = 0;
    std::vector<std::pair<std::string, Sent>> wanted;
    for (auto const& [name, size] : TRY(files_to_send(folder))) {
        if (m_disk_files.contains(name)) continue;
        Sent now;
        now.size = size;
        if (is_replaced(name)) {
            auto const content = TRY(read_file(folder / name, k_max_replaced));
            now.digest = TRY(crypto::sha256({content}));
        }
        auto const before = m_sent.find(name);
        if (before != m_sent.end() && before->second == now) continue;
        total += now.size;
        wanted.emplace_back(name, now);
    }
    uint64_t done = 0;
    for (auto const& [name, now] : wanted) {
        TRY(send_file({.name = name, .size = now.size}, folder / name, [&](uint64_t bytes) {
            done += bytes;
            if (progress.files) progress.files(done, total);
        }));
        // Where it was replaced between the two readings, the digest is of neither, and it comes again.
        m_sent[name] = now;
    }
    return {};
}

Result<void> Source::send_files(Progress const& progress) {
    TRY(send_pieces(MessageType::Firmware, m_firmware));
    return send_home(progress);
}

Result<void> Source::wait_until_taken() {
    TRY(m_stream.send(MarkMessage{++m_marks}));
    auto const body = TRY(m_stream.expect(MessageType::Reached));
    ReachedMessage reached;
    TRY(decode_fields(body, reached));
    if (reached.number == m_marks) return {};
    return make_error(ErrorCode::Corrupt, "the other host has reached mark {} where {} was set", reached.number,
                      m_marks);
}

Result<void> Source::prepare(Bytes state, crypto::Digest const& memory) {
    // What is on the disk is authentic and of one moment, and no writing is owed.
    auto const stored = m_home.stored();
    if (!stored) return stored.error();
    TRY(send_home({}));
    m_times.done("home");
    TRY(send_pieces(MessageType::State, state));
    auto const header = m_home.header();
    COFFER_ASSERT(header);
    TRY(m_stream.send(PrepareMessage{memory, state.size(), header->sequence}));
    // While the destination makes the machine: whom to ask, once the home's record says that it was handed over. Until
    // then the entry says nothing.
    m_noted = true;
    TRY(MigrationJournal(m_home.location().root).write_outgoing(entry(OutgoingState::HandedOver)));
    TRY(m_stream.expect(MessageType::Ready));
    m_times.done("ready");
    return {};
}

OutgoingMigration Source::entry(OutgoingState state) const {
    return {m_hello.migration, m_hello.vm, m_hello.name, m_peer.fingerprint, m_peer.name, m_peer.place, 0, state};
}

// prepare() has noted in the journal to whom.
Result<Outcome> Source::hand_over() {
    m_noted = false; // the record may name it from here on
    if (auto handed_over = m_home.hand_over(m_hello.migration); !handed_over) {
        // Nothing was said to the destination, so that it cannot start.
        if (auto back = m_home.claim(HistoryKind::Other, "a migration ended where the home was to be handed over");
            !back)
            log::warning("{}", back.error().message());
        return std::move(handed_over).error();
    }
    m_times.done("handed over");
    auto const confirmed = [&]() -> Result<void> {
        TRY(m_stream.send(GoMessage()));
        TRY(m_stream.expect(MessageType::Started, k_start_limit));
        m_times.done("started");
        return {};
    }();
    if (!confirmed) {
        log::warning("the other host has not confirmed that it runs VM '{}': {}", m_hello.name,
                     confirmed.error().message());
        return Outcome::Undecided;
    }
    if (auto noted = MigrationJournal(m_home.location().root).write_outgoing(entry(OutgoingState::Settled)); !noted)
        log::warning("{}", noted.error().message()); // it can be asked for again
    else if (auto told = m_stream.send(SettledMessage()); !told)
        log::debug("{}", told.error().message());
    return Outcome::Moved;
}

void Source::give_up(Error const& error) noexcept {
    m_stream.send_failure(error);
    if (!m_noted) return;
    if (auto forgotten = MigrationJournal(m_home.location().root).forget_outgoing(id()); !forgotten)
        log::debug("{}", forgotten.error().message());
}

Result<Outcome> settle(Stream& stream, MigrationJournal const& journal, OutgoingMigration const& migration,
                       SettleActions const& actions) {
    auto note = [&](OutgoingState state) -> Result<void> {
        auto entry = migration;
        entry.state = state;
        TRY(journal.write_outgoing(std::move(entry)));
        // From here on the other host needs to remember nothing.
        if (auto told = stream.send(SettledMessage()); !told) log::debug("{}", told.error().message());
        return {};
    };
    // The other host has been told that it may forget what it would answer from.
    if (migration.state == OutgoingState::Settled) return Outcome::Moved;
    if (migration.state == OutgoingState::TakenBack) {
        TRY(actions.take_back());
        return Outcome::StillHere;
    }
    TRY(stream.send(AskMessage{k_protocol, migration.id, migration.name}));
    auto const body = TRY(stream.expect(MessageType::Standing));
    auto const standing = TRY(decode_standing(body));
    switch (standing.fate) {
    case Fate::Started: TRY(note(OutgoingState::Settled)); return Outcome::Moved;
    case Fate::Abandoned:
        TRY(actions.take_back());
        TRY(note(OutgoingState::TakenBack));
        return Outcome::StillHere;
    case Fate::Prepared: break;
    }
    // It has all of the machine, and this host let go of it before.
    TRY(stream.send(GoMessage()));
    TRY(stream.expect(MessageType::Started, k_start_limit));
    TRY(note(OutgoingState::Settled));
    return Outcome::Moved;
}

} // namespace coffer::vmm::migrate
