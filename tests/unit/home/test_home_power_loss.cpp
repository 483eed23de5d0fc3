// The home after a power failure, at every system call that writes, in every state that a file system may leave it in
// (tests/support/crash_model.hpp): it opens at the old state or the new one, and what was acknowledged is there.
#include "tests/support/crash_model.hpp"
#include "tests/unit/home/home_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

using coffer::tests::CrashModel;

class PowerLoss : public HomeTest {
protected:
    CrashModel make_model(CrashModel::Promise promise = CrashModel::Promise::All) {
        return CrashModel({m_folder.path() / "root", m_folder.path() / "state"}, promise);
    }
    int commit_all(std::vector<std::string> const& texts) {
        auto home = m_host.open("vm");
        if (!home) return 1;
        for (auto const& text : texts) {
            if (!(*home)->commit(HomeFile::Tpm, as_bytes(text))) return 2;
            CrashModel::mark();
        }
        return 0;
    }
    // What the home's TPM state is, for two writers one after the other; empty where it does not open as it should.
    ByteVector reopened_tpm(std::string& why) {
        ByteVector first;
        for (int time = 0; time < 2; ++time) {
            auto home = m_host.open("vm");
            if (!home) {
                why = home.error().message();
                return {};
            }
            auto nvram = (*home)->load(HomeFile::Nvram);
            auto tpm = (*home)->load(HomeFile::Tpm);
            if (!nvram || *nvram != m_nvram || !tpm || (time == 1 && *tpm != first)) {
                why = "content";
                return {};
            }
            first = *tpm;
        }
        return first;
    }
    // The number of states until the first in which a home is lost or something acknowledged is; none: all.
    std::pair<size_t, std::string> first_fault(CrashModel& model, std::vector<std::string> const& texts) {
        std::string fault;
        std::vector<ByteVector> contents{m_tpm};
        for (auto const& text : texts) contents.push_back(bytes_of(text));
        auto const tried = model.for_each_state([&](CrashModel::State const& state) {
            std::string why;
            auto tpm = reopened_tpm(why);
            auto at = std::find(contents.begin(), contents.end(), tpm) - contents.begin();
            if (static_cast<size_t>(at) == contents.size())
                fault = fmt::format("{}: {}", state.what, why);
            else if (static_cast<unsigned>(at) < state.marks)
                fault = fmt::format("{}: content {} though {} was acknowledged", state.what, at, state.marks);
            return fault.empty();
        });
        return {tried, fault};
    }
};

TEST_F(PowerLoss, ACommitIsThereOrNot) {
    auto model = make_model();
    std::string const large(10'000, 'L'); // three units
    ASSERT_EQ(model.record([&] { return commit_all({"one", large}); }), 0);
    auto [tried, fault] = first_fault(model, {"one", large});
    EXPECT_EQ(fault, "");
    EXPECT_GT(tried, 200U);
    RecordProperty("states", static_cast<int>(tried));
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

// The check sees what it is there to see.
TEST_F(PowerLoss, WithoutSyncOfFilesHomesAreLost) {
    auto model = make_model(CrashModel::Promise::NoFileSync);
    ASSERT_EQ(model.record([&] { return commit_all({"one"}); }), 0);
    EXPECT_NE(first_fault(model, {"one"}).second, "");
}
TEST_F(PowerLoss, WithoutSyncOfFoldersHomesAreLost) {
    auto model = make_model(CrashModel::Promise::NoFolderSync);
    ASSERT_EQ(model.record([&] { return commit_all({"one"}); }), 0);
    EXPECT_NE(first_fault(model, {"one"}).second, "");
}

TEST_F(PowerLoss, ANewHomeIsThereOrNot) {
    auto model = make_model();
    auto config = make_config("made");
    ASSERT_EQ(model.record([&] { return m_host.create(config, m_nvram) ? 0 : 1; }), 0);
    std::string fault;
    auto const tried = model.for_each_state([&](CrashModel::State const& state) {
        auto home = m_host.open("made");
        if (home && *(*home)->load(HomeFile::Nvram) == m_nvram) return true;
        if (home || home.error().code() != ErrorCode::NotFound || state.finished) {
            fault = fmt::format("{}: {}", state.what, home ? "content" : home.error().message());
            return false;
        }
        // And it can be made then.
        if (auto made = m_host.create(config, m_nvram); !made || !m_host.open("made"))
            fault = fmt::format("{}: cannot be made again", state.what);
        return fault.empty();
    });
    EXPECT_EQ(fault, "");
    RecordProperty("states", static_cast<int>(tried));
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

TEST_F(PowerLoss, ARemovedHomeIsThereOrNot) {
    auto model = make_model();
    ASSERT_EQ(model.record([&] { return remove_home(m_host.location("vm")) ? 0 : 1; }), 0);
    std::string fault;
    auto const tried = model.for_each_state([&](CrashModel::State const& state) {
        auto home = m_host.open("vm");
        bool const sound = home ? !state.finished && *(*home)->load(HomeFile::Tpm) == m_tpm
                                : home.error().code() == ErrorCode::NotFound;
        if (!sound) fault = fmt::format("{}: {}", state.what, home ? "there" : home.error().message());
        return sound;
    });
    EXPECT_EQ(fault, "");
    RecordProperty("states", static_cast<int>(tried));
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

HomeSeal other_seal() {
    return {*crypto::random_uuid(),
            *KeyId::parse("1/other-key"),
            {bytes_of("wrapped otherwise")},
            *crypto::BundleKey::random()};
}

TEST_F(PowerLoss, ARekeyedHomeOpensWithTheOldKeyOrTheNewOne) {
    auto model = make_model();
    auto seal = other_seal();
    auto const new_key = copy_of(seal.key);
    ASSERT_EQ(model.record([&] {
        auto home = m_host.open("vm");
        return home && (*home)->rekey(std::move(seal)) ? 0 : 1;
    }),
              0);
    std::string fault;
    unsigned at_new = 0;
    auto const tried = model.for_each_state([&](CrashModel::State const& state) {
        bool is_new = false;
        auto home = open_home(m_host.location("vm"), HomeAccess::Writer,
                              [&](BundleHeader const& header) -> Result<crypto::BundleKey> {
                                  is_new = header.key_id == "1/other-key";
                                  return copy_of(is_new ? new_key : m_host.key());
                              });
        if (!home)
            fault = fmt::format("{}: {}", state.what, home.error().message());
        else if (*(*home)->load(HomeFile::Tpm) != m_tpm || (state.finished && !is_new))
            fault = state.what;
        at_new += is_new ? 1U : 0U;
        return fault.empty();
    });
    EXPECT_EQ(fault, "");
    EXPECT_GT(at_new, 0U);
    EXPECT_LT(at_new, tried);
    RecordProperty("states", static_cast<int>(tried));
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

// After a power failure in it, a deep rekey is finished as after any other stop, and costs nothing.
TEST_F(PowerLoss, ADeepRekeyIsFinishedLater) {
    auto const image = ByteVector(5000, std::byte{0x77});
    auto const provider = *crypto::random_uuid();
    {
        auto home = m_host.open("vm");
        ASSERT_TRUE(home);
        ASSERT_TRUE((*home)->commit_file("snapshot-1.state", m_tpm));
        add_image(**home, "snapshot-1.memory", image);
    }
    auto model = make_model();
    auto seal = m_host.make_seal("2/new", provider);
    ASSERT_EQ(model.record([&] {
        auto home = m_host.open("vm");
        return home && (*home)->rekey_deep(std::move(seal), rewrite_image, nullptr) ? 0 : 1;
    }),
              0);
    auto sound = [&](HomeSession const& home) {
        auto opened = home.open_image("snapshot-1.memory");
        return *home.load(HomeFile::Nvram) == m_nvram && *home.load(HomeFile::Tpm) == m_tpm &&
               *home.load_file("snapshot-1.state") == m_tpm && opened &&
               *crypto::sha256({Bytes(content(opened->path)).subspan(4096)}) == opened->root.digest;
    };
    std::string fault;
    unsigned at_new = 0;
    auto const tried = model.for_each_state([&](CrashModel::State const& state) {
        auto home = m_host.open("vm");
        if (!home) {
            fault = fmt::format("{}: {}", state.what, home.error().message());
            return false;
        }
        bool const is_new = (*home)->header()->key_id == "2/new";
        at_new += is_new ? 1U : 0U;
        if (!sound(**home) || (state.finished && (!is_new || (*home)->deep_rekey_pending())))
            fault = fmt::format("{}: content", state.what);
        else if (auto done = (*home)->finish_deep_rekey(rewrite_image, nullptr); !done)
            fault = fmt::format("{}: {}", state.what, done.error().message());
        else if ((*home)->deep_rekey_pending() || !sound(**home))
            fault = fmt::format("{}: content when finished", state.what);
        return fault.empty();
    });
    EXPECT_EQ(fault, "");
    EXPECT_GT(at_new, tried / 2);
    EXPECT_LT(at_new, tried);
    RecordProperty("states", static_cast<int>(tried));
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

TEST_F(PowerLoss, AnAcceptedRollbackIsThereOrCanBeAcceptedAgain) {
    auto const old = snapshot();
    ASSERT_TRUE((*m_host.open("vm"))->commit(HomeFile::Tpm, bytes_of("newer")));
    auto const known = content(record());
    for (auto const& [path, bytes] : old) put(path, bytes);
    put(record(), known);

    auto model = make_model();
    auto accept = [&] { return m_host.open("vm", HomeAccess::Writer, RollbackPolicy::Accept); };
    ASSERT_EQ(model.record([&] { return accept() ? 0 : 1; }), 0);
    std::string fault;
    unsigned accepted = 0;
    auto const tried = model.for_each_state([&](CrashModel::State const& state) {
        auto home = m_host.open("vm");
        accepted += home ? 1U : 0U;
        bool const refused = !home && home.error().message().find("rolled back") != std::string::npos;
        if (refused && !state.finished) home = accept();
        if (!home) {
            fault = fmt::format("{}: {}", state.what, home.error().message());
            return false;
        }
        auto const events = (*home)->history();
        if (!events || events->back().kind != HistoryKind::RollbackAccepted || *(*home)->load(HomeFile::Tpm) != m_tpm)
            fault = fmt::format("{}: content", state.what);
        return fault.empty();
    });
    EXPECT_EQ(fault, "");
    EXPECT_GT(accepted, 0U);
    EXPECT_LT(accepted, tried);
    RecordProperty("states", static_cast<int>(tried));
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

// Events go from `keys` to the file `history` where no more fit; none is lost or doubled on the way.
TEST_F(PowerLoss, TheHistoryKeepsWhatWasAcknowledged) {
    auto model = make_model();
    constexpr unsigned k_events = 6;
    ASSERT_EQ(model.record([&] {
        auto home = m_host.open("vm");
        for (unsigned i = 0; i < k_events; ++i) {
            if (!home || !(*home)->append_history(HistoryKind::Other, fmt::format("{}", i))) return 1;
            CrashModel::mark();
        }
        return 0;
    }),
              0);
    std::string fault;
    auto const tried = model.for_each_state([&](CrashModel::State const& state) {
        auto home = m_host.open("vm");
        auto events = home ? (*home)->history() : Result<std::vector<HistoryEvent>>(home.error());
        if (!events) {
            fault = fmt::format("{}: {}", state.what, events.error().message());
            return false;
        }
        // The first is that of the home's making.
        bool sound = events->size() > state.marks && events->size() <= state.marks + 2;
        for (size_t i = 0; i < events->size(); ++i)
            sound = sound && (*events)[i].number == i + 1 && (i == 0 || (*events)[i].text == fmt::format("{}", i - 1));
        if (!sound)
            fault = fmt::format("{}: {} events though {} were acknowledged", state.what, events->size(), state.marks);
        return sound;
    });
    EXPECT_EQ(fault, "");
    RecordProperty("states", static_cast<int>(tried));
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

// A further file is there whole, or not at all, before and after.
TEST_F(PowerLoss, AFurtherFileIsThereOrNot) {
    auto model = make_model();
    auto const content = ByteVector(9000, std::byte{0x77});
    ASSERT_EQ(model.record([&] {
        auto home = m_host.open("vm");
        if (!home || !(*home)->commit_file("snapshot-1.state", content)) return 1;
        CrashModel::mark();
        if (!(*home)->drop_file("snapshot-1.state")) return 2;
        CrashModel::mark();
        return 0;
    }),
              0);
    std::string fault;
    auto const tried = model.for_each_state([&](CrashModel::State const& state) {
        auto home = m_host.open("vm");
        if (!home) {
            fault = fmt::format("{}: {}", state.what, home.error().message());
            return false;
        }
        auto file = (*home)->load_file("snapshot-1.state");
        bool const sound = *(*home)->load(HomeFile::Tpm) == m_tpm &&
                           (file ? *file == content && state.marks < 2 : file.error().code() == ErrorCode::NotFound);
        if (!sound) fault = fmt::format("{}: {}", state.what, file ? "content" : file.error().message());
        return sound;
    });
    EXPECT_EQ(fault, "");
    RecordProperty("states", static_cast<int>(tried));
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

} // namespace
} // namespace coffer::vmm::tests
