#include "vmm/migrate/destination.hpp"

#include <algorithm>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.hpp"
#include "crypto/random.hpp"
#include "devices/storage/raw_disk.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/key_bundle.hpp"
#include "vmm/migrate/proof.hpp"

namespace coffer::vmm::migrate {

namespace {

constexpr Nanoseconds k_settle_limit = 5 * k_ns_per_s;

// What is abandoned, and then removed, in this order: removed alone, it could not be told from one that never came.
Result<IncomingState> abandon_for_good(MigrationJournal const& journal, HomeLocation const& location, Uuid const& id) {
    auto const state = TRY(journal.abandon(id));
    if (state == IncomingState::Abandoned) TRY(remove_arriving(location, id));
    return state;
}

// No name of a home's file.
constexpr char const* k_mark_file = "MARK";

// What a file system holds back of all processes is written with the first fsync that needs it (ext4, data=ordered:
// Linux, Documentation/admin-guide/ext4.rst): better now than with the guest stopped, which would wait for it.
Result<void> write_out(std::filesystem::path const& file) {
    TRY(replace_file(file, {}));
    return remove_file(file);
}

} // namespace

Destination::Destination(HomeRoot root, std::unique_ptr<Stream> stream, Peer peer, Options options)
    : m_root(std::move(root)), m_stream(std::move(stream)), m_peer(std::move(peer)), m_options(std::move(options)),
      m_journal(m_root) {}

Destination::~Destination() {
    if (m_stage != Stage::Started && m_stage != Stage::Over) abandon();
}

void Destination::abandon() noexcept {
    m_home.reset();
    for (auto const& disk : m_made_disks)
        if (auto gone = remove_file(disk); !gone) log::warning("{}", gone.error().message());
    if (m_stage >= Stage::Published && m_stage < Stage::Started) {
        auto done = abandon_for_good(m_journal, m_location, m_hello.migration);
        if (!done) log::warning("what came of VM '{}' is still here: {}", m_hello.name, done.error().message());
    }
    m_stage = Stage::Over;
}

Result<void> Destination::told(Result<void> done) {
    if (!done) m_stream->send_failure(done.error());
    return done;
}

Result<void> Destination::may_use_disk(std::filesystem::path const& path) const {
    if (m_options.may_use_disk) return m_options.may_use_disk(path);
    return make_error(ErrorCode::Permission, "disk images that hosts share are not taken here");
}

// What the home says counts later on, and Hello was another word of the source's.
Result<void> Destination::check_configuration(VmConfig const& config) const {
    for (auto const& disk : config.disks) {
        if (disk.protection != DiskProtection::None) continue;
        if (std::ranges::find(m_made_disks, std::filesystem::path(disk.path)) == m_made_disks.end())
            TRY(may_use_disk(disk.path));
    }
    return {};
}

// A place for a copy, as far as that can be told before it comes.
Result<void> Destination::check_place(size_t number, HasSnapshots snapshots) const {
    auto const& disk = m_hello.disks[number];
    if (!m_options.place_disk)
        return make_error(ErrorCode::Unsupported,
                          "copies of disks are not taken here: 'coffer receive' takes them with --disk-folder DIR");
    auto const place = TRY(m_options.place_disk(number, disk));
    if (snapshots == HasSnapshots::Yes && place != disk.path)
        return make_error(ErrorCode::Unsupported,
                          "the VM has, or had, snapshots, which name its disks by their paths: on this host a copy of "
                          "disk {} can be at {} alone, and would come to {}",
                          number, disk.path, place.native());
    std::error_code error;
    if (std::filesystem::exists(std::filesystem::symlink_status(place, error))) return PartedFile::in_the_way(place);
    return {};
}

Result<void> Destination::check_disks(HasSnapshots snapshots) const {
    for (size_t i = 0; i < m_hello.disks.size(); ++i) {
        auto const& disk = m_hello.disks[i];
        if (disk.in_home) continue;
        if (disk.copied) {
            TRY(check_place(i, snapshots));
            continue;
        }
        TRY(may_use_disk(disk.path));
        auto const size = devices::RawDisk::size_of(disk.path);
        if (!size || *size != disk.size)
            return make_error(ErrorCode::NotFound,
                              "disk {} ({}) is {} on this host: have it on storage that both hosts share under one "
                              "path, or migrate with --copy-disks",
                              i, disk.path, size ? "of another size" : "not there");
    }
    return {};
}

Result<void> Destination::greet_unguarded(Bytes hello) {
    m_hello = TRY(decode_hello(hello));
    m_location = {m_root, m_hello.name};
    auto const path = std::filesystem::path("the keys that the other host sent");
    auto const parsed = TRY(parse_bundle(m_hello.keys, path));
    if (parsed.header.vm != m_hello.vm || parsed.header.name != m_hello.name)
        return make_error(ErrorCode::Corrupt, "the other host sent the keys of another VM than the one it names");
    TRY(check_may_arrive(m_location, m_hello.vm, parsed.header.sequence));
    auto key = m_options.open_key(parsed.header);
    if (!key)
        return make_error(ErrorCode::KeyUnavailable,
                          "this host has no key for VM '{}', which is under key {} of provider {}: {}", m_hello.name,
                          parsed.header.key_id, parsed.header.provider.to_string(), key.error().message());
    // That the key opens it says that it is the right one, and the header the VM's own.
    auto const bundle = TRY(open_bundle(parsed, *key, path));
    m_key = std::move(*key);
    TRY(check_disks(bundle.manifest.find(file_name(HomeFile::Snapshots)) ? HasSnapshots::Yes : HasSnapshots::No));
    auto memory = TRY(m_options.check_machine(m_hello));
    m_memory = TRY(MemoryReceiver::create(std::move(memory)));
    m_firmware = TRY(HostMapping::create(m_hello.firmware_size));

    auto const proof_key = TRY(derive_migration_key(*m_key, m_hello.migration));
    ProofContext context{m_peer.exporter, m_hello.migration, m_hello.vm, m_hello.nonce};
    WelcomeMessage welcome;
    welcome.proof = TRY(make_proof(proof_key, Side::Destination, context));
    TRY(crypto::random_bytes(welcome.nonce));
    TRY(m_stream->send(welcome));
    auto const body = TRY(m_stream->expect(MessageType::Proof));
    ProofMessage proof;
    TRY(decode_fields(body, proof));
    context.nonce = welcome.nonce;
    return check_proof(proof_key, Side::Source, context, proof.proof);
}

Result<void> Destination::greet(Bytes hello) {
    return told(greet_unguarded(hello));
}

Result<void> Destination::take_firmware(Bytes bytes) {
    auto const room = m_firmware.bytes().subspan(m_firmware_here);
    if (bytes.empty() || bytes.size() > room.size())
        return make_error(ErrorCode::Corrupt, "the other host sends more firmware than the machine has");
    std::memcpy(room.data(), bytes.data(), bytes.size());
    m_firmware_here += bytes.size();
    if (bytes.size() < room.size() || TRY(crypto::sha256({m_firmware.bytes()})) == m_hello.firmware) return {};
    return make_error(ErrorCode::Integrity, "the firmware that came is not the one that was announced");
}

Result<void> Destination::begin_file(FileMessage const& message) {
    if (m_parted.contains({message.disk, message.name}))
        return make_error(ErrorCode::Corrupt, "the other host sends a file twice that comes in parts");
    if (message.in_parts) return begin_parts(message);
    if (message.disk != 0) return make_error(ErrorCode::Corrupt, "the other host sends a disk, and not in parts");
    m_file_left = message.size;
    TRY(m_home->begin_file(message.name));
    return m_file_left == 0 ? m_home->end_file() : Result<void>();
}

Result<void> Destination::begin_parts(FileMessage const& message) {
    std::filesystem::path path;
    if (message.disk == 0) {
        path = TRY(m_home->place_of(message.name));
    } else {
        size_t const number = message.disk - 1;
        if (number >= m_hello.disks.size() || !m_hello.disks[number].copied)
            return make_error(ErrorCode::Corrupt, "the other host sends disk {}, which it did not announce", number);
        if (message.size != m_hello.disks[number].size)
            return make_error(ErrorCode::Corrupt, "the other host sends disk {} with another size than it announced",
                              number);
        path = TRY(m_options.place_disk(number, m_hello.disks[number]));
    }
    auto file = TRY(PartedFile::create(path, message.size, message.reserve));
    m_parted.emplace(std::pair(message.disk, message.name), std::move(file));
    if (message.disk == 0) return {};
    m_made_disks.push_back(path);
    if (path != m_hello.disks[message.disk - 1].path) m_places[message.disk - 1] = path;
    return {};
}

Result<void> Destination::begin_part(FilePartMessage const& message) {
    auto const found = m_parted.find({message.disk, message.name});
    if (found == m_parted.end() || message.offset > found->second.size() ||
        message.size > found->second.size() - message.offset)
        return make_error(ErrorCode::Corrupt, "the other host sends a part of a file that does not have it");
    if (message.zeros) return found->second.zero(message.offset, message.size);
    m_part_of = &found->second;
    m_part_at = message.offset;
    m_file_left = message.size;
    return {};
}

Result<void> Destination::take_file_data(Bytes bytes) {
    if (bytes.empty() || bytes.size() > m_file_left)
        return make_error(ErrorCode::Corrupt, "the other host sends more of a file than it has");
    TRY(m_part_of ? m_part_of->write(m_part_at, bytes) : m_home->append(bytes));
    m_part_at += bytes.size();
    m_file_left -= bytes.size();
    if (m_file_left > 0) return {};
    return std::exchange(m_part_of, nullptr) ? Result<void>() : m_home->end_file();
}

// While the guest runs, too: then there is little left for when it stands still.
Result<void> Destination::sync_parts() {
    for (auto& [name, file] : m_parted) TRY(file.sync());
    return {};
}

Result<void> Destination::receive_unguarded() {
    m_home.emplace(TRY(IncomingHome::begin(m_location)));
    m_stage = Stage::Receiving;
    for (size_t files = 0;;) {
        auto const frame = TRY(m_stream->receive());
        if (m_file_left > 0 && frame.type != MessageType::FileData)
            return make_error(ErrorCode::Corrupt, "the other host did not send all of a file");
        switch (frame.type) {
        case MessageType::File: {
            if (++files > 2 * k_max_files) return make_error(ErrorCode::Corrupt, "the other host sends too many files");
            auto const message = TRY(decode_file(frame.body));
            TRY(begin_file(message));
            break;
        }
        case MessageType::FilePart: {
            auto const message = TRY(decode_file_part(frame.body));
            TRY(begin_part(message));
            break;
        }
        case MessageType::FileData: TRY(take_file_data(frame.body)); break;
        case MessageType::Firmware: TRY(take_firmware(frame.body)); break;
        case MessageType::Memory:
            TRY(sync_parts());
            TRY(m_memory->take(frame.body));
            break;
        case MessageType::Mark: {
            MarkMessage mark;
            TRY(decode_fields(frame.body, mark));
            auto const file = TRY(m_home->place_of(k_mark_file));
            TRY(write_out(file));
            TRY(m_stream->send(ReachedMessage{mark.number}));
            break;
        }
        case MessageType::State:
            if (m_state.size() + frame.body.size() > k_max_state)
                return make_error(ErrorCode::Corrupt, "the other host sends too large a machine");
            append(m_state, frame.body);
            break;
        case MessageType::Prepare:
            m_times.begin();
            m_prepare = TRY(decode_prepare(frame.body));
            if (m_prepare.state_size != m_state.size())
                return make_error(ErrorCode::Corrupt, "the other host did not send all of the machine's state");
            if (m_firmware_here != m_hello.firmware_size)
                return make_error(ErrorCode::Corrupt, "the other host did not send all of the firmware");
            TRY(sync_parts());
            m_parted.clear();
            m_times.done("disks");
            return m_memory->finish(m_prepare.memory);
        default:
            return make_error(ErrorCode::Corrupt, "the other host said {} where files and memory were to come",
                              static_cast<unsigned>(frame.type));
        }
    }
}

Result<void> Destination::receive() {
    return told(receive_unguarded());
}

Result<std::unique_ptr<HomeSession>> Destination::open_home() {
    auto opened = [&]() -> Result<std::unique_ptr<HomeSession>> {
        // From here on a crash leaves something: the home's record names the migration, and the journal does not have
        // it.
        m_stage = Stage::Published;
        if (!m_places.empty()) TRY(m_home->move_disks(*m_key, m_places));
        TRY(m_home->publish(m_hello.vm, m_prepare.sequence, m_hello.migration));
        m_home.reset();
        auto key = crypto::BundleKey::adopt(crypto::SecretBytes::copy_of(m_key->expose()));
        auto home =
            TRY(open_arriving(m_location, m_hello.migration,
                              [&](BundleHeader const&) -> Result<crypto::BundleKey> { return std::move(*key); }));
        m_key.reset();
        auto const header = home->header();
        if (!header || header->vm != m_hello.vm || header->sequence != m_prepare.sequence)
            return make_error(ErrorCode::Corrupt, "the home that came is not the one that was announced");
        TRY(check_configuration(home->config()));
        m_times.done("home");
        return home;
    }();
    if (!opened) m_stream->send_failure(opened.error());
    return opened;
}

Result<void> Destination::ready() {
    auto done = [&]() -> Result<void> {
        m_state = ByteVector();
        m_memory.reset();
        IncomingMigration entry;
        entry.id = m_hello.migration;
        entry.vm = m_hello.vm;
        entry.name = m_hello.name;
        entry.peer = m_peer.fingerprint;
        entry.peer_name = m_peer.name;
        TRY(m_journal.prepare(std::move(entry)));
        m_stage = Stage::Prepared;
        m_times.done("prepared");
        return {};
    }();
    if (!done) return told(std::move(done));
    // Where the source did not hear it, it may come again.
    if (auto said = m_stream->send(ReadyMessage()); !said) m_stream.reset();
    return {};
}

// True: it may start. An error: it never will.
Result<bool> Destination::take_answer(Stream::Frame const& frame) {
    switch (frame.type) {
    case MessageType::Go: {
        auto started = m_journal.start(m_hello.migration);
        if (!started) {
            // Either it was abandoned, or whether it is durable cannot be told: then the source hears it from the
            // journal, not from this process, which does not run the guest in any case.
            m_stage = started.error().code() == ErrorCode::Cancelled ? Stage::Prepared : Stage::Over;
            return std::move(started).error();
        }
        m_stage = Stage::Started;
        m_times.done("go");
        return true;
    }
    default:
        return make_error(ErrorCode::Corrupt, "the other host said {} where it was to let go",
                          static_cast<unsigned>(frame.type));
    }
}

Result<void> Destination::wait_for_go(Reconnect const& reconnect) {
    COFFER_ASSERT(m_stage == Stage::Prepared);
    auto const end = monotonic_now() + m_options.patience;
    for (;;) {
        if (!m_stream) {
            auto const left = end - monotonic_now();
            if (left > 0 && reconnect) m_stream = reconnect(left);
            if (!m_stream)
                return make_error(ErrorCode::Io,
                                  "the connection to the source of VM '{}' is lost, and it did not come "
                                  "back",
                                  m_hello.name);
            if (auto told = m_stream->send(StandingMessage{Fate::Prepared}); !told) {
                m_stream.reset();
                continue;
            }
        }
        // A message is short: one that began is not waited for in vain.
        auto frame = m_stream->receive(k_ns_per_s);
        if (!frame) {
            auto const code = frame.error().code();
            bool const superseded = m_options.superseded && m_options.superseded();
            if (code == ErrorCode::Timeout && !m_stream->was_told() && !superseded && monotonic_now() < end) continue;
            if (m_stream->was_told() || (code != ErrorCode::Io && code != ErrorCode::Timeout))
                return std::move(frame).error();
            m_stream.reset();
            continue;
        }
        if (TRY(take_answer(*frame))) return {};
    }
}

void Destination::confirm() noexcept {
    COFFER_ASSERT(m_stage == Stage::Started);
    m_stage = Stage::Over;
    auto settled = [&]() -> Result<void> {
        TRY(m_stream->send(StartedMessage()));
        TRY(m_stream->expect(MessageType::Settled, k_settle_limit));
        // The record says by now that the VM is this host's; where it does not, the journal is what says so.
        auto const record = TRY(read_host_record(m_location.host_record()));
        if (record && record->standing == Standing::Owner) TRY(m_journal.forget_incoming(m_hello.migration));
        return {};
    }();
    if (!settled) log::debug("the source has not heard that the VM runs here: {}", settled.error().message());
    m_stream.reset();
}

Result<void> answer_ask(Stream& stream, HomeRoot const& root, Peer const& peer, AskMessage const& ask) {
    MigrationJournal const journal(root);
    HomeLocation const location{root, ask.name};
    auto const fate = [&]() -> Result<Fate> {
        if (auto const known = TRY(journal.read_incoming(ask.migration));
            known && known->state != IncomingState::Abandoned && known->peer != peer.fingerprint)
            return make_error(ErrorCode::Permission, "that migration is not with this host");
        auto const state = TRY(abandon_for_good(journal, location, ask.migration));
        return state == IncomingState::Started ? Fate::Started : Fate::Abandoned;
    }();
    if (!fate) {
        stream.send_failure(fate.error());
        return fate.error();
    }
    TRY(stream.send(StandingMessage{*fate}));
    TRY(stream.expect(MessageType::Settled));
    auto const record = TRY(read_host_record(location.host_record()));
    if (record && record->migration == ask.migration && record->standing == Standing::Arriving) return {};
    return journal.forget_incoming(ask.migration);
}

} // namespace coffer::vmm::migrate
