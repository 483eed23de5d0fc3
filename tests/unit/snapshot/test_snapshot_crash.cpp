// Stopped at every system call that writes: a snapshot is there or not, a revert happened or not, whole.
#include "tests/support/saved_folder.hpp"
#include "tests/support/syscall_tracer.hpp"
#include "tests/unit/snapshot/store_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

using coffer::tests::Fault;
using coffer::tests::run_traced;

constexpr unsigned k_most_writes = 600; // no operation comes near

class SnapshotCrash : public StoreTest {
protected:
    // Runs `work` stopped at each writing call in turn, from the kept state, and looks at the home after each. `look`
    // says whether it is as after the work (true) or as before; anything else it fails itself.
    void stop_everywhere(std::function<bool(HomeSession&, SnapshotStore&)> const& work,
                         std::function<bool(HomeSession&, SnapshotStore&)> const& look) {
        m_saved.save();
        unsigned stops = 0;
        unsigned after = 0;
        for (unsigned at = 0; at < k_most_writes; ++at) {
            m_saved.rewind();
            auto run = run_traced(
                [&] {
                    auto home = m_host.open("vm");
                    if (!home) return 2;
                    auto store = SnapshotStore::open(**home);
                    return store && work(**home, *store) ? 0 : 1;
                },
                {{at, Fault::Kill}});
            bool done = false;
            for (int opened = 0; opened < 2; ++opened) {
                auto home = m_host.open("vm");
                ASSERT_TRUE(home) << "stopped at " << at << ": " << home.error().message();
                auto store = SnapshotStore::open(**home);
                ASSERT_TRUE(store) << "stopped at " << at << ": " << store.error().message();
                bool now = look(**home, *store);
                ASSERT_FALSE(HasFailure()) << "stopped at " << at;
                if (opened == 1) {
                    ASSERT_EQ(now, done) << "stopped at " << at << ": opening it twice gives two states";
                }
                done = now;
            }
            // What was left over goes with the next operation.
            {
                auto home = open_or_fail();
                auto store = *SnapshotStore::open(*home);
                if (store.suspended()) {
                    ASSERT_TRUE(store.end_suspension());
                }
                for (auto const& record : std::vector(store.index().snapshots))
                    ASSERT_TRUE(store.remove(record.tag, m_alone));
                ASSERT_TRUE(store.take("cleans", "", nullptr, m_alone)) << "stopped at " << at;
                ASSERT_TRUE(store.remove("cleans", m_alone));
                ASSERT_TRUE(snapshot_files().empty()) << "stopped at " << at << ": " << snapshot_files().front();
            }
            if (!run.killed) {
                ASSERT_EQ(run.exit_code, 0);
                ASSERT_TRUE(done);
                break;
            }
            ++stops;
            if (done) ++after;
        }
        EXPECT_GT(stops, 12U);
        EXPECT_LT(after, stops);
        RecordProperty("stop_points", static_cast<int>(stops));
    }

    coffer::tests::SavedFolder m_saved{m_folder.path(), {"root", "state"}};
};

TEST_F(SnapshotCrash, Take) {
    auto source = machine(m_tpm);
    stop_everywhere(
        [&](HomeSession&, SnapshotStore& store) { return store.take("a", "", &source, m_alone).has_value(); },
        [&](HomeSession& home, SnapshotStore& store) {
            EXPECT_EQ(content_now(home), first());
            if (store.index().snapshots.empty()) return false;
            auto whole = store.check("a");
            EXPECT_TRUE(whole) << whole.error().message();
            return true;
        });
}

TEST_F(SnapshotCrash, TakeAhead) {
    stop_everywhere(
        [&](HomeSession&, SnapshotStore& store) {
            auto source = machine(m_tpm);
            auto begun = store.begin("a", "", source.memory);
            std::vector<uint64_t> const all{0, 1, 2};
            if (!begun || !(*begun)->image().write_ahead(all, m_alone)) return false;
            source.ahead = begun->get();
            source.changed = {1};
            return store.take("a", "", &source, m_alone).has_value();
        },
        [&](HomeSession& home, SnapshotStore& store) {
            EXPECT_EQ(content_now(home), first());
            if (store.index().snapshots.empty()) return false;
            auto whole = store.check("a");
            EXPECT_TRUE(whole) << whole.error().message();
            return true;
        });
}

TEST_F(SnapshotCrash, Suspend) {
    auto source = machine(m_tpm);
    stop_everywhere([&](HomeSession&, SnapshotStore& store) { return store.suspend(source, m_alone).has_value(); },
                    [&](HomeSession& home, SnapshotStore& store) {
                        EXPECT_EQ(content_now(home), first());
                        if (!store.suspended()) return false;
                        auto image = store.open_suspended();
                        EXPECT_TRUE(image);
                        EXPECT_EQ(*read_all(**image), m_memory);
                        return true;
                    });
}

TEST_F(SnapshotCrash, Revert) {
    {
        auto home = open_or_fail();
        auto store = *SnapshotStore::open(*home);
        auto source = machine(m_tpm);
        ASSERT_TRUE(store.take("a", "", &source, m_alone));
        change(*home, later());
    }
    stop_everywhere([&](HomeSession&, SnapshotStore& store) { return store.revert("a", m_alone).has_value(); },
                    [&](HomeSession& home, SnapshotStore& store) {
                        auto now = content_now(home);
                        EXPECT_TRUE(now == first() || now == later());
                        bool reverted = now == first();
                        EXPECT_EQ(store.suspended(), reverted);
                        auto history = *home.history();
                        EXPECT_EQ(!history.empty() && history.back().kind == HistoryKind::Reverted, reverted);
                        return reverted;
                    });
}

TEST_F(SnapshotCrash, Delete) {
    {
        auto home = open_or_fail();
        auto store = *SnapshotStore::open(*home);
        auto source = machine(m_tpm);
        ASSERT_TRUE(store.take("a", "", &source, m_alone));
        change(*home, later());
    }
    // What was written since is merged with what was there before.
    stop_everywhere([&](HomeSession&, SnapshotStore& store) { return store.remove("a", m_alone).has_value(); },
                    [&](HomeSession& home, SnapshotStore& store) {
                        EXPECT_EQ(content_now(home), later());
                        if (store.index().snapshots.empty()) return true;
                        EXPECT_TRUE(store.check("a"));
                        return false;
                    });
}

TEST_F(SnapshotCrash, Resume) {
    {
        auto home = open_or_fail();
        auto store = *SnapshotStore::open(*home);
        ASSERT_TRUE(store.suspend(machine(m_tpm), m_alone));
    }
    stop_everywhere([&](HomeSession&, SnapshotStore& store) { return store.end_suspension().has_value(); },
                    [&](HomeSession&, SnapshotStore& store) {
                        if (!store.suspended()) return true;
                        EXPECT_TRUE(store.open_suspended());
                        return false;
                    });
}

} // namespace
} // namespace coffer::vmm::tests
