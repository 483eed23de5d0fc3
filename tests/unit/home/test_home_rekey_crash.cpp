// Rekeys and accepted rollbacks, stopped or failing at every system call that writes. Afterwards the home opens under
// the old key or the new one, with all of its content, and what was begun can be finished.
#include <set>

#include "tests/support/saved_folder.hpp"
#include "tests/support/syscall_tracer.hpp"
#include "tests/unit/home/home_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

using coffer::tests::Fault;
using coffer::tests::PlannedFault;
using coffer::tests::run_traced;

constexpr unsigned k_most_writes = 600; // no operation comes near; a loop that does not end fails

class RekeyCrash : public HomeTest {
protected:
    void SetUp() override {
        HomeTest::SetUp();
        auto home = opened();
        ASSERT_TRUE(home);
        m_old_key = home->header()->key_id;
        m_provider = home->header()->provider;
        ASSERT_TRUE(home->commit_file("snapshot-1.state", m_state));
        add_image(*home, "snapshot-1.memory", m_image);
        home.reset();
        m_saved.save();
    }
    std::unique_ptr<HomeSession> opened(RollbackPolicy rollback = RollbackPolicy::Refuse) {
        auto home = m_host.open("vm", HomeAccess::Writer, rollback);
        EXPECT_TRUE(home) << home.error().message();
        return home ? std::move(*home) : nullptr;
    }
    void expect_content(HomeSession const& home) {
        EXPECT_EQ(home.config(), m_config);
        EXPECT_EQ(*home.load(HomeFile::Nvram), m_nvram);
        EXPECT_EQ(*home.load(HomeFile::Tpm), m_tpm);
        EXPECT_EQ(*home.load_file("snapshot-1.state"), m_state);
        auto image = home.open_image("snapshot-1.memory");
        ASSERT_TRUE(image) << image.error().message();
        EXPECT_EQ(image->root.digest, *crypto::sha256({m_image}));
        EXPECT_EQ(*crypto::sha256({Bytes(content(image->path)).subspan(4096)}), image->root.digest);
    }
    static bool logged(HomeSession const& home, HistoryKind kind) {
        auto const events = home.history();
        return events &&
               std::any_of(events->begin(), events->end(), [&](auto const& event) { return event.kind == kind; });
    }
    // Of every file in the home's folder but `keys` and `lock`.
    std::set<uint32_t> epochs() {
        std::set<uint32_t> epochs;
        for (auto const& entry : std::filesystem::directory_iterator(m_host.location("vm").folder())) {
            auto const name = entry.path().filename().native();
            if (name != "keys" && name != "lock") epochs.insert(parse_data_header(content(entry.path()), name)->epoch);
        }
        return epochs;
    }

    coffer::tests::SavedFolder m_saved{m_folder.path(), {"root", "state"}};
    std::string m_old_key;
    Uuid m_provider;
    ByteVector m_state = bytes_of("state of a snapshot");
    ByteVector m_image = ByteVector(6000, std::byte{0x77});
};

class ShallowRekeyCrash : public RekeyCrash, public testing::WithParamInterface<bool> {};

TEST_P(ShallowRekeyCrash, OpensUnderTheOldKeyOrTheNew) {
    bool const other_provider = GetParam();
    auto seal = m_host.make_seal("2/new", other_provider ? *crypto::random_uuid() : m_provider);
    auto const kind = other_provider ? HistoryKind::ProviderChanged : HistoryKind::Rekeyed;
    unsigned stops = 0;
    unsigned at_new = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        m_saved.rewind();
        auto work = [&] {
            auto home = m_host.open("vm");
            return home && (*home)->rekey(std::move(seal)) ? 0 : 1;
        };
        auto run = run_traced(work, {{at, Fault::Kill}});
        auto home = opened();
        ASSERT_TRUE(home) << "stopped at " << at;
        expect_content(*home);
        bool const is_new = home->header()->key_id == "2/new";
        ASSERT_TRUE(is_new || home->header()->key_id == m_old_key);
        EXPECT_EQ(home->header()->provider, is_new ? seal.provider : m_provider);
        EXPECT_EQ(logged(*home, kind), is_new);
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 0);
            EXPECT_TRUE(is_new);
            break;
        }
        ++stops;
        if (is_new) ++at_new;
    }
    EXPECT_GE(stops, 10U); // `keys` and the host's record: open, write, sync, rename, sync each, and the lock's writes
    EXPECT_GT(at_new, 0U);
    EXPECT_LT(at_new, stops);
    RecordProperty("stop_points", static_cast<int>(stops));
}
INSTANTIATE_TEST_SUITE_P(Providers, ShallowRekeyCrash, testing::Bool());

class FailingRekey : public RekeyCrash, public testing::WithParamInterface<Fault> {};

// The disk fails once. The session goes on under the key that it says it is under, and so does the home.
TEST_P(FailingRekey, SessionAndHomeAgree) {
    auto seal = m_host.make_seal("2/new", m_provider);
    bool failed_once = false;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        m_saved.rewind();
        auto work = [&] {
            auto home = m_host.open("vm");
            if (!home) return 3;
            bool const done = (*home)->rekey(std::move(seal)).has_value();
            if (!(*home)->commit(HomeFile::Tpm, bytes_of("afterwards"))) return 3;
            return ((*home)->header()->key_id == "2/new") == done ? (done ? 0 : 1) : 4;
        };
        auto run = run_traced(work, {{at, GetParam()}});
        ASSERT_FALSE(run.killed);
        ASSERT_NE(run.exit_code, 4) << at;
        auto home = opened();
        ASSERT_TRUE(home) << "failed at " << at;
        if (run.exit_code <= 1) {
            EXPECT_EQ(*home->load(HomeFile::Tpm), bytes_of("afterwards"));
            EXPECT_EQ(home->header()->key_id, run.exit_code == 0 ? "2/new" : m_old_key) << at;
        }
        if (run.exit_code == 1) failed_once = true;
        if (at >= run.writes) break;
    }
    EXPECT_TRUE(failed_once);
}
INSTANTIATE_TEST_SUITE_P(Faults, FailingRekey, testing::Values(Fault::Eio, Fault::Enospc));

class DeepRekeyCrash : public RekeyCrash {
protected:
    int rekey_deep(HomeSeal& seal) {
        auto home = m_host.open("vm");
        return home && (*home)->rekey_deep(std::move(seal), rewrite_image, nullptr) ? 0 : 1;
    }
    // What the owner does after a crash: opens the home, and asks for the rest. Gives whether the rekey had begun.
    bool finish() {
        auto home = opened();
        if (!home) return false;
        expect_content(*home);
        bool const begun = home->header()->key_id == "2/new";
        EXPECT_EQ(logged(*home, HistoryKind::DeepRekeyed), begun);
        EXPECT_TRUE(home->finish_deep_rekey(rewrite_image, nullptr));
        EXPECT_FALSE(home->deep_rekey_pending());
        expect_content(*home);
        EXPECT_EQ(epochs(), std::set<uint32_t>{begun ? 2U : 1U});
        return begun;
    }
};

TEST_F(DeepRekeyCrash, FinishesFromEverywhere) {
    auto seal = m_host.make_seal("2/new", m_provider);
    unsigned stops = 0;
    unsigned at_new = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        m_saved.rewind();
        auto run = run_traced([&] { return rekey_deep(seal); }, {{at, Fault::Kill}});
        bool const begun = finish();
        ASSERT_FALSE(HasFailure()) << "stopped at " << at;
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 0);
            EXPECT_TRUE(begun);
            break;
        }
        ++stops;
        if (begun) ++at_new;
    }
    EXPECT_GE(stops, 60U); // five files, each with `keys` and the host's record
    EXPECT_GT(at_new, stops / 2);
    RecordProperty("stop_points", static_cast<int>(stops));
}

TEST_F(DeepRekeyCrash, FinishingIsStoppedInTurn) {
    auto seal = m_host.make_seal("2/new", m_provider);
    unsigned stops = 0;
    for (unsigned at = 12; at < k_most_writes; at += 9) {
        m_saved.rewind();
        if (!run_traced([&] { return rekey_deep(seal); }, {{at, Fault::Kill}}).killed) break;
        for (unsigned again = 1; again < k_most_writes; again += 4) {
            auto work = [&] {
                auto home = m_host.open("vm");
                return home && (*home)->finish_deep_rekey(rewrite_image, nullptr) ? 0 : 1;
            };
            auto run = run_traced(work, {{again, Fault::Kill}});
            if (!run.killed) {
                EXPECT_EQ(run.exit_code, 0);
                break;
            }
            ++stops;
        }
        finish();
        ASSERT_FALSE(HasFailure()) << "stopped at " << at;
    }
    EXPECT_GT(stops, 40U);
    RecordProperty("stop_points", static_cast<int>(stops));
}

TEST_F(DeepRekeyCrash, FailsAndFinishesLater) {
    auto seal = m_host.make_seal("2/new", m_provider);
    for (unsigned at = 0; at < k_most_writes; at += 3) {
        m_saved.rewind();
        auto run = run_traced([&] { return rekey_deep(seal); }, {{at, Fault::Eio}});
        ASSERT_FALSE(run.killed);
        finish();
        ASSERT_FALSE(HasFailure()) << "failed at " << at;
        if (at >= run.writes) break;
    }
}

// A commit that failed left its file ahead under the old key, and then the keys change.
TEST_F(DeepRekeyCrash, AfterAFailedCommit) {
    auto seal = m_host.make_seal("2/new", m_provider);
    unsigned failures = 0;
    for (unsigned at = 0; at < 30; ++at) {
        m_saved.rewind();
        auto work = [&] {
            auto home = m_host.open("vm");
            if (!home) return 1;
            bool const committed = (*home)->commit(HomeFile::Nvram, m_nvram).has_value();
            auto const done = (*home)->rekey_deep(std::move(seal), rewrite_image, nullptr);
            return !done ? 1 : committed ? 0 : 2;
        };
        auto run = run_traced(work, {{at, Fault::Eio}});
        if (run.exit_code == 2) ++failures;
        finish();
        ASSERT_FALSE(HasFailure()) << "failed at " << at;
    }
    EXPECT_GT(failures, 5U);
}

TEST_F(RekeyCrash, AcceptedRollbackIsThereOrNot) {
    auto const known = [&] {
        EXPECT_TRUE(opened()->commit(HomeFile::Tpm, bytes_of("newer")));
        return content(record());
    }();
    m_saved.rewind();
    put(record(), known);
    m_saved.save();
    unsigned stops = 0;
    unsigned accepted = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        m_saved.rewind();
        auto work = [&] { return m_host.open("vm", HomeAccess::Writer, RollbackPolicy::Accept) ? 0 : 1; };
        auto run = run_traced(work, {{at, Fault::Kill}});
        auto home = m_host.open("vm");
        if (home) {
            ++accepted;
        } else {
            ASSERT_EQ(home.error().code(), ErrorCode::Integrity) << at;
            ASSERT_NE(home.error().message().find("rolled back"), std::string::npos) << home.error().message();
            home = m_host.open("vm", HomeAccess::Writer, RollbackPolicy::Accept);
            ASSERT_TRUE(home) << at << ": " << home.error().message();
        }
        EXPECT_TRUE(logged(**home, HistoryKind::RollbackAccepted));
        expect_content(**home);
        home->reset();
        EXPECT_TRUE(opened());
        ASSERT_FALSE(HasFailure()) << "stopped at " << at;
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 0);
            break;
        }
        ++stops;
    }
    EXPECT_GE(stops, 30U);
    EXPECT_GT(accepted, 1U);
    EXPECT_LT(accepted, stops);
    RecordProperty("stop_points", static_cast<int>(stops));
}

// Files beside the fixed ones: each is there whole or not at all, and nothing is left over.
TEST_F(RekeyCrash, FurtherFilesAreThereOrNot) {
    unsigned stops = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        m_saved.rewind();
        auto work = [&] {
            auto home = m_host.open("vm");
            if (!home || !(*home)->commit_file("snapshot-2.state", m_nvram)) return 1;
            auto writing = (*home)->begin_image("snapshot-2.memory");
            if (!writing) return 1;
            auto root = write_content(*writing, m_tpm);
            if (!root || !(*home)->commit_image(*writing, *root)) return 1;
            return (*home)->drop_file("snapshot-1.state") && (*home)->drop_file("snapshot-1.memory") ? 0 : 1;
        };
        auto run = run_traced(work, {{at, Fault::Kill}});
        auto home = opened();
        ASSERT_TRUE(home) << at;
        std::set<std::string> names;
        for (auto const& further : home->further_files()) {
            names.insert(further.name);
            if (further.image) {
                auto image = home->open_image(further.name);
                ASSERT_TRUE(image) << image.error().message();
                EXPECT_EQ(*crypto::sha256({Bytes(content(image->path)).subspan(4096)}), image->root.digest);
            } else {
                EXPECT_EQ(*home->load_file(further.name), further.name == "snapshot-1.state" ? m_state : m_nvram);
            }
        }
        for (auto const& entry : std::filesystem::directory_iterator(m_host.location("vm").folder())) {
            auto const name = entry.path().filename().native();
            EXPECT_FALSE(name.ends_with(".tmp")) << name;
            EXPECT_EQ(name.starts_with("snapshot-"), names.contains(name)) << name;
        }
        ASSERT_FALSE(HasFailure()) << "stopped at " << at;
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 0);
            EXPECT_EQ(names, (std::set<std::string>{"snapshot-2.memory", "snapshot-2.state"}));
            break;
        }
        ++stops;
    }
    EXPECT_GE(stops, 40U);
    RecordProperty("stop_points", static_cast<int>(stops));
}

} // namespace
} // namespace coffer::vmm::tests
