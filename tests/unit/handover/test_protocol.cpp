// The protocol between two hosts where nothing fails, and where something is refused.
#include "tests/unit/handover/migration_world.hpp"
#include "vmm/migrate/proof.hpp"

namespace coffer::vmm::migrate::tests {
namespace {

TEST(MigrationProtocol, MovesAVm) {
    World world;
    auto const ends = world.move();
    EXPECT_EQ(ends.source, 0);
    EXPECT_EQ(ends.destination, 0);
    EXPECT_EQ(world.told().outcome.load(), static_cast<int>(Outcome::Moved));
    EXPECT_TRUE(world.told().runs_there);
    world.expect_one_owner_with_everything();
    EXPECT_EQ(world.told().tpm.load(), 20);

    // The source's copy says where the VM is, and can be removed.
    auto here = world.source().open("vm");
    ASSERT_FALSE(here);
    EXPECT_EQ(here.error().code(), ErrorCode::Busy);
    EXPECT_NE(here.error().message().find("has moved to host 'destination' (there:1)"), std::string::npos)
        << here.error().message();
    // Were the mark not there, the counter alone would refuse it.
    auto const location = world.source().location("vm");
    auto record = **read_host_record(location.host_record());
    EXPECT_EQ(record.standing, Standing::HandedOver);
    record.standing = Standing::Owner;
    ASSERT_TRUE(write_host_record(location.host_record(), record));
    EXPECT_EQ(world.source().open("vm").error().code(), ErrorCode::Integrity);
    ASSERT_TRUE(remove_home(location));
    EXPECT_FALSE(std::filesystem::exists(location.folder()));

    auto there = world.open_there();
    ASSERT_TRUE(there);
    auto const history = *(*there)->history();
    EXPECT_EQ(history.back().kind, HistoryKind::Received);
    // The newest state of the source was the one before this host's first.
    EXPECT_GE((*there)->header()->sequence, record.sequence);
}

// A disk image is copied to where the destination wants it, and the configuration there says so.
TEST(MigrationProtocol, CopiesDisks) {
    World world(true);
    auto const ends = world.move();
    EXPECT_EQ(ends.source, 0);
    EXPECT_EQ(ends.destination, 0);
    EXPECT_EQ(world.told().outcome.load(), static_cast<int>(Outcome::Moved));
    world.expect_one_owner_with_everything();
    EXPECT_TRUE(*read_file(world.disk(), 1 << 23) == *read_file(world.moved_disk(), 1 << 23));
    auto there = world.open_there();
    ASSERT_TRUE(there) << there.error().message();
    EXPECT_EQ((*there)->config().disks.at(0).path, world.moved_disk());
    EXPECT_EQ((*there)->config().memory, world.config().memory);
}

// A source that says what does not belong together.
class Misbehaviour : public testing::Test {
protected:
    // What the destination says to these messages, after a greeting.
    Error say(std::function<Result<void>(Stream&)> const& messages) {
        World::Wire wire;
        std::thread source([&] {
            auto home = m_world.source().open("vm");
            Stream stream(std::move(wire.source));
            HelloMessage machine;
            machine.platform = {k_pages * 4096, 1, 1, false, {4096, 4096}};
            machine.disks = {{"/a/disk", 4096, false, false, true}, {"", 4096, false, true, false}};
            auto begun = Source::begin(**home, stream, World::peer("destination"), machine, guest_firmware());
            ASSERT_TRUE(begun->greet());
            ASSERT_TRUE(messages(stream));
            ASSERT_FALSE(stream.receive()); // until it is over there
        });
        auto stream = std::make_unique<Stream>(std::move(wire.destination));
        auto hello = stream->expect(MessageType::Hello);
        Destination::Options options;
        ByteVector memory(k_pages * 4096);
        options.check_machine = [&](HelloMessage const&) -> Result<std::vector<MutBytes>> {
            return std::vector<MutBytes>{memory};
        };
        options.open_key = m_world.key_opener();
        options.place_disk = [&](size_t, HelloDisk const&) -> Result<std::filesystem::path> {
            return m_folder.path() / "disk";
        };
        Result<void> received;
        {
            Destination destination(m_world.destination_root(), std::move(stream), World::peer("source"), options);
            EXPECT_TRUE(destination.greet(*hello));
            received = destination.receive();
        }
        source.join();
        EXPECT_FALSE(received);
        EXPECT_FALSE(std::filesystem::exists(m_folder.path() / "disk"));
        return received ? make_error(ErrorCode::Internal, "taken") : received.error();
    }
    coffer::tests::TempFolder m_folder;
    World m_world;
};

TEST_F(Misbehaviour, FirmwareIsWhatWasAnnounced) {
    auto const send = [](Stream& stream, Bytes firmware) -> Result<void> {
        TRY(stream.send(MessageType::Firmware, firmware.first(k_max_chunk)));
        return stream.send(MessageType::Firmware, firmware.subspan(k_max_chunk));
    };
    auto other = guest_firmware();
    other.back() ^= std::byte{1};
    auto error = say([&](Stream& stream) { return send(stream, other); });
    EXPECT_EQ(error.code(), ErrorCode::Integrity) << error.message();

    error = say([&](Stream& stream) -> Result<void> {
        TRY(stream.send(MessageType::Firmware, Bytes(other).first(4096)));
        return stream.send(PrepareMessage());
    });
    EXPECT_EQ(error.code(), ErrorCode::Corrupt);
    EXPECT_NE(error.message().find("all of the firmware"), std::string::npos) << error.message();

    error = say([&](Stream& stream) -> Result<void> {
        TRY(send(stream, guest_firmware()));
        return stream.send(MessageType::Firmware, Bytes(other).first(1));
    });
    EXPECT_EQ(error.code(), ErrorCode::Corrupt);
    EXPECT_NE(error.message().find("more firmware"), std::string::npos) << error.message();
}

TEST_F(Misbehaviour, PartsOfFilesFit) {
    FileMessage const disk{.disk = 1, .size = 4096, .in_parts = true};
    auto after_disk = [&](auto const& message) {
        return [&disk, message](Stream& stream) -> Result<void> {
            TRY(stream.send(disk));
            return stream.send(message);
        };
    };
    auto refused = [&](std::function<Result<void>(Stream&)> const& messages, std::string_view what) {
        auto const error = say(messages);
        EXPECT_EQ(error.code(), ErrorCode::Corrupt) << what << ": " << error.message();
    };
    refused(after_disk(FilePartMessage{.disk = 1, .offset = 4096, .size = 1}), "behind the end");
    refused(after_disk(FilePartMessage{.disk = 1, .offset = 512, .size = 4096, .zeros = true}), "over the end");
    refused(after_disk(FilePartMessage{.disk = 2, .offset = 0, .size = 512}), "of another");
    refused(after_disk(FilePartMessage{.name = "config", .offset = 0, .size = 512}), "of what is not in parts");
    refused(after_disk(disk), "twice");
    refused(after_disk(FileMessage{.disk = 2, .size = 4096, .in_parts = true}), "not announced");
    refused(after_disk(FileMessage{.disk = 3, .size = 4096, .in_parts = true}), "no such disk");
    refused(after_disk(FileMessage{.disk = 1, .size = 4096}), "twice, and whole");
    refused([](Stream& stream) { return stream.send(FileMessage{.disk = 1, .size = 4096}); }, "a disk, whole");
    refused([](Stream& stream) { return stream.send(FileMessage{.disk = 1, .size = 8192, .in_parts = true}); },
            "of another size");
    refused(
        [&](Stream& stream) -> Result<void> {
            TRY(stream.send(disk));
            TRY(stream.send(FilePartMessage{.disk = 1, .offset = 512, .size = 512}));
            return stream.send(MessageType::FileData, ByteVector(1024));
        },
        "more than the part");
    refused(
        [&](Stream& stream) -> Result<void> {
            TRY(stream.send(disk));
            TRY(stream.send(FilePartMessage{.disk = 1, .offset = 512, .size = 512}));
            return stream.send(FilePartMessage{.disk = 1, .offset = 0, .size = 512});
        },
        "before the part was there");
}

// What is there is no place for a copy: nothing is replaced, and the VM stays.
TEST(MigrationProtocol, ReplacesNoDisk) {
    World world(true);
    ASSERT_TRUE(replace_file(world.moved_disk(), as_bytes("another's disk")));
    auto const ends = world.move();
    EXPECT_EQ(ends.source, 0);
    EXPECT_NE(ends.destination, 0);
    EXPECT_TRUE(world.told().runs_here);
    world.expect_one_owner_with_everything();
    EXPECT_TRUE(*read_file(world.moved_disk(), 100) == bytes_of("another's disk"));
}

// The home counts, not what the source said of it: it could have any file of this host as a disk.
TEST(MigrationProtocol, UsesNoDiskThatItsHostDoesNotShare) {
    World world(true);
    world.conceal_disk();
    auto const ends = world.move();
    EXPECT_EQ(ends.source, 0);
    EXPECT_NE(ends.destination, 0);
    EXPECT_TRUE(world.told().runs_here);
    world.expect_one_owner_with_everything();
}

TEST(MigrationProtocol, MovesThereAndBack) {
    World world;
    auto const ends = world.move();
    EXPECT_EQ(ends.source, 0);
    EXPECT_EQ(ends.destination, 0);
    // The other way round, over the copy that was handed over.
    World::Wire wire;
    auto const back = World::spawn([&] {
        wire.destination.reset();
        auto stream = std::make_unique<Stream>(std::move(wire.source));
        auto frame = stream->receive();
        if (!frame) return 1;
        ByteVector memory(k_pages * 4096);
        Destination::Options options;
        options.check_machine = [&](HelloMessage const&) -> Result<std::vector<MutBytes>> {
            return std::vector<MutBytes>{memory};
        };
        options.open_key = world.key_opener();
        Destination destination(world.source().root(), std::move(stream), World::peer("b"), std::move(options));
        if (!destination.greet(frame->body) || !destination.receive()) return 2;
        auto home = destination.open_home();
        if (!home || !destination.ready() || !destination.wait_for_go({})) return 3;
        if (!(*home)->claim(HistoryKind::Received, "back again")) return 4;
        destination.confirm();
        return 0;
    });
    wire.source.reset();
    {
        auto home = world.open_there();
        ASSERT_TRUE(home) << home.error().message();
        Stream stream(std::move(wire.destination));
        HelloMessage machine;
        machine.platform = {k_pages * 4096, 1, 1, false, {}};
        auto source = Source::begin(**home, stream, World::peer("a"), machine, guest_firmware());
        ASSERT_TRUE(source);
        auto greeted = source->greet();
        ASSERT_TRUE(greeted) << greeted.error().message();
        ASSERT_TRUE(source->send_files({}));
        std::array<PageRun, 1> const run{{{0, k_pages}}};
        ByteVector batch;
        encode_batch_head(batch, batch_spec::k_zeros, 0, run);
        ASSERT_TRUE(source->send_memory(batch));
        auto prepared = source->prepare(machine_state(), *crypto::sha256({crypto::Digest{}, batch}));
        ASSERT_TRUE(prepared) << prepared.error().message();
        auto outcome = source->hand_over();
        ASSERT_TRUE(outcome) << outcome.error().message();
        EXPECT_EQ(*outcome, Outcome::Moved);
    }
    EXPECT_EQ(World::wait(back), 0);
    auto here = world.source().open("vm");
    ASSERT_TRUE(here) << here.error().message();
    EXPECT_EQ(*(*here)->load(HomeFile::Tpm), World::tpm_state(20));
    EXPECT_EQ(world.open_there().error().code(), ErrorCode::Busy);
}

// What a destination says to a Hello.
class Refusals : public testing::Test {
protected:
    Destination::Options options() {
        Destination::Options options;
        options.check_machine = [&](HelloMessage const&) -> Result<std::vector<MutBytes>> {
            return std::vector<MutBytes>{m_memory};
        };
        options.open_key = m_world.key_opener();
        return options;
    }
    // Gives what the destination's greet() gave; m_source_said is the source's.
    Result<void> greet(Destination::Options options, Exporter const& exporter = {}) {
        World::Wire wire;
        std::thread source([&] {
            auto home = m_world.source().open("vm");
            Stream stream(std::move(wire.source));
            HelloMessage machine;
            machine.platform = {k_pages * 4096, 1, 1, false, {}};
            auto begun = Source::begin(**home, stream, World::peer("destination"), machine, guest_firmware());
            m_source_said = begun->greet();
        });
        auto stream = std::make_unique<Stream>(std::move(wire.destination));
        auto hello = stream->expect(MessageType::Hello);
        EXPECT_TRUE(hello);
        auto peer = World::peer("source");
        peer.exporter = exporter;
        std::optional<Destination> destination;
        destination.emplace(m_world.destination_root(), std::move(stream), peer, std::move(options));
        auto greeted = destination->greet(*hello);
        destination.reset();
        source.join();
        return greeted;
    }
    void expect_nothing_moved() {
        EXPECT_FALSE(std::filesystem::exists(m_world.destination_root().vms() / "vm"));
        EXPECT_FALSE(std::filesystem::exists(m_world.destination_root().vms() / ".vm.new"));
        EXPECT_TRUE(m_world.source().open("vm"));
    }

    World m_world;
    ByteVector m_memory = ByteVector(k_pages * 4096);
    Result<void> m_source_said;
};

TEST_F(Refusals, NoneWhereAllFits) {
    auto greeted = greet(options());
    EXPECT_TRUE(greeted) << greeted.error().message();
    EXPECT_TRUE(m_source_said);
    expect_nothing_moved();
}

TEST_F(Refusals, ADestinationWithoutTheKeyIsNamedTheKeyAndProvider) {
    auto without = options();
    without.open_key = [](BundleHeader const&) -> Result<crypto::BundleKey> {
        return make_error(ErrorCode::KeyUnavailable, "no such provider");
    };
    EXPECT_EQ(greet(std::move(without)).error().code(), ErrorCode::KeyUnavailable);
    ASSERT_FALSE(m_source_said);
    EXPECT_EQ(m_source_said.error().code(), ErrorCode::KeyUnavailable);
    auto const header = *m_world.source().open("vm", HomeAccess::ReadOnly).value()->header();
    for (auto const& part : {header.key_id, header.provider.to_string()})
        EXPECT_NE(m_source_said.error().message().find(part), std::string::npos) << m_source_said.error().message();
    expect_nothing_moved();
}

TEST_F(Refusals, AnotherKeyThanTheHomesIsNone) {
    auto other = options();
    other.open_key = [](BundleHeader const&) { return crypto::BundleKey::random(); };
    EXPECT_EQ(greet(std::move(other)).error().code(), ErrorCode::Integrity);
    EXPECT_FALSE(m_source_said);
    expect_nothing_moved();
}

// A proof that is passed on from another connection proves nothing: the ends of one that somebody sits between have
// different exporters.
TEST_F(Refusals, AProofIsOfOneConnection) {
    Exporter other{};
    other[0] = std::byte{1};
    EXPECT_FALSE(greet(options(), other));
    ASSERT_FALSE(m_source_said);
    EXPECT_EQ(m_source_said.error().code(), ErrorCode::KeyUnavailable) << m_source_said.error().message();
    expect_nothing_moved();
}

TEST_F(Refusals, AMachineThatDoesNotFit) {
    auto unfit = options();
    unfit.check_machine = [](HelloMessage const&) -> Result<std::vector<MutBytes>> {
        return make_error(ErrorCode::Unsupported, "this CPU lacks avx512f");
    };
    EXPECT_EQ(greet(std::move(unfit)).error().code(), ErrorCode::Unsupported);
    ASSERT_FALSE(m_source_said);
    EXPECT_EQ(m_source_said.error().code(), ErrorCode::Unsupported);
    EXPECT_NE(m_source_said.error().message().find("avx512f"), std::string::npos);
}

TEST_F(Refusals, AVmOfTheNameIsThere) {
    Host there(m_world.destination_root().root.parent_path());
    ASSERT_EQ(there.root().root, m_world.destination_root().root);
    ASSERT_TRUE(there.create(vmm::tests::make_config("vm"), ByteVector(100)));
    EXPECT_EQ(greet(options()).error().code(), ErrorCode::AlreadyExists);
    ASSERT_FALSE(m_source_said);
    EXPECT_EQ(m_source_said.error().code(), ErrorCode::AlreadyExists);
    EXPECT_TRUE(there.open("vm"));
}

TEST_F(Refusals, TheVmIsThereUnderAnotherName) {
    Host there(m_world.destination_root().root.parent_path());
    auto config = m_world.config();
    config.name = "other";
    ASSERT_TRUE(there.create(config, ByteVector(100)));
    EXPECT_EQ(greet(options()).error().code(), ErrorCode::AlreadyExists);
    EXPECT_NE(m_source_said.error().message().find("'other'"), std::string::npos);
}

// The source stops its guest when this mark is reached, and none before it.
TEST(MigrationProtocol, WaitsForTheMarkThatItSet) {
    World world;
    World::Wire wire;
    auto home = world.source().open("vm");
    ASSERT_TRUE(home);
    Stream here(std::move(wire.source));
    Stream there(std::move(wire.destination));
    HelloMessage machine;
    machine.platform = {k_pages * 4096, 1, 1, false, {}};
    auto source = Source::begin(**home, here, World::peer("destination"), machine, guest_firmware());
    ASSERT_TRUE(source);
    ASSERT_TRUE(there.send(ReachedMessage{1}));
    EXPECT_TRUE(source->wait_until_taken());
    ASSERT_TRUE(there.send(ReachedMessage{1}));
    auto const early = source->wait_until_taken();
    ASSERT_FALSE(early);
    EXPECT_EQ(early.error().code(), ErrorCode::Corrupt);
    for (uint32_t number : {1U, 2U}) {
        auto const body = there.expect(MessageType::Mark);
        ASSERT_TRUE(body);
        MarkMessage mark;
        ASSERT_TRUE(decode_fields(*body, mark));
        EXPECT_EQ(mark.number, number);
    }
}

TEST(MigrationProofs, DependOnEverything) {
    auto const key = *crypto::MacKey::random();
    ProofContext context;
    context.migration = *crypto::random_uuid();
    context.vm = *crypto::random_uuid();
    auto const proof = *make_proof(key, Side::Destination, context);
    EXPECT_TRUE(check_proof(key, Side::Destination, context, proof));
    EXPECT_FALSE(check_proof(key, Side::Source, context, proof)) << "neither side's is the other's";
    EXPECT_FALSE(check_proof(*crypto::MacKey::random(), Side::Destination, context, proof));
    for (int what = 0; what < 4; ++what) {
        auto changed = context;
        if (what == 0) changed.nonce[31] ^= std::byte{1};
        if (what == 1) changed.exporter[0] ^= std::byte{1};
        if (what == 2) changed.vm = *crypto::random_uuid();
        if (what == 3) changed.migration = *crypto::random_uuid();
        EXPECT_FALSE(check_proof(key, Side::Destination, changed, proof)) << what;
    }
}

// A source that comes back on another connection finds the machine that waits for it.
TEST(MigrationProtocol, GoesOnWhereTheSourceComesBack) {
    World world;
    World::Wire wire;
    World::Wire second;
    auto const waiting = World::spawn([&] {
        wire.source.reset();
        second.source.reset();
        auto stream = std::make_unique<Stream>(std::move(wire.destination));
        auto hello = stream->expect(MessageType::Hello);
        ByteVector memory(k_pages * 4096);
        Destination::Options options;
        options.check_machine = [&](HelloMessage const&) -> Result<std::vector<MutBytes>> {
            return std::vector<MutBytes>{memory};
        };
        options.open_key = world.key_opener();
        Destination destination(world.destination_root(), std::move(stream), World::peer("source"), options);
        if (!hello || !destination.greet(*hello) || !destination.receive()) return 2;
        auto home = destination.open_home();
        if (!home || !destination.ready()) return 3;
        auto go = destination.wait_for_go([&](Nanoseconds) {
            auto again = std::make_unique<Stream>(std::move(second.destination));
            return again->expect(MessageType::Ask) ? std::move(again) : nullptr;
        });
        if (!go || !(*home)->claim(HistoryKind::Received, "from there")) return 4;
        world.told().runs_there = true;
        destination.confirm();
        return 0;
    });
    wire.destination.reset();
    second.destination.reset();
    Told counted;
    // Cut before Go is sent.
    int const all = [] {
        World other;
        World::Wire pair;
        Told idle;
        Told sent;
        auto const child = World::spawn([&] {
            pair.source.reset();
            return other.run_destination(std::move(pair.destination), {}, idle);
        });
        pair.destination.reset();
        other.run_source(std::move(pair.source), {}, sent);
        World::wait(child);
        return sent.messages.load();
    }();
    world.run_source(std::move(wire.source), {MessageFault::Cut, all - 3}, counted);
    ASSERT_EQ(world.told().outcome.load(), static_cast<int>(Outcome::Undecided));
    HomeLocation const location = world.source().location("vm");
    auto const record = **read_host_record(location.host_record());
    MigrationJournal const journal(location.root);
    Stream stream(std::move(second.source));
    auto outcome = settle(stream, journal, **journal.read_outgoing(record.migration), {});
    ASSERT_TRUE(outcome) << outcome.error().message();
    EXPECT_EQ(*outcome, Outcome::Moved);
    EXPECT_EQ(World::wait(waiting), 0);
    world.expect_one_owner_with_everything();
}

} // namespace
} // namespace coffer::vmm::migrate::tests
