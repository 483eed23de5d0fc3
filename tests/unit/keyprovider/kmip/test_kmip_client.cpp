// The client and the provider against a double of a server: every version, key states, lies, and servers that fail.
#include <thread>

#include <gtest/gtest.h>

#include "keyprovider/kmip/kmip_config.hpp"
#include "keyprovider/kmip/kmip_provider.hpp"
#include "tests/support/kmip_double.hpp"

namespace coffer::kmip {
namespace {

using tests::DoubleConnection;
using tests::KmipDouble;

Error down(Endpoint const& endpoint) {
    return make_error(ErrorCode::KeyUnavailable, "{} is down", endpoint.to_string());
}

// One double for each endpoint, which may be down.
struct World {
    struct Server {
        KmipDouble server;
        bool up = true;
        int attempts = 0;
        int connections = 0;
        DoubleConnection::Transform transform;
    };
    std::map<std::string, Server> servers;

    Connector connector() {
        return [this](Endpoint const& endpoint, Nanoseconds) -> Result<std::unique_ptr<Connection>> {
            auto& server = servers.at(endpoint.host);
            ++server.attempts;
            if (!server.up) return down(endpoint);
            ++server.connections;
            return std::unique_ptr<Connection>(std::make_unique<DoubleConnection>(
                server.server, [&server, endpoint](ByteVector& answer) -> Result<void> {
                    if (!server.up) return down(endpoint);
                    return server.transform ? server.transform(answer) : Result<void>();
                }));
        };
    }
    KmipClient client(std::optional<ProtocolVersion> forced = std::nullopt) {
        std::vector<Endpoint> endpoints;
        for (auto const& [host, server] : servers) endpoints.push_back({host, 5696});
        return KmipClient(Cluster(std::move(endpoints), forced, connector()));
    }
};

class KmipClientTest : public testing::Test {
protected:
    void SetUp() override { m_world.servers.try_emplace("a"); }
    World::Server& server() { return m_world.servers.at("a"); }
    KmipDouble& kmip() { return server().server; }
    KmipProvider provider(bool wrap_at_server = false) { return {Uuid(), m_world.client(), wrap_at_server}; }

    World m_world;
};

template <class T>
void expect_error(Result<T> const& result, ErrorCode code, std::string_view word) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), code) << result.error().message();
    EXPECT_NE(result.error().message().find(word), std::string::npos) << result.error().message();
}

TEST_F(KmipClientTest, EveryOperationInEveryVersion) {
    for (auto const& traits : k_versions) {
        SCOPED_TRACE(traits.version.to_string());
        kmip().versions = {{3, 0}, {1, 0}, {1, 1}, traits.version};
        auto client = m_world.client();
        auto information = client.query();
        ASSERT_TRUE(information) << information.error().message();
        EXPECT_EQ(information->vendor, "the double?");
        EXPECT_TRUE(information->offers(Operation::Encrypt));
        EXPECT_FALSE(information->offers(Operation::Locate));
        EXPECT_EQ(kmip().spoken.back(), traits.version);

        auto id = client.create();
        ASSERT_TRUE(id) << id.error().message();
        EXPECT_EQ(*client.state(*id), State::PreActive);
        ASSERT_TRUE(client.activate(*id));
        EXPECT_EQ(*client.state(*id), State::Active);
        auto key = client.get(*id);
        ASSERT_TRUE(key) << key.error().message();
        EXPECT_TRUE(std::ranges::equal(key->expose(), kmip().keys.at(*id).value));
        auto wrapped = client.get_wrapped(*id, *id);
        ASSERT_TRUE(wrapped) << wrapped.error().message();
        EXPECT_EQ(*wrapped, ByteVector(40, std::byte{0x77}));
        kmip().wrapped_in_structure = true;
        EXPECT_EQ(*client.get_wrapped(*id, *id), *wrapped);
        kmip().wrapped_in_structure = false;
        ASSERT_TRUE(client.set_attribute(*id, "Name", "a VM"));
        EXPECT_EQ(kmip().keys.at(*id).attributes.at("x-Name"), "a VM");
        auto found = client.locate("a VM", 1);
        ASSERT_TRUE(found) << found.error().message();
        EXPECT_EQ(*found, std::vector<std::string>{*id});

        auto own = crypto::KeyEncryptionKey::random();
        auto registered = client.register_key(*own);
        ASSERT_TRUE(registered) << registered.error().message();
        EXPECT_TRUE(std::ranges::equal(client.get(*registered)->expose(), own->expose()));
        expect_error(client.locate("any", 1), ErrorCode::Corrupt, "more keys");
        ASSERT_TRUE(client.destroy(*registered));

        auto secret = crypto::SecretBytes::random(32);
        auto sealed = client.encrypt(*id, *secret);
        if (traits.gcm) {
            ASSERT_TRUE(sealed) << sealed.error().message();
            EXPECT_TRUE(std::ranges::equal(client.decrypt(*id, *sealed)->expose(), secret->expose()));
            sealed->tag[3] ^= std::byte{1};
            expect_error(client.decrypt(*id, *sealed), ErrorCode::Integrity, "Decrypt");
        } else {
            expect_error(sealed, ErrorCode::Unsupported, "1.4");
        }
        expect_error(client.destroy(*id), ErrorCode::KeyUnavailable, "Destroy");
        ASSERT_TRUE(client.revoke(*id, RevocationReasonCode::CessationOfOperation));
        EXPECT_EQ(*client.state(*id), State::Deactivated);
        ASSERT_TRUE(client.destroy(*id));
        expect_error(client.get(*id), ErrorCode::KeyUnavailable, "no such key");
        EXPECT_EQ(server().connections, 1) << "one connection serves all requests";
        server().connections = 0;
    }
}

TEST_F(KmipClientTest, BestCommonVersionIsAskedForOnceAndRemembered) {
    kmip().versions = {{1, 1}, {1, 3}, {2, 1}, {1, 2}};
    auto client = m_world.client();
    ASSERT_TRUE(client.create());
    ASSERT_TRUE(client.create());
    EXPECT_EQ(kmip().seen, (std::vector{Operation::DiscoverVersions, Operation::Create, Operation::Create}));
    EXPECT_EQ(kmip().spoken.front(), (ProtocolVersion{1, 1}));
    EXPECT_EQ(kmip().spoken.back(), (ProtocolVersion{1, 3}));
}

TEST_F(KmipClientTest, NoCommonVersionIsSaid) {
    kmip().versions = {{1, 1}};
    auto forced = m_world.client(ProtocolVersion{2, 0});
    expect_error(forced.create(), ErrorCode::KeyUnavailable, "Create");
    EXPECT_EQ(kmip().seen.size(), 1U) << "a version that was asked for needs no negotiation";
    kmip().unknown = {Operation::DiscoverVersions};
    expect_error(m_world.client().create(), ErrorCode::KeyUnavailable, "versions");
    kmip().unknown.clear();
    server().transform = [](ByteVector& answer) -> Result<void> {
        // 1.1 becomes 3.1 in the list of versions, which is the last one in the answer.
        store_be<uint32_t>(answer, answer.size() - 24, 3);
        return {};
    };
    expect_error(m_world.client().create(), ErrorCode::KeyUnavailable, "3.1");
}

TEST_F(KmipClientTest, AnswersToOtherRequestsAreRefused) {
    auto client = m_world.client();
    auto id = client.create();
    ASSERT_TRUE(id);
    kmip().wrong_id = "key-2";
    expect_error(client.get(*id), ErrorCode::Corrupt, "another key");
    expect_error(client.state(*id), ErrorCode::Corrupt, "another key");
    kmip().wrong_id.clear();
    kmip().repeats_batch_item = false;
    expect_error(client.get(*id), ErrorCode::KeyUnavailable, "which request");
    kmip().repeats_batch_item = true;
    ByteVector old;
    server().transform = [&](ByteVector& answer) -> Result<void> {
        if (old.empty()) old = answer;
        answer = old;
        return {};
    };
    ASSERT_TRUE(client.state(*id)); // asked anew, since the connection was left
    EXPECT_TRUE(old.size() > 0);
    expect_error(client.state(*id), ErrorCode::KeyUnavailable, "another request");
}

TEST_F(KmipClientTest, KeysOfOtherSizesAndFormsAreRefused) {
    auto client = m_world.client();
    auto id = client.create();
    ASSERT_TRUE(id);
    // The key becomes 31 bytes long; its padding makes it fit.
    server().transform = [](ByteVector& answer) -> Result<void> {
        for (size_t i = 0; i + 8 < answer.size(); i += 8)
            if (load_be<uint32_t>(answer, i) == 0x42004308) store_be<uint32_t>(answer, i + 4, 31);
        return {};
    };
    expect_error(client.get(*id), ErrorCode::Corrupt, "256 bits");
    // A wrapped key where the key itself was asked for, and the reverse: the label alone differs.
    server().transform = [](ByteVector& answer) -> Result<void> {
        for (size_t i = 0; i + 8 < answer.size(); i += 8)
            if (load_be<uint32_t>(answer, i) == 0x42004601) store_be<uint32_t>(answer, i, 0x42004701);
        return {};
    };
    expect_error(client.get_wrapped(*id, *id), ErrorCode::Corrupt, "missing");
}

TEST_F(KmipClientTest, ServersOfOneClusterMaySpeakDifferentVersions) {
    kmip().versions = {{2, 0}, {1, 1}};
    auto& other = m_world.servers["b"].server;
    other.versions = {{1, 4}, {1, 1}};
    auto client = m_world.client();
    auto id = client.create();
    ASSERT_TRUE(id);
    other.keys = kmip().keys;
    server().transform = [](ByteVector&) -> Result<void> {
        return make_error(ErrorCode::KeyUnavailable, "the connection is lost");
    };
    auto set = client.set_attribute(*id, "Name", "a VM");
    ASSERT_TRUE(set) << set.error().message();
    EXPECT_EQ(kmip().seen.back(), Operation::SetAttribute);
    EXPECT_EQ(other.seen.back(), Operation::AddAttribute);
    EXPECT_EQ(other.keys.at(*id).attributes.at("x-Name"), "a VM");
}

TEST_F(KmipClientTest, UnknownOperationsAreRefusalsAndLeaveTheConnection) {
    kmip().unknown = {Operation::Locate};
    auto client = m_world.client();
    expect_error(client.locate("x", 5), ErrorCode::KeyUnavailable, "Error parsing request");
    ASSERT_TRUE(client.create());
    EXPECT_EQ(server().connections, 1);
}

TEST_F(KmipClientTest, IdleConnectionThatWasClosedIsOpenedAgain) {
    auto client = m_world.client();
    ASSERT_TRUE(client.create());
    bool closed = true;
    server().transform = [&](ByteVector&) -> Result<void> {
        if (std::exchange(closed, false)) return down({"a", 1});
        return {};
    };
    EXPECT_TRUE(client.create());
    EXPECT_EQ(server().connections, 2);
    EXPECT_EQ(client.cluster().health()[0].failures, 0U);
}

TEST_F(KmipClientTest, NextServerIsAskedWhereOneIsDownOrDiesInMidOperation) {
    m_world.servers.try_emplace("b");
    auto& b = m_world.servers.at("b");
    server().up = false;
    auto client = m_world.client();
    ASSERT_TRUE(client.create());
    EXPECT_EQ(b.connections, 1);
    EXPECT_EQ(client.cluster().health()[0].failures, 1U);
    // The one that works is kept, though the other one is back.
    server().up = true;
    ASSERT_TRUE(client.create());
    EXPECT_EQ(server().connections, 0);
    // It dies with the request under way, which goes to the other.
    b.up = false;
    ASSERT_TRUE(client.create());
    EXPECT_EQ(server().connections, 1);
    EXPECT_EQ(client.cluster().health()[0].failures, 0U);
    server().up = false;
    auto nobody = client.create();
    expect_error(nobody, ErrorCode::KeyUnavailable, "a:5696 is down");
    expect_error(nobody, ErrorCode::KeyUnavailable, "b:5696 is down");
}

TEST_F(KmipClientTest, PausesBeginWithTheSecondFailureGrowAndAreBounded) {
    server().up = false;
    Limits limits;
    limits.first_pause = 20 * k_ns_per_ms;
    limits.longest_pause = 50 * k_ns_per_ms;
    KmipClient client(Cluster({{"a", 1}}, std::nullopt, m_world.connector(), limits));
    auto const& health = client.cluster().health()[0];
    auto pause_of_next_failure = [&] {
        while (health.pause_until > monotonic_now()) std::this_thread::yield();
        auto const begun = monotonic_now();
        EXPECT_FALSE(client.create());
        return std::max<Nanoseconds>(health.pause_until - begun, 0);
    };
    EXPECT_EQ(pause_of_next_failure(), 0);
    EXPECT_GE(pause_of_next_failure(), limits.first_pause);
    EXPECT_GE(pause_of_next_failure(), 2 * limits.first_pause);
    EXPECT_GE(pause_of_next_failure(), limits.longest_pause);
    EXPECT_GE(pause_of_next_failure(), limits.longest_pause);
    EXPECT_LE(health.pause_until, monotonic_now() + limits.longest_pause);
    EXPECT_EQ(server().attempts, 5);
    server().up = true;
    while (health.pause_until > monotonic_now()) std::this_thread::yield();
    EXPECT_TRUE(client.create());
    EXPECT_EQ(health.failures, 0U);
}

TEST_F(KmipClientTest, ServerThatIsPausedIsNotAsked) {
    server().up = false;
    Limits limits;
    limits.first_pause = 3600 * k_ns_per_s;
    limits.longest_pause = limits.first_pause;
    KmipClient client(Cluster({{"a", 1}}, std::nullopt, m_world.connector(), limits));
    EXPECT_FALSE(client.create());
    EXPECT_FALSE(client.create());
    server().up = true;
    auto paused = client.create();
    expect_error(paused, ErrorCode::KeyUnavailable, "not asked again");
    expect_error(paused, ErrorCode::KeyUnavailable, "a:1 is down");
    EXPECT_EQ(server().attempts, 2);
}

TEST_F(KmipClientTest, MalformedAnswersNeverHurt) {
    for (size_t flip = 0; flip < 4000; ++flip) {
        auto client = m_world.client(ProtocolVersion{1, 4});
        kmip().keys.clear();
        auto id = client.create();
        ASSERT_TRUE(id);
        server().transform = [&](ByteVector& answer) -> Result<void> {
            answer[flip / 8 % answer.size()] ^= std::byte{1} << (flip % 8);
            return {};
        };
        // Most flips are noticed; those in a key or in text cannot be.
        (void)client.get(*id);
        server().transform = nullptr;
    }
}

class KmipProviderTest : public KmipClientTest, public testing::WithParamInterface<bool> {};
INSTANTIATE_TEST_SUITE_P(Ways, KmipProviderTest, testing::Values(false, true),
                         [](auto const& way) { return way.param ? "AtServer" : "Fetched"; });

TEST_P(KmipProviderTest, WrapsAndUnwraps) {
    auto first = provider(GetParam());
    auto kek = first.create_kek("a VM");
    ASSERT_TRUE(kek) << kek.error().message();
    EXPECT_EQ(kmip().keys.at(kek->text()).state, State::Active);
    EXPECT_EQ(kmip().keys.at(kek->text()).attributes.at("x-Name"), "a VM");
    auto key = crypto::BundleKey::random();
    auto wrapped = first.wrap(*kek, *key);
    ASSERT_TRUE(wrapped) << wrapped.error().message();
    EXPECT_EQ(wrapped->bytes.size(), GetParam() ? 61U : 41U);
    bool const fetched = std::find(kmip().seen.begin(), kmip().seen.end(), Operation::Get) != kmip().seen.end();
    EXPECT_EQ(fetched, !GetParam()) << "wrapped at the server, the KEK stays there";
    // The form tells the way, whatever the provider is set to now.
    auto second = provider(!GetParam());
    auto opened = second.unwrap(*kek, *wrapped);
    ASSERT_TRUE(opened) << opened.error().message();
    EXPECT_TRUE(std::ranges::equal(opened->expose(), key->expose()));
}

TEST_P(KmipProviderTest, ChangedBytesAreRefused) {
    auto p = provider(GetParam());
    auto kek = p.create_kek("vm");
    auto wrapped = p.wrap(*kek, *crypto::BundleKey::random());
    ASSERT_TRUE(wrapped);
    for (size_t i = 0; i < wrapped->bytes.size(); ++i) {
        auto changed = *wrapped;
        changed.bytes[i] ^= std::byte{0x40};
        expect_error(p.unwrap(*kek, changed), ErrorCode::Integrity, "");
    }
    for (size_t size = 0; size < wrapped->bytes.size(); ++size)
        expect_error(p.unwrap(*kek, {{wrapped->bytes.begin(), wrapped->bytes.begin() + static_cast<ptrdiff_t>(size)}}),
                     ErrorCode::Integrity, "");
}

TEST_P(KmipProviderTest, StateOfTheKeyDecides) {
    auto p = provider(GetParam());
    auto kek = p.create_kek("vm");
    auto key = crypto::BundleKey::random();
    auto wrapped = p.wrap(*kek, *key);
    ASSERT_TRUE(wrapped);
    auto& state = kmip().keys.at(kek->text()).state;
    state = State::PreActive;
    EXPECT_TRUE(p.unwrap(*kek, *wrapped));
    EXPECT_EQ(state, State::Active);
    state = State::Deactivated;
    EXPECT_TRUE(p.unwrap(*kek, *wrapped));
    expect_error(p.wrap(*kek, *key), ErrorCode::KeyUnavailable, "deactivated");
    for (auto [refused, word] : {std::pair{State::Compromised, "compromised"},
                                 {State::Destroyed, "destroyed"},
                                 {State::DestroyedCompromised, "destroyed"},
                                 {State{99}, "unknown state"}}) {
        state = refused;
        expect_error(p.unwrap(*kek, *wrapped), ErrorCode::KeyUnavailable, word);
        expect_error(p.wrap(*kek, *key), ErrorCode::KeyUnavailable, word);
    }
    kmip().keys.clear();
    expect_error(p.unwrap(*kek, *wrapped), ErrorCode::KeyUnavailable, "no such key");
}

TEST_F(KmipClientTest, AttributesThatTheServerDoesNotTakeAreTolerated) {
    kmip().unknown = {Operation::AddAttribute, Operation::SetAttribute};
    auto p = provider();
    ASSERT_TRUE(p.create_kek("vm"));
    EXPECT_EQ(std::count(kmip().seen.begin(), kmip().seen.end(), Operation::SetAttribute), 1)
        << "one refusal is enough";
}

TEST_F(KmipClientTest, IdentifiersThatAreNoKeyIdsAreRefused) {
    kmip().next_id = "with space";
    expect_error(provider().create_kek("vm"), ErrorCode::Unsupported, "with space");
    kmip().next_id = std::string(256, 'x');
    expect_error(provider().create_kek("vm"), ErrorCode::Corrupt, "length");
}

TEST_P(KmipProviderTest, TestNamesItsStepsAndLeavesNoKey) {
    auto p = provider(GetParam());
    auto steps = p.test();
    std::vector<std::string> names;
    for (auto const& step : steps) {
        EXPECT_FALSE(step.failed) << step.name << ": " << step.text;
        EXPECT_GE(step.time, 0);
        names.push_back(step.name);
    }
    std::vector<std::string> wanted{"connect", "TLS", "versions", "query", "create"};
    if (GetParam())
        wanted.insert(wanted.end(), {"activate", "encrypt and decrypt"});
    else
        wanted.emplace_back("get");
    wanted.emplace_back("destroy");
    EXPECT_EQ(names, wanted);
    EXPECT_TRUE(kmip().keys.empty());
}

TEST_F(KmipClientTest, TestDestroysItsKeyAfterAFailureAndSaysWhatFailed) {
    kmip().unknown = {Operation::Get};
    auto p = provider();
    auto steps = p.test();
    ASSERT_EQ(steps.size(), 7U);
    EXPECT_TRUE(steps[5].failed);
    EXPECT_EQ(steps[6].name, "destroy");
    EXPECT_TRUE(kmip().keys.empty());
    server().up = false;
    auto q = provider();
    steps = q.test();
    ASSERT_EQ(steps.size(), 1U);
    EXPECT_TRUE(steps[0].failed);
    EXPECT_NE(steps[0].text.find("is down"), std::string::npos);
}

TEST(KmipEndpoint, TextForms) {
    struct Case {
        std::string_view text;
        std::string_view host;
        uint16_t port;
    };
    for (auto const& [text, host, port] :
         {Case{"kms.example.org:1234", "kms.example.org", 1234}, Case{"kms", "kms", 5696},
          Case{"10.0.0.1:1", "10.0.0.1", 1}, Case{"[::1]:65535", "::1", 65535},
          Case{"[fe80::1%eth0]", "fe80::1%eth0", 5696}}) {
        auto endpoint = Endpoint::parse(text);
        ASSERT_TRUE(endpoint) << text;
        EXPECT_EQ(endpoint->host, host);
        EXPECT_EQ(endpoint->port, port);
        EXPECT_EQ(Endpoint::parse(endpoint->to_string())->to_string(), endpoint->to_string());
    }
    for (std::string_view text : {"", ":1", "a:", "a:0", "a:65536", "a:1x", "a:-1", "::1", "[::1", "[]:1", "[::1]1",
                                  "-a:1", "a b:1", "a/b:1", "a\n:1"})
        expect_error(Endpoint::parse(text), ErrorCode::InvalidArgument, "endpoint");
    expect_error(Endpoint::parse(std::string(254, 'a')), ErrorCode::InvalidArgument, "endpoint");
}

TEST(KmipPin, TextForms) {
    std::string digits(64, 'a');
    EXPECT_EQ(*parse_pin(digits), ByteVector(32, std::byte{0xAA}));
    std::string colons = "AA";
    for (int i = 1; i < 32; ++i) colons += ":AA";
    EXPECT_EQ(*parse_pin(colons), ByteVector(32, std::byte{0xAA}));
    for (auto const& text : {std::string(), digits + "a", digits + "aa", digits.substr(2), digits.substr(1) + "g",
                             "z" + digits, digits + "zz", "a:" + digits.substr(1)})
        expect_error(parse_pin(text), ErrorCode::InvalidArgument, "SHA-256");
}

} // namespace
} // namespace coffer::kmip
