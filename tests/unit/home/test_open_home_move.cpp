// A home moves to another root while its session is open and is written: it is in one place at each moment, and what
// was committed is there, wherever the process or the power ends, or a disk fails.
#include <sys/mman.h>

#include "tests/support/crash_model.hpp"
#include "tests/unit/home/move_fixture.hpp"
#include "vmm/home/open_home_move.hpp"

namespace coffer::vmm::tests {
namespace {

using coffer::tests::CrashModel;

Result<void> no_progress(uint64_t, uint64_t) {
    return {};
}
Result<void> nothing_else() {
    return {};
}

// Seen by the parent of a process that was killed.
class SharedCount {
public:
    SharedCount() {
        void* const memory = ::mmap(nullptr, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::runtime_error("mmap failed");
        m_count = static_cast<int*>(memory);
    }
    ~SharedCount() { ::munmap(m_count, sizeof(int)); }
    SharedCount(SharedCount const&) = delete;
    SharedCount& operator=(SharedCount const&) = delete;
    int& operator*() const { return *m_count; }

private:
    int* m_count;
};

class OpenMove : public HomeMove {
protected:
    // What the home is written with: before, between copy and switch, and in the new place.
    std::vector<ByteVector> const m_states{m_tpm, bytes_of("while it was copied"), bytes_of("in the new place"),
                                           bytes_of("by the one after")};
    bool m_mark = false;
    enum Exit { Done = 0, Failed = 1, Lost = 2, Wrong = 3 };

    // A VM's process, as far as its home goes. After a move that failed the session goes on.
    int run_and_move(int& committed) {
        auto home = open(m_host.location("vm"));
        if (!home) return Failed;
        auto commit = [&](int number) {
            if (!(*home)->commit(HomeFile::Tpm, m_states[static_cast<size_t>(number)])) return false;
            committed = number;
            if (m_mark) CrashModel::mark();
            return true;
        };
        auto moved = [&]() -> Result<bool> {
            auto going = TRY(OpenHomeMove::begin(**home, m_there));
            TRY(going.copy({}, no_progress));
            if (!commit(1)) return make_error(ErrorCode::Io, "the disk failed");
            auto finished = going.finish({}, nothing_else, no_progress);
            if (going.is_lost()) return false;
            TRY(std::move(finished));
            if (!commit(2)) return make_error(ErrorCode::Io, "the disk failed");
            TRY(going.remove_old());
            return true;
        }();
        if (moved && !*moved) return commit(2) ? Wrong : Lost;
        if (moved) return Done;
        return commit(2) ? Failed : Wrong;
    }

    // At most one of the two opens, with at least state number `committed`; then, after a second try, the new one.
    // Nothing is said where all is well.
    std::string check(int committed, unsigned& here, unsigned& nowhere, unsigned& arrived) {
        {
            auto old_home = open(m_host.location("vm"));
            auto new_home = open(there());
            if (old_home && new_home) return "two owners";
            (old_home ? here : new_home ? arrived : nowhere) += 1;
            if (old_home || new_home) {
                auto& home = old_home ? **old_home : **new_home;
                if (number_of(home, m_states) < committed) return "a commit is lost";
                if (!home.commit(HomeFile::Tpm, m_states[3])) return "cannot be written";
                committed = 3;
            }
        }
        if (fs::exists(m_host.location("vm").folder()) || fs::exists(m_host.location("vm").host_record()))
            if (auto again = move(); !again) return again.error().message();
        if (fs::exists(m_host.location("vm").folder())) return "left over";
        auto home = open(there());
        if (!home) return home.error().message();
        if (number_of(**home, m_states) < committed) return "a commit is lost in the end";
        return {};
    }
};

TEST_F(OpenMove, SessionGoesOnInTheNewPlace) {
    auto const from = m_host.location("vm");
    auto opened = open(from);
    ASSERT_TRUE(opened) << opened.error().message();
    auto& home = **opened;
    add_image(home, "snapshot-2", ByteVector(10'000, std::byte{2}));
    auto begun = OpenHomeMove::begin(home, m_there);
    ASSERT_TRUE(begun) << begun.error().message();
    ASSERT_TRUE(begun->copy({}, no_progress));
    // Each kind of change: a file that is replaced, one that is new, one that goes.
    ASSERT_TRUE(home.commit(HomeFile::Tpm, m_states[1]));
    ASSERT_TRUE(home.drop_file("snapshot-2"));
    add_image(home, "snapshot-3", ByteVector(20'000, std::byte{3}));
    EXPECT_FALSE(fs::exists(there().folder()));
    bool others_copied = false;
    auto finished = begun->finish(
        {},
        [&]() -> Result<void> {
            others_copied = true;
            EXPECT_FALSE(fs::exists(there().folder()));
            return {};
        },
        no_progress);
    ASSERT_TRUE(finished) << finished.error().message();
    EXPECT_TRUE(others_copied);
    EXPECT_EQ(home.location().folder(), there().folder());

    // The old home is locked, and handed over; the new one is this session's alone.
    EXPECT_EQ(HomeLock::acquire(from.folder()).error().code(), ErrorCode::Busy);
    EXPECT_EQ(HomeLock::acquire(there().folder()).error().code(), ErrorCode::Busy);
    EXPECT_EQ(*HomeLock::holder(there().folder()), std::optional(::getpid()));
    EXPECT_EQ((*read_host_record(from.host_record()))->standing, Standing::HandedOver);
    auto removed = begun->remove_old();
    ASSERT_TRUE(removed) << removed.error().message();
    expect_gone_here();
    auto const gone = open(from);
    ASSERT_FALSE(gone);
    EXPECT_EQ(gone.error().code(), ErrorCode::NotFound);
    EXPECT_NE(gone.error().message().find("has moved to " + m_there.root.native()), std::string::npos)
        << gone.error().message();

    EXPECT_EQ(*home.load(HomeFile::Tpm), m_states[1]);
    ASSERT_TRUE(home.store(HomeFile::Tpm).commit(m_states[2]));
    ASSERT_TRUE(home.append_history(HistoryKind::Other, "in the new place"));
    EXPECT_FALSE(fs::exists(from.folder()));
    opened = make_error(ErrorCode::Busy, "closed");
    {
        auto again = open(there());
        ASSERT_TRUE(again) << again.error().message();
        EXPECT_EQ(number_of(**again, m_states), 2);
        EXPECT_FALSE((*again)->has_file("snapshot-2"));
        EXPECT_TRUE((*again)->open_image("snapshot-3"));
        EXPECT_EQ((*again)->history()->back().text, "in the new place");

        // And back, where it was before.
        auto back = OpenHomeMove::begin(**again, m_host.root());
        ASSERT_TRUE(back) << back.error().message();
        auto there_again = back->finish({}, nothing_else, no_progress);
        ASSERT_TRUE(there_again) << there_again.error().message();
        ASSERT_TRUE(back->remove_old());
        ASSERT_TRUE((*again)->commit(HomeFile::Tpm, m_states[3]));
    }
    auto last = open(from);
    ASSERT_TRUE(last) << last.error().message();
    EXPECT_EQ(number_of(**last, m_states), 3);
    EXPECT_FALSE(fs::exists(there().folder()));
}

TEST_F(OpenMove, UnencryptedHome) {
    auto config = make_config("plain", TpmKind::None);
    ASSERT_TRUE(create_home(m_host.location("plain"), config, m_nvram, std::nullopt));
    {
        auto home = open(m_host.location("plain"));
        ASSERT_TRUE(home);
        auto going = OpenHomeMove::begin(**home, m_there);
        ASSERT_TRUE(going) << going.error().message();
        auto finished = going->finish({}, nothing_else, no_progress);
        ASSERT_TRUE(finished) << finished.error().message();
        ASSERT_TRUE(going->remove_old());
        ASSERT_TRUE((*home)->commit(HomeFile::Nvram, bytes_of("new")));
    }
    auto home = open({m_there, "plain"});
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_EQ(*(*home)->load(HomeFile::Nvram), bytes_of("new"));
    EXPECT_FALSE(fs::exists(m_host.location("plain").folder()));
}

// Given up, or refused: the session goes on where it is, and nothing is left in the new root.
TEST_F(OpenMove, GivenUpAndRefused) {
    auto home = open(m_host.location("vm"));
    ASSERT_TRUE(home);
    auto const cancelled = [](uint64_t, uint64_t) -> Result<void> {
        return make_error(ErrorCode::Cancelled, "given up");
    };
    auto expect_here = [&](int number) {
        ASSERT_TRUE((*home)->commit(HomeFile::Tpm, m_states[static_cast<size_t>(number)]));
        EXPECT_EQ((*home)->location().folder(), m_host.location("vm").folder());
        EXPECT_EQ((*read_host_record(record()))->standing, Standing::Owner);
        EXPECT_FALSE(fs::exists(there().folder()));
        EXPECT_TRUE(!fs::exists(m_there.vms()) || fs::is_empty(m_there.vms()));
    };
    EXPECT_EQ(OpenHomeMove::begin(**home, m_host.root()).error().code(), ErrorCode::InvalidArgument);
    {
        auto going = OpenHomeMove::begin(**home, m_there);
        ASSERT_TRUE(going);
        EXPECT_EQ(going->copy({}, cancelled).error().code(), ErrorCode::Cancelled);
    }
    expect_here(1);
    {
        auto going = OpenHomeMove::begin(**home, m_there);
        ASSERT_TRUE(going);
        ASSERT_TRUE(going->copy({}, no_progress));
        auto const rest = [] { return Result<void>(make_error(ErrorCode::NoSpace, "the disk is full")); };
        EXPECT_EQ(going->finish({}, rest, no_progress).error().code(), ErrorCode::NoSpace);
        EXPECT_FALSE(going->is_lost());
    }
    expect_here(2);
    fs::create_directory(file("folder"));
    {
        auto going = OpenHomeMove::begin(**home, m_there);
        ASSERT_TRUE(going);
        EXPECT_EQ(going->copy({}, no_progress).error().code(), ErrorCode::InvalidArgument);
    }
    fs::remove(file("folder"));
    auto other = make_config("vm");
    ASSERT_TRUE(create_home(there(), other, m_nvram, m_host.make_seal("x")));
    EXPECT_EQ(OpenHomeMove::begin(**home, m_there).error().code(), ErrorCode::AlreadyExists);
}

TEST_F(OpenMove, DiskImageInTheHomeIsRefused) {
    auto config = m_config;
    config.disks = {{file("image").native(), false}};
    auto home = open(m_host.location("vm"));
    ASSERT_TRUE(home);
    ASSERT_TRUE((*home)->commit(HomeFile::Config, encode_vm_config(config)));
    auto const refused = OpenHomeMove::begin(**home, m_there);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message().find("no part of it"), std::string::npos);
}

TEST_F(OpenMove, ProcessKilledAnywhere) {
    unsigned stops = 0, here = 0, nowhere = 0, arrived = 0;
    SharedCount committed;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        put_back();
        *committed = 0;
        auto run = run_traced([&] { return run_and_move(*committed); }, {{at, Fault::Kill}});
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, Done);
            break;
        }
        ++stops;
        ASSERT_EQ(check(*committed, here, nowhere, arrived), "") << "stopped at " << at;
    }
    EXPECT_GT(stops, 50U);
    EXPECT_GT(here, 0U);
    EXPECT_GT(nowhere, 0U); // handed over, and not taken yet
    EXPECT_GT(arrived, 0U);
    RecordProperty("stop_points", static_cast<int>(stops));
}

// A disk that fails once, or for good: the session goes on, in one of the places, or says that it cannot.
TEST_F(OpenMove, FailingDisk) {
    unsigned here = 0, nowhere = 0, arrived = 0, lost = 0, failed = 0;
    SharedCount committed;
    for (bool stays : {false, true}) {
        for (unsigned at = 0; at < k_most_writes; ++at) {
            put_back();
            *committed = 0;
            auto run = run_traced([&] { return run_and_move(*committed); },
                                  {{at, at % 2 == 0 ? Fault::Eio : Fault::Enospc, stays}});
            ASSERT_FALSE(run.killed);
            // With a disk that fails for good a commit may well fail, too.
            ASSERT_TRUE(stays || run.exit_code != Wrong) << "failed at " << at;
            lost += run.exit_code == Lost ? 1 : 0;
            failed += run.exit_code == Failed ? 1 : 0;
            ASSERT_EQ(check(*committed, here, nowhere, arrived), "") << "failed at " << at << ", stays " << stays;
            if (at >= run.writes) break;
        }
    }
    EXPECT_GT(failed, 10U);
    EXPECT_GT(lost, 0U); // the old record could be written neither way
}

class OpenMovePowerLoss : public OpenMove {
protected:
    size_t image_size() const override { return 5'000; }
    // The first state in which all is not well.
    std::string cut_everywhere(CrashModel::Promise promise, size_t& tried) {
        put_back();
        CrashModel model({m_host.root().root, m_host.root().state, m_there.root, m_there.state}, promise);
        // marks() counts what was committed.
        m_mark = true;
        EXPECT_EQ(model.record([&] {
            int committed = 0;
            return run_and_move(committed);
        }),
                  Done);
        m_mark = false;
        std::string fault;
        unsigned here = 0, nowhere = 0, arrived = 0, early = 0;
        tried = model.for_each_state([&](CrashModel::State const& state) {
            // Of the many states in which the new root knows of nothing some are enough.
            if (!fs::exists(there().host_record()) && !state.finished && ++early % 8 != 0) return true;
            auto said = check(static_cast<int>(state.marks), here, nowhere, arrived);
            if (!said.empty()) fault = fmt::format("{}: {}", state.what, said);
            return fault.empty();
        });
        if (fault.empty()) {
            EXPECT_GT(here, 0U);
            EXPECT_GT(nowhere, 0U);
            EXPECT_GT(arrived, 0U);
        }
        return fault;
    }
};

TEST_F(OpenMovePowerLoss, OneHomeWithWhatWasCommitted) {
    size_t tried = 0;
    EXPECT_EQ(cut_everywhere(CrashModel::Promise::All, tried), "");
    EXPECT_GT(tried, 200U);
    fmt::print("{} states\n", tried);
}

TEST_F(OpenMovePowerLoss, WithoutSyncsHomesAreLost) {
    size_t tried = 0;
    EXPECT_NE(cut_everywhere(CrashModel::Promise::NoFileSync, tried), "");
    EXPECT_NE(cut_everywhere(CrashModel::Promise::NoFolderSync, tried), "");
}

} // namespace
} // namespace coffer::vmm::tests
