// The control socket with well-behaved clients.
#include "tests/unit/control/control_fixture.hpp"

#include "vmm/home/home_lock.hpp"

namespace coffer::vmm::control::tests {
namespace {

TEST_F(ControlTest, AnswersStatus) {
    make_server();
    m_server->start();
    auto client = Client::connect(m_location);
    ASSERT_TRUE(client) << client.error().message();
    for (int i = 0; i < 3; ++i) {
        auto status = client->call(StatusRequest{});
        ASSERT_TRUE(status) << status.error().message();
        EXPECT_EQ(status->backend, "soft");
        EXPECT_EQ(status->pid, 42U);
        EXPECT_EQ(status->uptime_ms, 1234U);
    }
}

TEST_F(ControlTest, TheSocketIsTheUsersAlone) {
    make_server();
    struct stat info {};
    ASSERT_EQ(::stat(socket_path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600U);
    ASSERT_EQ(::stat(socket_path().parent_path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0700U);
    m_server.reset();
    EXPECT_FALSE(std::filesystem::exists(socket_path()));
}

TEST_F(ControlTest, AFolderThatIsOpenToOthersIsRefused) {
    make_server();
    m_server.reset();
    ::chmod(socket_path().parent_path().c_str(), 0755);
    auto server = Server::create(m_location);
    ASSERT_FALSE(server);
    EXPECT_EQ(server.error().code(), ErrorCode::Permission);
}

TEST_F(ControlTest, AVmThatDoesNotRunIsNotFound) {
    auto client = Client::connect(m_location);
    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().code(), ErrorCode::NotFound);
}

TEST_F(ControlTest, AHomeInUseWithoutASocketIsBusy) {
    auto lock = HomeLock::acquire(m_location.folder());
    ASSERT_TRUE(lock);
    auto client = Client::connect(m_location);
    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().code(), ErrorCode::Busy);
}

TEST_F(ControlTest, TheSocketOfAKilledProcessIsReplaced) {
    pid_t const child = ::fork();
    if (child == 0) {
        auto server = Server::create(m_location);
        ::_exit(server ? 0 : 1); // without the destructor: the socket stays
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_EQ(status, 0);
    ASSERT_TRUE(std::filesystem::exists(socket_path()));
    auto client = Client::connect(m_location);
    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().code(), ErrorCode::NotFound);
    make_server();
    m_server->start();
    EXPECT_TRUE(ask_status());
}

TEST_F(ControlTest, WithoutARuntimeFolderItLiesInTheStateFolder) {
    for (auto const* unusable : {"", "relative/path", "/nonexistent"}) {
        ::setenv("XDG_RUNTIME_DIR", unusable, 1);
        make_server();
        m_server->start();
        EXPECT_TRUE(std::filesystem::exists(m_location.root.state / ".run" / "vm"));
        EXPECT_TRUE(ask_status());
        // A client that has one finds it all the same.
        ::setenv("XDG_RUNTIME_DIR", (m_folder.path() / "run").c_str(), 1);
        EXPECT_TRUE(ask_status());
        m_server.reset();
    }
}

TEST_F(ControlTest, ARuntimeFolderOpenToOthersIsNotUsed) {
    ::chmod((m_folder.path() / "run").c_str(), 0755);
    make_server();
    EXPECT_TRUE(std::filesystem::exists(m_location.root.state / ".run" / "vm"));
    EXPECT_FALSE(std::filesystem::exists(socket_path()));
}

TEST_F(ControlTest, NoHomeIsTooDeep) {
    auto deep = m_folder.path();
    for (int i = 0; i < 10; ++i) deep /= std::string(40, 'd');
    ::setenv("XDG_RUNTIME_DIR", "", 1);
    m_location = {{m_folder.path() / "root", deep / "state"}, std::string(64, 'n')};
    std::filesystem::create_directories(m_location.folder());
    make_server();
    m_server->start();
    EXPECT_TRUE(ask_status());
}

TEST_F(ControlTest, AKeyComesThroughWhole) {
    make_server();
    auto key = *crypto::BundleKey::random();
    auto const provider = *Uuid::parse("00112233-4455-6677-8899-aabbccddeeff");
    bool same = false;
    m_server->on<RekeyRequest>([&](RekeyRequest const& request, Conversation& conversation) -> Result<NoAnswer> {
        auto seal = TRY(seal_of(request, conversation.take_key()));
        auto const got = seal.key.expose();
        same = std::equal(got.begin(), got.end(), key.expose().begin()) && seal.provider == provider &&
               seal.key_id.text() == "1/key" && seal.wrapped.bytes == ByteVector(40, std::byte{7});
        return NoAnswer{};
    });
    m_server->start();
    auto client = Client::connect(m_location);
    ASSERT_TRUE(client);
    RekeyRequest request{provider, "1/key", ByteVector(40, std::byte{7})};
    auto done = client->call(request, {.key = &key});
    EXPECT_TRUE(done) << done.error().message();
    EXPECT_TRUE(same);

    auto without = client->call(request);
    ASSERT_FALSE(without);
    EXPECT_EQ(without.error().code(), ErrorCode::Corrupt);
    request.wrapped.clear();
    auto empty = client->call(request, {.key = &key});
    ASSERT_FALSE(empty);
    EXPECT_EQ(empty.error().code(), ErrorCode::Corrupt);
}

TEST_F(ControlTest, AFileComesThroughAndNothingElse) {
    make_server();
    m_server->on<BackupRequest>([](BackupRequest const&, Conversation& conversation) -> Result<NoAnswer> {
        auto file = conversation.take_descriptor();
        TRY(write_all(file.get(), as_bytes("written"), "the file"));
        return NoAnswer{};
    });
    m_server->start();
    auto path = m_folder.path() / "file";
    auto file = open_file(path, O_RDWR | O_CREAT);
    ASSERT_TRUE(file);
    auto client = Client::connect(m_location);
    ASSERT_TRUE(client);
    auto done = client->call(BackupRequest{}, {.descriptor = file->get()});
    ASSERT_TRUE(done) << done.error().message();
    EXPECT_EQ(std::filesystem::file_size(path), 7U);

    // A pipe that nobody reads would hold the handler up.
    std::array<int, 2> pipe{};
    ASSERT_EQ(::pipe(pipe.data()), 0);
    UniqueFd read_end(pipe[0]);
    UniqueFd write_end(pipe[1]);
    auto refused = client->call(BackupRequest{}, {.descriptor = write_end.get()});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::InvalidArgument);
    auto none = client->call(BackupRequest{});
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code(), ErrorCode::Corrupt);
}

TEST_F(ControlTest, ErrorsComeAcross) {
    make_server();
    m_server->on<StopRequest>([](StopRequest const& request, Conversation&) -> Result<NoAnswer> {
        EXPECT_TRUE(request.force);
        return make_error(ErrorCode::NoSpace, "the disk is full");
    });
    m_server->start();
    auto client = Client::connect(m_location);
    ASSERT_TRUE(client);
    auto done = client->call(StopRequest{true});
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code(), ErrorCode::NoSpace);
    EXPECT_EQ(done.error().message(), "the disk is full");
    // There is no handler for this one, and the connection is as good as before.
    auto backup = open_file(m_folder.path() / "file", O_RDWR | O_CREAT);
    auto unknown = client->call(BackupRequest{}, {.descriptor = backup->get()});
    ASSERT_FALSE(unknown);
    EXPECT_EQ(unknown.error().code(), ErrorCode::Unsupported);
    EXPECT_TRUE(client->call(StatusRequest{}));
}

TEST_F(ControlTest, ALongRequestTellsItsProgressAndStallsNobody) {
    make_server();
    Gate started;
    Gate go_on;
    m_server->on<RekeyRequest>([&](RekeyRequest const&, Conversation& conversation) -> Result<NoAnswer> {
        conversation.progress(1, 2, "half");
        started.open();
        go_on.wait();
        conversation.progress(2, 2, "all");
        return NoAnswer{};
    });
    m_server->start();
    auto key = *crypto::BundleKey::random();
    std::vector<std::string> seen;
    std::thread first([&] {
        auto client = Client::connect(m_location);
        ASSERT_TRUE(client);
        auto done = client->call(RekeyRequest{{}, "k", ByteVector(1)},
                                 {.key = &key, .on_progress = [&](Progress const& p) { seen.push_back(p.what); }});
        EXPECT_TRUE(done) << done.error().message();
    });
    started.wait();
    EXPECT_TRUE(ask_status());
    auto second = Client::connect(m_location);
    ASSERT_TRUE(second);
    auto refused = second->call(RekeyRequest{{}, "k", ByteVector(1)}, {.key = &key});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::Busy);
    go_on.open();
    first.join();
    EXPECT_EQ(seen, (std::vector<std::string>{"half", "all"}));
}

// Runs until it is cancelled.
Result<NoAnswer> run_on(RekeyRequest const&, Conversation& conversation) {
    conversation.progress(0, 0, "begun");
    while (!conversation.cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return make_error(ErrorCode::Cancelled, "cancelled");
}

TEST_F(ControlTest, ARequestIsCancelledByItsClient) {
    make_server();
    m_server->on<RekeyRequest>(run_on);
    m_server->start();
    auto client = Client::connect(m_location);
    ASSERT_TRUE(client);
    auto key = *crypto::BundleKey::random();
    bool begun = false;
    auto done = client->call(
        RekeyRequest{{}, "k", ByteVector(1)},
        {.key = &key, .on_progress = [&](Progress const&) { begun = true; }, .cancelled = [&] { return begun; }});
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code(), ErrorCode::Cancelled);
    EXPECT_TRUE(client->call(StatusRequest{}));
}

TEST_F(ControlTest, ARequestIsCancelledWhenTheVmEnds) {
    make_server();
    m_server->on<RekeyRequest>(run_on);
    m_server->start();
    auto client = Client::connect(m_location);
    ASSERT_TRUE(client);
    auto key = *crypto::BundleKey::random();
    std::thread ending;
    auto done = client->call(RekeyRequest{{}, "k", ByteVector(1)}, {.key = &key, .on_progress = [&](Progress const&) {
                                                                        ending = std::thread([&] { m_server->stop(); });
                                                                    }});
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code(), ErrorCode::Cancelled);
    ending.join();
    EXPECT_FALSE(client->call(StatusRequest{}));
    EXPECT_EQ(Client::connect(m_location).error().code(), ErrorCode::NotFound);
}

TEST_F(ControlTest, ManyClientsAtOnce) {
    make_server();
    m_server->start();
    std::atomic<int> answers{0};
    std::vector<std::thread> clients;
    for (int i = 0; i < 4; ++i)
        clients.emplace_back([&] {
            for (int n = 0; n < 50; ++n)
                if (ask_status()) ++answers;
        });
    for (auto& client : clients) client.join();
    // No client of this few is turned away: ended sessions are reaped before they are counted.
    EXPECT_GE(answers, 190);
}

} // namespace
} // namespace coffer::vmm::control::tests
