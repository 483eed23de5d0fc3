// The home is stopped, or its disk fails, at every system call that writes. Afterwards it opens at the old state or the
// new one, and never at anything else.
#include "tests/unit/home/crash_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

TEST_F(HomeCrash, StoppedAnywhereInACommit) {
    unsigned stops = 0;
    unsigned at_new = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        auto run = run_traced([&] { return commit_all({"new"}); }, {{at, Fault::Kill}});
        auto tpm = reopened_tpm();
        ASSERT_TRUE(tpm == m_tpm || tpm == bytes_of("new")) << "stopped at " << at;
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 1);
            EXPECT_EQ(tpm, bytes_of("new"));
            break;
        }
        ++stops;
        if (tpm == bytes_of("new")) ++at_new;
    }
    // Three files of open, write, sync, rename, sync each, and the lock's write.
    EXPECT_GE(stops, 12U);
    EXPECT_GT(at_new, 0U);
    EXPECT_LT(at_new, stops);
    RecordProperty("stop_points", static_cast<int>(stops));
}

// What was acknowledged is never lost: a crash in a later commit goes back to the earlier one at most.
TEST_F(HomeCrash, AcknowledgedCommitsSurvive) {
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        auto run = run_traced([&] { return commit_all({"one", "two"}); }, {{at, Fault::Kill}});
        auto tpm = reopened_tpm();
        ASSERT_TRUE(tpm == m_tpm || tpm == bytes_of("one") || tpm == bytes_of("two")) << at;
        if (!run.killed) break;
        // The second commit's first write comes after the first was acknowledged.
        auto first = run_traced([&] { return commit_all({"one"}); }, {});
        if (at >= first.writes) {
            EXPECT_NE(tpm, m_tpm) << at;
        }
    }
}

class FailingDisk : public HomeCrash, public testing::WithParamInterface<Fault> {};

// A single failure is an error of that commit, and the next one succeeds.
TEST_P(FailingDisk, NextCommitSucceeds) {
    bool failed_once = false;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        auto run = run_traced([&] { return commit_all({"one", "two"}); }, {{at, GetParam()}});
        ASSERT_FALSE(run.killed);
        auto tpm = reopened_tpm();
        if (run.exit_code == 100) {
            EXPECT_EQ(tpm, m_tpm) << at; // the lock's file could not be written
            continue;
        }
        if (run.exit_code == 1) failed_once = true;
        // Two successes: the fault hit nothing that matters, or nothing at all. One: the second went well.
        if (run.exit_code >= 1) {
            EXPECT_EQ(tpm, bytes_of("two")) << at;
        }
        if (run.exit_code == 0) {
            EXPECT_TRUE(tpm == bytes_of("one") || tpm == bytes_of("two")) << at;
        }
        if (at >= run.writes) break;
    }
    EXPECT_TRUE(failed_once);
}
INSTANTIATE_TEST_SUITE_P(Faults, FailingDisk, testing::Values(Fault::Eio, Fault::Enospc, Fault::Erofs));

// From some call on, the disk refuses for good: every commit says so, clearly. When it is back, the home opens, and has
// what was acknowledged.
TEST_P(FailingDisk, StaysBroken) {
    auto const fault = GetParam();
    std::string_view const reason = fault == Fault::Enospc  ? "No space left on device"
                                    : fault == Fault::Erofs ? "Read-only file system"
                                                            : "Input/output error";
    auto const code = fault == Fault::Enospc  ? ErrorCode::NoSpace
                      : fault == Fault::Erofs ? ErrorCode::Permission
                                              : ErrorCode::Io;
    // How many commits succeeded; 50 where the first that failed does not say why, 60 where one succeeds after it.
    auto commit_three = [&] {
        auto home = m_host.open("vm");
        if (!home) return home.error().message().find(reason) != std::string::npos ? 0 : 50;
        int done = 0;
        bool failed = false;
        for (std::string_view text : {"one", "two", "three"}) {
            auto committed = (*home)->commit(HomeFile::Tpm, as_bytes(text));
            if (committed && failed) return 60;
            if (committed) {
                ++done;
                continue;
            }
            failed = true;
            auto const& message = committed.error().message();
            if (committed.error().code() != code || message.find(reason) == std::string::npos ||
                message.find(m_folder.path().native()) == std::string::npos)
                return 50;
        }
        return done;
    };
    std::array const contents{m_tpm, bytes_of("one"), bytes_of("two"), bytes_of("three")};
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        auto run = run_traced(commit_three, {{at, fault, true}});
        ASSERT_LT(run.exit_code, 4) << at;
        auto tpm = reopened_tpm();
        auto const found = std::find(contents.begin(), contents.end(), tpm) - contents.begin();
        ASSERT_LT(found, 4) << at;
        EXPECT_GE(found, run.exit_code) << at;
        if (run.exit_code == 3) {
            EXPECT_GE(at, 15U);
            break;
        }
    }
}

// The disk fails once, the machine goes on and commits again, and is stopped in that. All pairs.
TEST_F(HomeCrash, StoppedAfterAFailure) {
    rewind();
    auto whole = run_traced([&] { return commit_all({"one", "two"}); }, {});
    ASSERT_EQ(whole.exit_code, 2);
    unsigned pairs = 0;
    for (unsigned fail_at = 1; fail_at < whole.writes; ++fail_at) {
        for (unsigned stop_at = fail_at + 1; stop_at < whole.writes + 8; ++stop_at) {
            rewind();
            auto run = run_traced(
                [&] {
                    return commit_all({"one", "two"});
                },
                {{fail_at, Fault::Eio}, {stop_at, Fault::Kill}});
            auto home = m_host.open("vm");
            ASSERT_TRUE(home) << "failed at " << fail_at << ", stopped at " << stop_at << ": "
                              << home.error().message();
            auto tpm = *(*home)->load(HomeFile::Tpm);
            ASSERT_TRUE(tpm == m_tpm || tpm == bytes_of("one") || tpm == bytes_of("two"));
            if (!run.killed) break;
            ++pairs;
        }
    }
    EXPECT_GT(pairs, 100U);
    RecordProperty("stop_points", static_cast<int>(pairs));
}

// Opening after a crash writes too, and may be stopped in turn.
TEST_F(HomeCrash, StoppedWhileSettling) {
    unsigned settled = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        if (!run_traced([&] { return commit_all({"new"}); }, {{at, Fault::Kill}}).killed) break;
        for (unsigned again = 0; again < k_most_writes; ++again) {
            auto run = run_traced([&] { return m_host.open("vm") ? 0 : 1; }, {{again, Fault::Kill}});
            if (!run.killed) {
                EXPECT_EQ(run.exit_code, 0);
                break;
            }
            ++settled;
        }
        auto tpm = reopened_tpm();
        ASSERT_TRUE(tpm == m_tpm || tpm == bytes_of("new"));
    }
    EXPECT_GT(settled, 12U);
}

TEST_F(HomeCrash, StoppedAnywhereInCreate) {
    auto config = make_config("made");
    bool finished = false;
    for (unsigned at = 0; at < k_most_writes && !finished; ++at) {
        rewind();
        auto run = run_traced([&] { return m_host.create(config, m_nvram) ? 0 : 1; }, {{at, Fault::Kill}});
        finished = !run.killed;
        auto home = m_host.open("made");
        if (finished) {
            EXPECT_EQ(run.exit_code, 0);
            ASSERT_TRUE(home) << home.error().message();
        } else if (!home) {
            ASSERT_EQ(home.error().code(), ErrorCode::NotFound) << at << ": " << home.error().message();
            EXPECT_EQ(*list_homes(m_host.root()), std::vector<std::string>{"vm"});
            ASSERT_TRUE(m_host.create(config, m_nvram)) << at;
        }
        auto again = home ? std::move(home) : m_host.open("made");
        ASSERT_TRUE(again) << at << ": " << again.error().message();
        EXPECT_EQ(*(*again)->load(HomeFile::Nvram), m_nvram);
    }
    EXPECT_TRUE(finished);
}

TEST_F(HomeCrash, StoppedAnywhereInRemove) {
    bool finished = false;
    for (unsigned at = 0; at < k_most_writes && !finished; ++at) {
        rewind();
        auto run = run_traced([&] { return remove_home(m_host.location("vm")) ? 0 : 1; }, {{at, Fault::Kill}});
        finished = !run.killed;
        auto home = m_host.open("vm");
        if (home) {
            EXPECT_FALSE(finished);
            EXPECT_EQ(*(*home)->load(HomeFile::Tpm), m_tpm);
        } else {
            EXPECT_EQ(home.error().code(), ErrorCode::NotFound) << home.error().message();
            auto fresh = m_config;
            fresh.uuid = *crypto::random_uuid();
            EXPECT_TRUE(m_host.create(fresh, m_nvram));
            EXPECT_TRUE(m_host.open("vm"));
        }
    }
    EXPECT_TRUE(finished);
}

} // namespace
} // namespace coffer::vmm::tests
