// New keys for a home, old copies accepted, its history, and files beside the fixed ones.
#include <thread>

#include "tests/unit/home/home_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

class HomeRekey : public HomeTest {
protected:
    std::unique_ptr<HomeSession> opened(RollbackPolicy rollback = RollbackPolicy::Refuse) {
        auto home = m_host.open("vm", HomeAccess::Writer, rollback);
        EXPECT_TRUE(home) << home.error().message();
        return home ? std::move(*home) : nullptr;
    }
    void expect_content() {
        auto home = opened();
        ASSERT_TRUE(home);
        EXPECT_EQ(home->config(), m_config);
        EXPECT_EQ(*home->load(HomeFile::Nvram), m_nvram);
        EXPECT_EQ(*home->load(HomeFile::Tpm), m_tpm);
    }
    static std::vector<HistoryKind> kinds(HomeSession const& home) {
        std::vector<HistoryKind> kinds;
        auto const events = home.history();
        EXPECT_TRUE(events) << events.error().message();
        if (events)
            for (auto const& event : *events) kinds.push_back(event.kind);
        return kinds;
    }
    // Puts the home's folder back as it was at `saved`; the host's record stays.
    void roll_back_to(std::map<std::string, ByteVector> const& saved) {
        auto const known = content(record());
        for (auto const& entry : std::filesystem::directory_iterator(m_host.location("vm").folder()))
            std::filesystem::remove(entry.path());
        for (auto const& [path, bytes] : saved) put(path, bytes);
        put(record(), known);
    }
    uint32_t epoch_of(std::string_view name) { return parse_data_header(content(file(name)), name)->epoch; }
};

TEST_F(HomeRekey, ShallowReplacesKeysAlone) {
    auto before = snapshot();
    {
        auto home = opened();
        auto const old = home->header();
        auto seal = m_host.make_seal("2/next", old->provider);
        auto const wrapped = seal.wrapped.bytes;
        auto rekeyed = home->rekey(std::move(seal));
        ASSERT_TRUE(rekeyed) << rekeyed.error().message();
        EXPECT_EQ(home->header()->key_id, "2/next");
        EXPECT_EQ(home->header()->wrapped_key, wrapped);
        EXPECT_EQ(home->header()->vm, m_config.uuid);
        EXPECT_EQ(kinds(*home), (std::vector{HistoryKind::Created, HistoryKind::Rekeyed}));
        // The session goes on.
        ASSERT_TRUE(home->commit(HomeFile::Config, encode_vm_config(m_config)));
    }
    auto after = snapshot();
    EXPECT_EQ(before[file("nvram")], after[file("nvram")]);
    EXPECT_EQ(before[file("tpm")], after[file("tpm")]);
    EXPECT_NE(before[file("keys")], after[file("keys")]);
    expect_content();
    // The old bundle key opens nothing any more.
    auto home = open_home(m_host.location("vm"), HomeAccess::Writer,
                          [&](BundleHeader const&) -> Result<crypto::BundleKey> { return copy_of(m_host.key()); });
    ASSERT_FALSE(home);
    EXPECT_EQ(home.error().code(), ErrorCode::Integrity);
}

TEST_F(HomeRekey, AnotherProviderIsAChangeOfProvider) {
    auto home = opened();
    auto const provider = *crypto::random_uuid();
    ASSERT_TRUE(home->rekey(m_host.make_seal("1/other", provider)));
    EXPECT_EQ(home->header()->provider, provider);
    EXPECT_EQ(kinds(*home).back(), HistoryKind::ProviderChanged);
    home.reset();
    EXPECT_EQ(summarize_home(m_host.location("vm"))->provider, provider);
    expect_content();
}

TEST_F(HomeRekey, OldKeysFileIsRefusedAfterwards) {
    auto const old = content(file("keys"));
    ASSERT_TRUE(opened()->rekey(m_host.make_seal("2/next")));
    put(file("keys"), old);
    expect_refused(file("keys"));
}

TEST_F(HomeRekey, WhileOthersCommit) {
    {
        auto home = opened();
        std::thread tpm([&] {
            for (int i = 0; i < 40; ++i) EXPECT_TRUE(home->commit(HomeFile::Tpm, bytes_of(fmt::format("{}", i))));
        });
        for (int i = 0; i < 10; ++i) EXPECT_TRUE(home->rekey(m_host.make_seal(fmt::format("2/key-{}", i))));
        tpm.join();
    }
    auto home = opened();
    ASSERT_TRUE(home);
    EXPECT_EQ(*home->load(HomeFile::Tpm), bytes_of("39"));
    EXPECT_EQ(home->header()->key_id, "2/key-9");
}

TEST_F(HomeRekey, DeepLeavesNothingUnderTheOldKey) {
    auto const old_keys = content(file("keys"));
    auto const image = ByteVector(5000, std::byte{7});
    {
        auto home = opened();
        ASSERT_TRUE(home->commit_file("snapshot-1.state", m_tpm));
        add_image(*home, "snapshot-1.memory", image);
        put(file(".nvram.tmp"), content(file("nvram"))); // as a crash could leave it
        uint64_t last = 0;
        uint64_t whole = 0;
        auto refused = home->rekey_deep(m_host.make_seal("2/none"), nullptr, nullptr);
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code(), ErrorCode::InvalidArgument);
        EXPECT_NE(home->header()->key_id, "2/none");
        auto done = home->rekey_deep(m_host.make_seal("2/deep"), rewrite_image, [&](uint64_t now, uint64_t total) {
            EXPECT_GE(now, last);
            last = now;
            whole = total;
        });
        ASSERT_TRUE(done) << done.error().message();
        EXPECT_EQ(last, whole);
        EXPECT_GT(whole, m_nvram.size() + image.size());
        EXPECT_FALSE(home->deep_rekey_pending());
        EXPECT_EQ(kinds(*home).back(), HistoryKind::DeepRekeyed);
    }
    EXPECT_FALSE(std::filesystem::exists(file(".nvram.tmp")));
    // The old bundle gives the old key; nothing in the folder opens with it.
    auto parsed = parse_bundle(old_keys, file("keys"));
    auto bundle = open_bundle(*parsed, m_host.key(), file("keys"));
    ASSERT_TRUE(bundle);
    for (auto const& entry : std::filesystem::directory_iterator(m_host.location("vm").folder())) {
        auto const name = entry.path().filename().native();
        if (name == "lock" || name == "keys") continue;
        auto const bytes = content(entry.path());
        EXPECT_GT(parse_data_header(bytes, name)->epoch, 1U) << name;
        EXPECT_FALSE(authenticate_head(Bytes(bytes).first(4096), bytes.size(), {m_config.uuid, name},
                                       &bundle->keys.front().key, name))
            << name;
    }
    expect_content();
    auto home = opened();
    EXPECT_EQ(*home->load_file("snapshot-1.state"), m_tpm);
    auto opened_image = home->open_image("snapshot-1.memory");
    ASSERT_TRUE(opened_image) << opened_image.error().message();
    EXPECT_EQ(opened_image->root.digest, *crypto::sha256({image}));
}

TEST_F(HomeRekey, DeepGoesOnWhereItStopped) {
    {
        auto home = opened();
        add_image(*home, "snapshot-1.memory", bytes_of("one"));
        add_image(*home, "snapshot-2.memory", bytes_of("two"));
        int asked = 0;
        auto stop = [&](OpenedImage const& from, ImageWriting const& to,
                        std::function<void(uint64_t)> const& advance) -> Result<ImageRoot> {
            if (++asked == 2) return make_error(ErrorCode::Cancelled, "stopped");
            return rewrite_image(from, to, advance);
        };
        auto stopped = home->rekey_deep(m_host.make_seal("2/deep"), stop, nullptr);
        ASSERT_FALSE(stopped);
        EXPECT_EQ(stopped.error().code(), ErrorCode::Cancelled);
    }
    expect_content();
    auto home = opened();
    EXPECT_TRUE(home->deep_rekey_pending());
    EXPECT_EQ(epoch_of("snapshot-1.memory"), 2U);
    EXPECT_EQ(epoch_of("snapshot-2.memory"), 1U);
    EXPECT_EQ(home->open_image("snapshot-2.memory")->root.digest, *crypto::sha256({as_bytes("two")}));
    ASSERT_TRUE(home->finish_deep_rekey(rewrite_image, nullptr));
    EXPECT_FALSE(home->deep_rekey_pending());
    EXPECT_EQ(home->open_image("snapshot-2.memory")->root.digest, *crypto::sha256({as_bytes("two")}));
}

TEST_F(HomeRekey, UnencryptedHomeHasNoKeysToReplace) {
    ASSERT_TRUE(create_home(m_host.location("plain"), make_config("plain", TpmKind::None), m_nvram, std::nullopt));
    auto home = m_host.open("plain");
    ASSERT_TRUE(home);
    EXPECT_FALSE((*home)->header());
    EXPECT_EQ((*home)->rekey(m_host.make_seal("2/x")).error().code(), ErrorCode::InvalidArgument);
    EXPECT_EQ((*home)->rekey_deep(m_host.make_seal("2/x"), nullptr, nullptr).error().code(),
              ErrorCode::InvalidArgument);
}

// --- Rollback

TEST_F(HomeRekey, AcceptedRollbackIsTheNewestAndLogged) {
    auto const old = snapshot();
    ASSERT_TRUE(opened()->commit(HomeFile::Tpm, bytes_of("newer")));
    auto const newest = snapshot();
    roll_back_to(old);
    expect_refused(file("keys"));
    {
        auto home = opened(RollbackPolicy::Accept);
        ASSERT_TRUE(home);
        EXPECT_EQ(*home->load(HomeFile::Tpm), m_tpm);
        EXPECT_EQ(kinds(*home).back(), HistoryKind::RollbackAccepted);
    }
    expect_content();
    // Now the copy that was the newest is the old one.
    roll_back_to(newest);
    expect_refused(file("keys"));
}

TEST_F(HomeRekey, NothingToAcceptIsAnError) {
    auto const before = snapshot();
    auto home = m_host.open("vm", HomeAccess::Writer, RollbackPolicy::Accept);
    ASSERT_FALSE(home);
    EXPECT_EQ(home.error().code(), ErrorCode::InvalidArgument);
    std::filesystem::remove(record());
    home = m_host.open("vm", HomeAccess::Writer, RollbackPolicy::Accept);
    ASSERT_FALSE(home);
    EXPECT_EQ(home.error().code(), ErrorCode::InvalidArgument);
    put(record(), before.at(record()));
    expect_content();
}

// Acceptance is of the home as a whole: a single stale file is refused as ever.
TEST_F(HomeRekey, StaleFileInARolledBackHomeIsNotAccepted) {
    auto const stale = content(file("tpm"));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(opened()->commit(HomeFile::Tpm, bytes_of("newer")));
    auto old = snapshot();
    ASSERT_TRUE(opened()->commit(HomeFile::Tpm, bytes_of("newest")));
    old[file("tpm")] = stale;
    roll_back_to(old);
    auto const before = snapshot();
    auto home = m_host.open("vm", HomeAccess::Writer, RollbackPolicy::Accept);
    ASSERT_FALSE(home);
    EXPECT_EQ(home.error().code(), ErrorCode::Integrity);
    EXPECT_NE(home.error().message().find(file("tpm").native()), std::string::npos);
    EXPECT_EQ(snapshot(), before);
}

// A file of the state that was given up is one writing ahead of the accepted one; it must not come back.
TEST_F(HomeRekey, FilesOfTheStateGivenUpAreRefused) {
    auto const old = snapshot();
    std::map<std::string, ByteVector> given_up;
    {
        auto home = opened();
        ASSERT_TRUE(home->commit(HomeFile::Tpm, bytes_of("given up")));
        ASSERT_TRUE(home->commit(HomeFile::Nvram, bytes_of("given up")));
        ASSERT_TRUE(home->commit(HomeFile::Config, encode_vm_config(m_config)));
        given_up = snapshot();
    }
    roll_back_to(old);
    ASSERT_TRUE(opened(RollbackPolicy::Accept));
    for (auto const* name : {"tpm", "nvram", "config"}) {
        auto const own = content(file(name));
        put(file(name), given_up[file(name)]);
        expect_refused(file(name));
        put(file(name), own);
    }
    expect_content();
}

TEST_F(HomeRekey, RollbacksCanBeAcceptedAgainAndAgain) {
    for (int i = 0; i < 20; ++i) {
        auto const old = snapshot();
        ASSERT_TRUE(opened()->commit(HomeFile::Tpm, bytes_of("newer")));
        roll_back_to(old);
        ASSERT_TRUE(opened(RollbackPolicy::Accept)) << i;
    }
    expect_content();
}

// --- History

TEST_F(HomeRekey, HistoryIsBoundedAndInOrder) {
    constexpr size_t k_events = k_max_history + 30;
    {
        auto home = opened();
        for (size_t i = 0; i < k_events; ++i)
            ASSERT_TRUE(home->append_history(HistoryKind::Other, fmt::format("event {}\n", i)));
        EXPECT_FALSE(home->commit(HomeFile::History, m_tpm));
    }
    auto home = opened();
    auto const events = *home->history();
    ASSERT_EQ(events.size(), k_max_history);
    for (size_t i = 1; i < events.size(); ++i) EXPECT_EQ(events[i].number, events[i - 1].number + 1);
    EXPECT_EQ(events.back().number, k_events + 1); // the first is "created"
    EXPECT_EQ(events.back().text, fmt::format("event {} ", k_events - 1));
    EXPECT_GT(events.back().time, 1'600'000'000);
    EXPECT_EQ(history_text(std::string(10'000, 'x')).size(), k_max_history_text);
}

TEST_F(HomeRekey, UnencryptedHomesHaveAHistoryToo) {
    ASSERT_TRUE(create_home(m_host.location("plain"), make_config("plain", TpmKind::None), m_nvram, std::nullopt));
    for (int i = 0; i < 3; ++i) {
        auto home = m_host.open("plain");
        ASSERT_TRUE(home);
        ASSERT_TRUE((*home)->append_history(HistoryKind::Cloned, "from another"));
        EXPECT_EQ((*home)->history()->back().number, (*home)->history()->size());
    }
}

TEST(HomeHistory, MalformedContentIsRefused) {
    auto const bytes = encode_history({{1, 5, HistoryKind::Created, "a"}, {3, 6, HistoryKind::Other, "b"}});
    EXPECT_EQ(decode_history(bytes)->size(), 2U);
    for (size_t size = 0; size < bytes.size(); ++size) EXPECT_FALSE(decode_history(Bytes(bytes).first(size))) << size;
    EXPECT_FALSE(decode_history(encode_history({{2, 5, HistoryKind::Created, "a"}, {2, 6, HistoryKind::Other, "b"}})));
    EXPECT_EQ(to_string(static_cast<HistoryKind>(99)), "event");
}

// --- Further files

TEST_F(HomeRekey, FurtherFilesAreKeptAndDropped) {
    auto const image = ByteVector(9000, std::byte{3});
    {
        auto home = opened();
        EXPECT_TRUE(home->further_files().empty());
        ASSERT_TRUE(home->commit_file("snapshot-a.state", m_nvram));
        add_image(*home, "snapshot-a.memory", image);
        for (auto const* name : {"tpm", "snapshot-", "snapshot-A", "../x", "snapshot-a/b", "other-a"})
            EXPECT_EQ(home->commit_file(name, m_tpm).error().code(), ErrorCode::InvalidArgument) << name;
    }
    {
        auto home = opened();
        ASSERT_EQ(home->further_files().size(), 2U);
        EXPECT_FALSE(home->further_files()[0].image);
        EXPECT_TRUE(home->further_files()[1].image);
        EXPECT_EQ(*home->load_file("snapshot-a.state"), m_nvram);
        auto opened_image = home->open_image("snapshot-a.memory");
        ASSERT_TRUE(opened_image) << opened_image.error().message();
        EXPECT_EQ(opened_image->root.digest, *crypto::sha256({image}));
        EXPECT_EQ(Bytes(opened_image->root.own)[0], std::byte{'o'});
        EXPECT_EQ(opened_image->header.content_size, image.size());
        ASSERT_TRUE(opened_image->keys);
        ASSERT_TRUE(home->drop_file("snapshot-a.state"));
        EXPECT_FALSE(home->has_file("snapshot-a.state"));
        EXPECT_EQ(home->load_file("snapshot-a.state").error().code(), ErrorCode::NotFound);
        EXPECT_TRUE(home->drop_file("snapshot-a.state"));
    }
    EXPECT_FALSE(std::filesystem::exists(file("snapshot-a.state")));
    // What the manifest does not know is a leftover.
    put(file("snapshot-b.memory"), content(file("snapshot-a.memory")));
    put(file(".snapshot-c.memory.tmp"), m_tpm);
    expect_content();
    EXPECT_FALSE(std::filesystem::exists(file("snapshot-b.memory")));
    EXPECT_FALSE(std::filesystem::exists(file(".snapshot-c.memory.tmp")));
    EXPECT_TRUE(std::filesystem::exists(file("snapshot-a.memory")));
}

TEST_F(HomeRekey, ManifestHasAnEnd) {
    auto home = opened();
    size_t made = 0;
    Result<void> committed;
    while ((committed = home->commit_file(fmt::format("snapshot-{}.state", made), m_tpm))) ++made;
    EXPECT_EQ(committed.error().code(), ErrorCode::NoSpace);
    EXPECT_EQ(made, home_spec::keys::k_max_manifest_files - k_home_file_count);
    EXPECT_FALSE(home->begin_image("snapshot-more"));
    EXPECT_TRUE(home->commit_file("snapshot-0.state", m_nvram));
    EXPECT_TRUE(home->commit(HomeFile::Snapshots, m_nvram));
}

TEST_F(HomeRekey, ImageThatWasOvertakenIsNotCommitted) {
    auto home = opened();
    auto writing = home->begin_image("snapshot-1");
    ASSERT_TRUE(writing);
    auto root = write_content(*writing, m_tpm);
    ASSERT_TRUE(home->rekey_deep(m_host.make_seal("2/deep"), rewrite_image, nullptr));
    EXPECT_EQ(home->commit_image(*writing, *root).error().code(), ErrorCode::InvalidArgument);
}

} // namespace
} // namespace coffer::vmm::tests
