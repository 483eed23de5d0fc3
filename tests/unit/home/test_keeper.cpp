// The keeper process: what it answers, what it survives, and that its keys are nowhere else.
#include <csignal>
#include <fstream>
#include <thread>

#include <sys/socket.h>
#include <sys/wait.h>

#include "base/tagged.hpp"
#include "crypto/kdf.hpp"
#include "keyprovider/registry.hpp"
#include "tests/unit/home/home_fixture.hpp"
#include "vmm/home/keeper_client.hpp"
#include "vmm/home/keeper_protocol.hpp"
#include "vmm/home/keeper_server.hpp"

namespace coffer::vmm::tests {
namespace {

// A descriptor that gives `text` and then ends.
UniqueFd pipe_with(std::string_view text) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe(ends.data()), 0);
    UniqueFd write_end(ends[1]);
    EXPECT_TRUE(write_all(write_end.get(), as_bytes(text), "pipe"));
    return UniqueFd(ends[0]);
}

class KeeperTest : public testing::Test {
protected:
    KeeperOptions options(int passphrase_fd = -1) const {
        KeeperOptions options;
        options.program = COFFER_PROGRAM;
        options.passphrase_fd = passphrase_fd;
        options.may_prompt = false;
        return options;
    }
    ProviderInfo add(std::string_view name, std::string_view passphrase = {}) {
        auto secret = crypto::SecretBytes::copy_of(as_bytes(passphrase));
        auto info = m_registry.add_native(name, passphrase.empty() ? nullptr : &secret);
        EXPECT_TRUE(info) << info.error().message();
        return *info;
    }
    // A home "vm" under the provider.
    void create(ProviderInfo const& provider, int passphrase_fd = -1) {
        auto keeper = KeeperProcess::start(m_root, options(passphrase_fd));
        ASSERT_TRUE(keeper) << keeper.error().message();
        auto seal = keeper->make_seal(provider.id, "vm");
        ASSERT_TRUE(seal) << seal.error().message();
        auto created = create_home(m_location, make_config("vm"), bytes_of("variables"), std::move(*seal));
        ASSERT_TRUE(created) << created.error().message();
    }
    void expect_refused(ErrorCode code, std::string_view word, int passphrase_fd = -1) {
        auto home = unlock_home(m_location, options(passphrase_fd));
        ASSERT_FALSE(home);
        EXPECT_EQ(home.error().code(), code) << home.error().message();
        EXPECT_NE(home.error().message().find(word), std::string::npos) << home.error().message();
    }

    coffer::tests::TempFolder m_folder;
    HomeRoot m_root{m_folder.path() / "root", m_folder.path() / "state"};
    HomeLocation m_location{m_root, "vm"};
    ProviderRegistry m_registry{m_root.providers()};
};

TEST_F(KeeperTest, UnlocksTheHomeThatItSealed) {
    create(add("local"));
    auto home = unlock_home(m_location, options());
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_EQ(*(*home)->load(HomeFile::Nvram), bytes_of("variables"));
    EXPECT_FALSE((*home)->has(HomeFile::Tpm));
}

TEST_F(KeeperTest, PassphraseComesFromTheDescriptor) {
    auto provider = add("local", "correct horse");
    auto for_create = pipe_with("correct horse\nnot part of it");
    create(provider, for_create.get());
    auto right = pipe_with("correct horse");
    EXPECT_TRUE(unlock_home(m_location, options(right.get())));
    auto wrong = pipe_with("wrong");
    expect_refused(ErrorCode::KeyUnavailable, "passphrase is wrong", wrong.get());
    auto empty = pipe_with("\n");
    expect_refused(ErrorCode::InvalidArgument, "empty", empty.get());
    expect_refused(ErrorCode::KeyUnavailable, "--passphrase-fd");
    expect_refused(ErrorCode::InvalidArgument, "not open", 999);
}

TEST_F(KeeperTest, PassphraseCannotBeReadAgain) {
    create(add("local", "correct horse"), pipe_with("correct horse").get());
    auto path = m_folder.path() / "passphrase";
    ASSERT_TRUE(replace_file(path, as_bytes("correct horse")));
    auto file = open_file(path, O_RDONLY);
    ASSERT_TRUE(file);
    ASSERT_TRUE(unlock_home(m_location, options(file->get())));
    std::array<char, 16> buffer{};
    EXPECT_LE(::lseek(file->get(), 0, SEEK_SET), 0);
    EXPECT_EQ(::read(file->get(), buffer.data(), buffer.size()), 0);
}

// Descriptors 3 and 4 are those that the keeper itself uses.
TEST_F(KeeperTest, PassphraseDescriptorMayHaveAnyNumber) {
    create(add("local", "correct horse"), pipe_with("correct horse").get());
    for (int number : {3, 4}) {
        UniqueFd kept(::dup(number)); // what the test itself had there
        auto pipe = pipe_with("correct horse");
        ASSERT_EQ(::dup2(pipe.get(), number), number);
        auto home = unlock_home(m_location, options(number));
        EXPECT_TRUE(home) << number << ": " << home.error().message();
        if (kept.valid())
            ::dup2(kept.get(), number);
        else
            ::close(number);
    }
}

TEST_F(KeeperTest, MissingProviderIsNamed) {
    auto provider = add("local");
    create(provider);
    std::filesystem::rename(m_root.providers(), m_folder.path() / "elsewhere");
    expect_refused(ErrorCode::KeyUnavailable, provider.id.to_string());
}

TEST_F(KeeperTest, KeyOfAnotherProviderIsRefusedWithTheFilesName) {
    auto provider = add("local");
    create(provider);
    // The same provider by name and id, with another KDK.
    auto other = add("other");
    auto folder = [&](ProviderInfo const& info) { return m_root.providers() / info.id.to_string(); };
    auto kdk = crypto::KeyDerivationKey::random();
    auto file = seal_kdk({provider.id, 1}, *kdk, nullptr);
    ASSERT_TRUE(replace_file(folder(provider) / "kdk.1", file->expose()));
    expect_refused(ErrorCode::Integrity, (m_location.folder() / "keys").native());
    // Another provider's key file in its place.
    std::filesystem::copy_file(folder(other) / "kdk.1", folder(provider) / "kdk.1",
                               std::filesystem::copy_options::overwrite_existing);
    expect_refused(ErrorCode::Integrity, "kdk.1");
}

TEST_F(KeeperTest, ProgramThatIsNoKeeperIsAnError) {
    auto provider = add("local");
    create(provider);
    for (auto const* program : {"/bin/true", "/nonexistent/program"}) {
        auto broken = options();
        broken.program = program;
        auto home = unlock_home(m_location, broken);
        ASSERT_FALSE(home);
        EXPECT_EQ(home.error().code(), ErrorCode::Io) << home.error().message();
    }
}

TEST_F(KeeperTest, KilledKeeperIsAnErrorAndNoHang) {
    auto provider = add("local");
    auto keeper = KeeperProcess::start(m_root, options());
    ASSERT_TRUE(keeper);
    ASSERT_TRUE(keeper->make_seal(provider.id, "vm"));
    ::kill(keeper->pid(), SIGKILL);
    auto seal = keeper->make_seal(provider.id, "vm");
    ASSERT_FALSE(seal);
    EXPECT_EQ(seal.error().code(), ErrorCode::Io) << seal.error().message();
}

TEST_F(KeeperTest, KeeperIsInASandboxWithoutDumps) {
    auto provider = add("local");
    auto keeper = KeeperProcess::start(m_root, options());
    ASSERT_TRUE(keeper);
    ASSERT_TRUE(keeper->make_seal(provider.id, "vm"));
    auto process = std::filesystem::path("/proc") / std::to_string(keeper->pid());
    std::ifstream status(process / "status");
    std::string text((std::istreambuf_iterator<char>(status)), {});
    EXPECT_NE(text.find("Seccomp:\t2"), std::string::npos) << text;
    EXPECT_NE(text.find("NoNewPrivs:\t1"), std::string::npos) << text;
    std::ifstream limits(process / "limits");
    std::string line;
    while (std::getline(limits, line) && !line.starts_with("Max core file size")) {
    }
    EXPECT_NE(line.find("  0  "), std::string::npos) << line;
    std::ifstream arguments(process / "cmdline");
    std::string words((std::istreambuf_iterator<char>(arguments)), {});
    EXPECT_NE(words.find("keeper"), std::string::npos);
}

// What the other process may send is hostile input.
class KeeperServer : public KeeperTest {
protected:
    void SetUp() override {
        std::array<int, 2> pair{};
        ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()), 0);
        m_client = UniqueFd(pair[0]);
        m_server = UniqueFd(pair[1]);
    }
    // Serves on a thread until the client's end is closed or the protocol broken; gives whether serve() failed.
    bool serve_packets(std::vector<ByteVector> const& packets) {
        bool failed = false;
        std::thread server([&] {
            keeper::Settings settings;
            settings.providers = m_root.providers();
            settings.socket = m_server.get();
            settings.may_prompt = false;
            failed = !keeper::serve(settings);
            m_server.reset();
        });
        for (auto const& packet : packets) ::send(m_client.get(), packet.data(), packet.size(), MSG_NOSIGNAL);
        ::shutdown(m_client.get(), SHUT_WR);
        server.join();
        return failed;
    }
    static ByteVector packet(uint16_t type, Bytes body) {
        ByteVector bytes(16);
        std::memcpy(bytes.data(), "CKPR", 4);
        store_le<uint16_t>(bytes, 4, 1);
        store_le<uint16_t>(bytes, 6, type);
        store_le<uint32_t>(bytes, 8, 77);
        store_le<uint32_t>(bytes, 12, static_cast<uint32_t>(body.size()));
        append(bytes, body);
        return bytes;
    }
    UniqueFd m_client;
    UniqueFd m_server;
};

TEST_F(KeeperServer, BadRequestsAreAnsweredWithFailures) {
    auto provider = add("local");
    ByteVector key(32);
    auto wrap = key;
    append(wrap, encode_fields(keeper::WrapRequest{provider.id, "vm"}));
    auto unknown = key;
    append(unknown, encode_fields(keeper::WrapRequest{*crypto::random_uuid(), "vm"}));
    auto bad_id = encode_fields(keeper::UnwrapRequest{provider.id, "no such key", {}});
    auto empty = encode_fields(keeper::UnwrapRequest{provider.id, "1/" + provider.id.to_string(), {}});
    EXPECT_FALSE(serve_packets({packet(1, wrap), packet(1, unknown), packet(1, key), packet(2, bad_id),
                                packet(2, empty), packet(2, {}), packet(0x8001, {})}));
    using keeper::MessageType;
    for (auto wanted : {MessageType::Wrapped, MessageType::Failed, MessageType::Failed, MessageType::Failed,
                        MessageType::Failed, MessageType::Failed, MessageType::Failed}) {
        auto answer = keeper::receive(m_client.get());
        ASSERT_TRUE(answer) << answer.error().message();
        ASSERT_TRUE(answer->has_value());
        EXPECT_EQ((*answer)->type, wanted);
        EXPECT_EQ((*answer)->number, 77U);
    }
}

TEST_F(KeeperServer, MalformedPacketsEndIt) {
    auto good = packet(2, bytes_of("body"));
    std::vector<ByteVector> bad;
    for (size_t size = 1; size < good.size(); ++size)
        bad.push_back({good.begin(), good.begin() + static_cast<long>(size)});
    for (size_t byte : {0U, 3U, 4U, 5U, 12U, 15U}) {
        bad.push_back(good);
        bad.back()[byte] ^= std::byte{0x40};
    }
    bad.push_back(packet(9, {}));
    bad.push_back(packet(1, ByteVector(31)));
    bad.push_back(packet(2, ByteVector(keeper::k_max_message)));
    for (auto const& malformed : bad) {
        SetUp();
        EXPECT_TRUE(serve_packets({malformed}));
    }
}

TEST(KeeperProtocol, HostileFailuresAreBounded) {
    keeper::Failure failure{static_cast<ErrorCode>(200), "x"};
    EXPECT_EQ(keeper::decode_failure(encode_fields(failure)).code(), ErrorCode::Corrupt);
    failure = {ErrorCode::Busy, std::string(5000, 'x')};
    EXPECT_EQ(keeper::decode_failure(encode_fields(failure)).code(), ErrorCode::Corrupt);
    auto error = keeper::decode_failure(keeper::encode_failure(Error(ErrorCode::Busy, std::string(5000, 'y'))));
    EXPECT_EQ(error.code(), ErrorCode::Busy);
    EXPECT_EQ(error.message().size(), 2048U);
}

// All readable memory of a process that holds still.
std::string memory_of(pid_t process) {
    auto folder = std::filesystem::path("/proc") / std::to_string(process);
    std::ifstream maps(folder / "maps");
    auto memory = open_file(folder / "mem", O_RDONLY);
    EXPECT_TRUE(memory) << memory.error().message();
    std::string all;
    for (std::string line; memory && std::getline(maps, line);) {
        unsigned long first = 0;
        unsigned long last = 0;
        char readable = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx %c", &first, &last, &readable) != 3 || readable != 'r') continue;
        if (last - first > size_t{256} << 20) continue; // a sanitizer's shadow
        std::string part(last - first, '\0');
        ssize_t size = ::pread(memory->get(), part.data(), part.size(), static_cast<off_t>(first));
        if (size > 0) all.append(part, 0, static_cast<size_t>(size));
    }
    return all;
}

std::string text_of(Bytes bytes) {
    std::string text;
    for (std::byte b : bytes) text += static_cast<char>(b);
    return text;
}

TEST_F(KeeperTest, ProcessWithTheOpenHomeNeverHasTheProvidersKeys) {
    auto provider = add("local");
    create(provider);
    std::array<int, 2> ready{};
    ASSERT_EQ(::pipe(ready.data()), 0);
    pid_t const child = ::fork();
    struct Ended {
        pid_t process;
        ~Ended() {
            ::kill(process, SIGKILL);
            ::waitpid(process, nullptr, 0);
        }
    };
    if (child == 0) {
        auto home = unlock_home(m_location, options());
        bool committed = home && (*home)->commit(HomeFile::Tpm, as_bytes("some state"));
        [[maybe_unused]] auto written = ::write(ready[1], committed ? "y" : "n", 1);
        ::pause();
        ::_exit(0);
    }
    Ended const ended{child};
    char opened = 0;
    ASSERT_EQ(::read(ready[0], &opened, 1), 1);
    ASSERT_EQ(opened, 'y');
    // Only now are the keys read here: the child is a copy from before.
    auto kdk = read_file(m_root.providers() / provider.id.to_string() / "kdk.1", 1000);
    ASSERT_TRUE(kdk);
    auto summary = summarize_home(m_location);
    auto uuid = Uuid::parse(summary->key_id.substr(2));
    ByteVector context = {provider.id.bytes().begin(), provider.id.bytes().end()};
    append(context, uuid->bytes());
    auto kek =
        crypto::kbkdf_hmac_sha256(Bytes(*kdk).subspan(80, 32), as_bytes("coffer native provider KEK"), context, 32);
    ASSERT_TRUE(kek);
    auto keys_file = read_file(m_location.folder() / "keys", 100'000);
    auto parsed = parse_bundle(*keys_file, "keys");
    ASSERT_TRUE(parsed);
    auto opener = m_registry.open(provider.id, [](auto) { return crypto::SecretBytes::random(1); });
    auto bundle_key = (*opener)->unwrap(*KeyId::parse(parsed->header.key_id), {parsed->header.wrapped_key});
    ASSERT_TRUE(bundle_key);
    auto memory = memory_of(child);
    EXPECT_NE(memory.find(text_of(bundle_key->expose())), std::string::npos) << "the search finds nothing at all";
    EXPECT_EQ(memory.find(text_of(Bytes(*kdk).subspan(80, 32))), std::string::npos);
    EXPECT_EQ(memory.find(text_of(kek->expose())), std::string::npos);
}

} // namespace
} // namespace coffer::vmm::tests
