// A home moves to another root whole or not at all, wherever it is stopped, and is never in two places.
#include "tests/unit/home/move_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

TEST_F(HomeMove, MovesAndMovesBack) {
    auto const before = read_host_record(record());
    ASSERT_TRUE(before && *before);
    auto moved = move();
    ASSERT_TRUE(moved) << moved.error().message();
    expect_gone_here();
    EXPECT_EQ(*read_host_record(there().host_record()), *before);
    {
        auto home = open(there());
        ASSERT_TRUE(home) << home.error().message();
        EXPECT_TRUE(has_content(**home, m_tpm));
        EXPECT_EQ((*home)->config(), m_config);
        ASSERT_TRUE((*home)->commit(HomeFile::Tpm, bytes_of("later")));
    }
    auto again = move();
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code(), ErrorCode::NotFound);
    auto back = move_home(there(), m_host.root(), [](uint64_t, uint64_t) -> Result<void> { return {}; });
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_FALSE(fs::exists(there().folder()));
    auto home = open(m_host.location("vm"));
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_TRUE(has_content(**home, bytes_of("later")));
}

TEST_F(HomeMove, UnencryptedHome) {
    auto config = make_config("plain", TpmKind::None);
    ASSERT_TRUE(create_home(m_host.location("plain"), config, m_nvram, std::nullopt));
    auto moved = move_home(m_host.location("plain"), m_there, [](uint64_t, uint64_t) -> Result<void> { return {}; });
    ASSERT_TRUE(moved) << moved.error().message();
    auto home = open({m_there, "plain"});
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_EQ((*home)->config(), config);
    EXPECT_FALSE(fs::exists(m_host.location("plain").folder()));
}

TEST_F(HomeMove, Refused) {
    auto expect_refused = [&](Result<void> const& moved, ErrorCode code, std::string_view text) {
        ASSERT_FALSE(moved);
        EXPECT_EQ(moved.error().code(), code) << moved.error().message();
        EXPECT_NE(moved.error().message().find(text), std::string::npos) << moved.error().message();
        EXPECT_FALSE(fs::exists(there().folder()));
        auto home = open(m_host.location("vm"));
        ASSERT_TRUE(home) << home.error().message();
    };
    auto const nothing = [](uint64_t, uint64_t) -> Result<void> { return {}; };
    expect_refused(move_home(m_host.location("vm"), m_host.root(), nothing), ErrorCode::InvalidArgument, "already");
    expect_refused(move_home(m_host.location("other"), m_there, nothing), ErrorCode::NotFound, "other");
    {
        auto lock = HomeLock::acquire(m_host.location("vm").folder());
        ASSERT_TRUE(lock);
        auto busy = move();
        lock = make_error(ErrorCode::Busy, "released");
        expect_refused(busy, ErrorCode::Busy, "in use");
    }
    fs::create_directory(file("folder"));
    expect_refused(move(), ErrorCode::InvalidArgument, "folder");
    fs::remove(file("folder"));
    int calls = 0;
    expect_refused(move_home(m_host.location("vm"), m_there,
                             [&](uint64_t, uint64_t) -> Result<void> {
                                 if (++calls == 3) return make_error(ErrorCode::Cancelled, "given up");
                                 return {};
                             }),
                   ErrorCode::Cancelled, "given up");
    fs::rename(m_there.providers(), m_there.root / "elsewhere");
    expect_refused(move(), ErrorCode::KeyUnavailable, "provider restore");
    fs::rename(m_there.root / "elsewhere", m_there.providers());
    auto other = make_config("vm");
    ASSERT_TRUE(create_home(there(), other, m_nvram, m_host.make_seal("x")));
    auto taken = move();
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code(), ErrorCode::AlreadyExists);
}

// Where it was stopped, at most one of the two homes opens; after a second try it is there, whole, and here nothing is
// left of it. A home that was opened and changed in between is the one that counts.
TEST_F(HomeMove, StoppedAnywhere) {
    unsigned stops = 0, here = 0, nowhere = 0, arrived = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        put_back();
        auto run = run_traced([&] { return move() ? 0 : 1; }, {{at, Fault::Kill}});
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 0);
            break;
        }
        ++stops;
        auto expected = m_tpm;
        {
            auto old_home = open(m_host.location("vm"));
            auto new_home = open(there());
            ASSERT_FALSE(old_home && new_home) << "two owners, stopped at " << at;
            (old_home ? here : new_home ? arrived : nowhere) += 1;
            if (old_home || new_home) {
                auto& home = old_home ? **old_home : **new_home;
                ASSERT_TRUE(has_content(home, m_tpm)) << at;
                expected = bytes_of("written in between");
                ASSERT_TRUE(home.commit(HomeFile::Tpm, expected)) << at;
            }
        }
        if (fs::exists(m_host.location("vm").folder()) || fs::exists(m_host.location("vm").host_record())) {
            auto again = move();
            ASSERT_TRUE(again) << "stopped at " << at << ": " << again.error().message();
        }
        EXPECT_FALSE(fs::exists(m_host.location("vm").folder())) << at;
        EXPECT_FALSE(fs::exists(m_host.location("vm").host_record())) << at;
        auto home = open(there());
        ASSERT_TRUE(home) << "stopped at " << at << ": " << home.error().message();
        ASSERT_TRUE(has_content(**home, expected)) << at;
    }
    EXPECT_GT(stops, 30U);
    EXPECT_GT(here, 0U);
    EXPECT_GT(nowhere, 0U); // handed over, and not taken yet
    EXPECT_GT(arrived, 0U);
    RecordProperty("stop_points", static_cast<int>(stops));
}

// The new root gave the move up for good, and the old one's record had no time to say so.
TEST_F(HomeMove, GivenUpByTheNewRootIsBegunAgain) {
    auto const id = *crypto::random_uuid();
    auto taken = **read_host_record(record());
    taken.standing = Standing::HandedOver;
    taken.migration = id;
    ++taken.sequence;
    MigrationJournal const journal(m_there);
    ASSERT_TRUE(journal.prepare(incoming_move(id, m_config.uuid, "vm")));
    ASSERT_EQ(*journal.abandon(id), IncomingState::Abandoned);
    ASSERT_TRUE(MigrationJournal(m_host.root()).write_outgoing(outgoing_move(id, m_config.uuid, "vm", m_there)));
    ASSERT_TRUE(write_host_record(record(), taken));
    EXPECT_EQ(open(m_host.location("vm")).error().code(), ErrorCode::Busy);
    auto moved = move();
    ASSERT_TRUE(moved) << moved.error().message();
    expect_gone_here();
    auto home = open(there());
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_TRUE(has_content(**home, m_tpm));
}

// A disk that fails once: the home is where it was, or moved, or the next try moves it.
TEST_F(HomeMove, FailingDisk) {
    for (Fault fault : {Fault::Eio, Fault::Enospc}) {
        unsigned failures = 0;
        for (unsigned at = 0; at < k_most_writes; ++at) {
            put_back();
            auto run = run_traced([&] { return move() ? 0 : 1; }, {{at, fault}});
            ASSERT_FALSE(run.killed);
            failures += run.exit_code == 1 ? 1 : 0;
            if (fs::exists(m_host.location("vm").folder()) || fs::exists(m_host.location("vm").host_record())) {
                auto again = move();
                ASSERT_TRUE(again) << "failed at " << at << ": " << again.error().message();
            }
            auto home = open(there());
            ASSERT_TRUE(home) << "failed at " << at << ": " << home.error().message();
            ASSERT_TRUE(has_content(**home, m_tpm)) << at;
            if (at >= run.writes) break;
        }
        EXPECT_GT(failures, 20U);
    }
}

} // namespace
} // namespace coffer::vmm::tests
