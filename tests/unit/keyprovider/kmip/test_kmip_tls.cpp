// TLS to a server on loopback: which certificates are accepted, and that no fault of the server's takes longer than
// the time limits.
#include <csignal>
#include <fstream>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.hpp"
#include "keyprovider/kmip/kmip_config.hpp"
#include "keyprovider/registry.hpp"
#include "tests/support/temp_folder.hpp"
#include "tests/unit/keyprovider/kmip/tls_server.hpp"

namespace coffer::kmip {
namespace {

using tests::CertificateWish;
using tests::Fault;
using tests::Identity;
using tests::make_certificate;
using tests::TlsServer;

constexpr char const* k_names = "DNS:kms.test,IP:127.0.0.1";

// Quick, so that waiting for them takes a test no time to speak of; long enough for a busy machine where it matters.
Limits quick() {
    Limits limits;
    limits.connect = 4 * k_ns_per_s;
    limits.exchange = 300 * k_ns_per_ms;
    return limits;
}

class KmipTls : public testing::Test {
protected:
    static void SetUpTestSuite() {
        std::signal(SIGPIPE, SIG_IGN);
        s_authority = new Identity(make_certificate({"authority", "", ""}, nullptr));
        s_client = new Identity(make_certificate({"client", "", "clientAuth"}, s_authority));
    }
    static void TearDownTestSuite() {
        delete s_authority;
        delete s_client;
    }

    static CertificateWish server_wish() { return {"server", k_names, "serverAuth"}; }
    void start(CertificateWish const& wish, Identity const* issuer = nullptr, int max_version = TLS1_3_VERSION) {
        m_identity = make_certificate(wish, issuer ? issuer : s_authority);
        m_server = std::make_unique<TlsServer>(m_identity, *s_authority, max_version);
        m_host = "127.0.0.1";
    }
    TlsIdentity identity() const {
        return {s_authority->certificate_pem(), s_client->certificate_pem(),
                crypto::SecretBytes::copy_of(as_bytes(s_client->key_pem())), std::nullopt};
    }
    KmipClient client(TlsIdentity const& own, Limits limits = {}) {
        auto connector = make_tls_connector(own, [](std::string const& host) -> Result<std::vector<std::string>> {
            if (host == "kms.test" || host == "other.test") return std::vector<std::string>{"127.0.0.1"};
            return make_error(ErrorCode::KeyUnavailable, "{} has no address", host);
        });
        EXPECT_TRUE(connector) << connector.error().message();
        return KmipClient(Cluster({{m_host, m_server->port()}}, std::nullopt, std::move(*connector), limits));
    }
    KmipClient client(Limits limits = {}) { return client(identity(), limits); }

    void refused(KmipClient client, std::string_view word) {
        auto id = client.create();
        ASSERT_FALSE(id) << word;
        EXPECT_EQ(id.error().code(), ErrorCode::KeyUnavailable);
        EXPECT_NE(id.error().message().find(word), std::string::npos) << id.error().message();
        EXPECT_TRUE(m_server->kmip().seen.empty()) << "a request went out all the same";
    }

    static Identity* s_authority;
    static Identity* s_client;
    Identity m_identity;
    std::unique_ptr<TlsServer> m_server;
    std::string m_host;
};
Identity* KmipTls::s_authority = nullptr;
Identity* KmipTls::s_client = nullptr;

TEST_F(KmipTls, ConnectsByAddressAndByName) {
    start(server_wish());
    for (auto const* host : {"127.0.0.1", "kms.test"}) {
        m_host = host;
        auto c = client();
        auto id = c.create();
        ASSERT_TRUE(id) << id.error().message();
        ASSERT_TRUE(c.get(*id));
        EXPECT_EQ(c.cluster().report().address, "127.0.0.1");
        EXPECT_NE(c.cluster().report().protocol.find("TLSv1.3"), std::string::npos);
    }
    EXPECT_EQ(m_server->connections, 2);
}

TEST_F(KmipTls, SpeaksTls12ButNothingOlder) {
    start(server_wish(), nullptr, TLS1_2_VERSION);
    auto c = client();
    ASSERT_TRUE(c.create());
    EXPECT_NE(c.cluster().report().protocol.find("TLSv1.2"), std::string::npos);
    start(server_wish(), nullptr, TLS1_1_VERSION);
    refused(client(), "TLS");
}

TEST_F(KmipTls, ExpiredAndFutureCertificatesAreRefused) {
    auto wish = server_wish();
    wish.begins = -7200;
    wish.ends = -3600;
    start(wish);
    refused(client(), "expired");
    wish.begins = 3600;
    wish.ends = 7200;
    start(wish);
    refused(client(), "not yet valid");
}

TEST_F(KmipTls, CertificatesOfOtherNamesAreRefused) {
    auto wish = server_wish();
    wish.subject_alternative_name = "DNS:kms.test";
    start(wish);
    refused(client(), "IP address mismatch");
    m_host = "other.test";
    refused(client(), "hostname mismatch");
    m_host = "kms.test";
    EXPECT_TRUE(client().create());
}

TEST_F(KmipTls, CertificatesOfOtherAuthoritiesAndForOtherUsesAreRefused) {
    auto other = make_certificate({"authority", "", ""}, nullptr); // the same name
    start(server_wish(), &other);
    refused(client(), "certificate");
    auto self_signed = make_certificate(server_wish(), nullptr);
    m_server = std::make_unique<TlsServer>(self_signed, *s_authority);
    refused(client(), "self-signed");
    auto wish = server_wish();
    wish.usage = "clientAuth";
    start(wish);
    refused(client(), "purpose");
    // A leaf must not sign for others.
    start(server_wish(), s_client);
    refused(client(), "certificate");
}

TEST_F(KmipTls, PinNarrowsAndNeverWidens) {
    start(server_wish());
    auto own = identity();
    own.pin = m_identity.fingerprint();
    EXPECT_TRUE(client(own).create());
    (*own.pin)[0] ^= std::byte{1};
    m_server->kmip().seen.clear();
    refused(client(own), "pinned");
    auto wish = server_wish();
    wish.ends = -1;
    start(wish);
    own.pin = m_identity.fingerprint();
    refused(client(own), "expired");
}

TEST_F(KmipTls, ClientWithoutTheRightCertificateGetsNothing) {
    start(server_wish());
    auto other = make_certificate({"other authority", "", ""}, nullptr);
    auto stranger = make_certificate({"client", "", "clientAuth"}, &other);
    TlsIdentity own{s_authority->certificate_pem(), stranger.certificate_pem(),
                    crypto::SecretBytes::copy_of(as_bytes(stranger.key_pem())), std::nullopt};
    refused(client(own), "failed while");
}

TEST_F(KmipTls, FaultsEndWithinTheLimitsAndAreNamed) {
    start(server_wish());
    struct Case {
        Fault fault;
        std::string_view word;
    };
    for (auto [fault, word] : {Case{Fault::Stall, "time limit"},
                               {Fault::Cut, "failed while"},
                               {Fault::Drip, "time limit"},
                               {Fault::Oversize, "1073741832 bytes"},
                               {Fault::NotKmip, "no KMIP message"},
                               {Fault::DeepNesting, "too deeply"}}) {
        SCOPED_TRACE(word);
        auto c = client(quick());
        m_server->fault = Fault::None;
        auto warm = c.create();
        ASSERT_TRUE(warm) << warm.error().message();
        m_server->fault = fault;
        auto const begun = monotonic_now();
        auto id = c.create();
        ASSERT_FALSE(id);
        EXPECT_EQ(id.error().code(), ErrorCode::KeyUnavailable);
        EXPECT_NE(id.error().message().find(word), std::string::npos) << id.error().message();
        EXPECT_LT(monotonic_now() - begun, 10 * k_ns_per_s);
        // And it goes on once the server does.
        m_server->fault = Fault::None;
        EXPECT_TRUE(c.create());
    }
}

TEST_F(KmipTls, StalledHandshakeEndsWithinTheLimit) {
    start(server_wish());
    m_server->fault = Fault::StallHandshake;
    auto limits = quick();
    limits.connect = 300 * k_ns_per_ms;
    refused(client(limits), "time limit while setting up TLS");
}

TEST_F(KmipTls, ConnectionThatTheServerClosedIsOpenedAgain) {
    start(server_wish());
    auto c = client();
    ASSERT_TRUE(c.create());
    m_server->fault = Fault::CloseAfterAnswer;
    ASSERT_TRUE(c.create());
    ASSERT_TRUE(c.create());
    // A fresh connection is negotiated on only where the version is not known, so every one carries a request.
    ASSERT_TRUE(c.create());
    // The server looks at its fault when it has answered: it may have found it behind the first answer already.
    EXPECT_GE(m_server->connections, 3);
    EXPECT_LE(m_server->connections, 4);
}

TEST_F(KmipTls, NothingListens) {
    start(server_wish());
    auto c = client();
    m_server.reset();
    auto id = c.create();
    ASSERT_FALSE(id);
    EXPECT_EQ(id.error().code(), ErrorCode::KeyUnavailable);
    EXPECT_NE(id.error().message().find("Connection refused"), std::string::npos) << id.error().message();
}

TEST_F(KmipTls, UnusableIdentitiesAreRefusedAtOnce) {
    auto broken = [&](auto change, std::string_view word) {
        auto own = identity();
        change(own);
        auto checked = check_identity(own);
        ASSERT_FALSE(checked) << word;
        EXPECT_EQ(checked.error().code(), ErrorCode::InvalidArgument);
        EXPECT_NE(checked.error().message().find(word), std::string::npos) << checked.error().message();
    };
    broken([](auto& own) { own.authorities.clear(); }, "--ca");
    broken([](auto& own) { own.authorities = "no PEM"; }, "--ca");
    broken([](auto& own) { own.certificate = own.certificate.substr(0, 200); }, "--cert");
    broken([](auto& own) { own.key = crypto::SecretBytes::copy_of(as_bytes("no key")); }, "--key");
    broken([&](auto& own) { own.key = crypto::SecretBytes::copy_of(as_bytes(s_authority->key_pem())); }, "--key");
    EXPECT_TRUE(check_identity(identity()));
}

class KmipRegistry : public KmipTls {
protected:
    KmipConfig config() {
        KmipConfig made;
        made.endpoints = {fmt::format("127.0.0.1:{}", m_server->port())};
        made.authorities = s_authority->certificate_pem();
        made.certificate = s_client->certificate_pem();
        return made;
    }
    static crypto::SecretBytes key() { return crypto::SecretBytes::copy_of(as_bytes(s_client->key_pem())); }
    static Result<crypto::SecretBytes> no_passphrase(std::string_view) {
        return make_error(ErrorCode::Internal, "a KMIP provider has no passphrase");
    }

    coffer::tests::TempFolder m_folder;
    ProviderRegistry m_registry{m_folder.path() / "providers"};
};

TEST_F(KmipRegistry, StoresOpensAndRemoves) {
    start(server_wish());
    auto info = m_registry.add_kmip("cluster", config(), key());
    ASSERT_TRUE(info) << info.error().message();
    EXPECT_EQ(info->kind, ProviderKind::Kmip);
    EXPECT_FALSE(info->keys_on_disk());
    auto folder = m_folder.path() / "providers" / info->id.to_string();
    for (auto const& entry : std::filesystem::directory_iterator(folder))
        EXPECT_EQ(entry.status().permissions(), std::filesystem::perms{0600}) << entry.path();
    auto provider = m_registry.open(info->id, no_passphrase);
    ASSERT_TRUE(provider) << provider.error().message();
    auto kek = (*provider)->create_kek("vm");
    ASSERT_TRUE(kek) << kek.error().message();
    auto bundle = crypto::BundleKey::random();
    auto wrapped = (*provider)->wrap(*kek, *bundle);
    ASSERT_TRUE(wrapped);
    provider = m_registry.open(info->id, no_passphrase);
    EXPECT_TRUE(std::ranges::equal((*provider)->unwrap(*kek, *wrapped)->expose(), bundle->expose()));

    EXPECT_EQ(*m_registry.default_provider(), std::nullopt);
    ASSERT_TRUE(m_registry.set_default(info->id));
    EXPECT_EQ(*m_registry.default_provider(), info->id);
    EXPECT_FALSE(m_registry.add_kmip("cluster", config(), key()));
    ASSERT_TRUE(m_registry.remove(info->id));
    EXPECT_EQ(*m_registry.default_provider(), std::nullopt);
    EXPECT_TRUE(m_registry.list()->empty());
    EXPECT_FALSE(std::filesystem::exists(folder));
    EXPECT_EQ(m_registry.open(info->id, no_passphrase).error().code(), ErrorCode::KeyUnavailable);
    EXPECT_FALSE(m_registry.set_default(info->id));
}

TEST_F(KmipRegistry, ChangedAndOpenFilesAreRefused) {
    start(server_wish());
    auto info = m_registry.add_kmip("cluster", config(), key());
    ASSERT_TRUE(info);
    auto folder = m_folder.path() / "providers" / info->id.to_string();
    auto original = read_file(folder / "kmip", 1 << 20);
    for (size_t i = 0; i < original->size(); i += 37) {
        auto changed = *original;
        changed[i] ^= std::byte{4};
        ASSERT_TRUE(replace_file(folder / "kmip", changed));
        auto opened = m_registry.open(info->id, no_passphrase);
        ASSERT_FALSE(opened) << i;
        EXPECT_EQ(opened.error().code(), ErrorCode::Integrity) << opened.error().message();
    }
    ASSERT_TRUE(replace_file(folder / "kmip", *original));
    ASSERT_TRUE(m_registry.open(info->id, no_passphrase));
    ASSERT_EQ(::chmod((folder / "client.key").c_str(), 0640), 0);
    EXPECT_EQ(m_registry.open(info->id, no_passphrase).error().code(), ErrorCode::Permission);
    std::filesystem::remove(folder / "client.key");
    EXPECT_EQ(m_registry.open(info->id, no_passphrase).error().code(), ErrorCode::KeyUnavailable);
    std::filesystem::remove(folder / "kmip");
    EXPECT_EQ(m_registry.open(info->id, no_passphrase).error().code(), ErrorCode::KeyUnavailable);
}

TEST_F(KmipRegistry, UnusableConfigurationsLeaveNothing) {
    start(server_wish());
    std::vector<std::function<void(KmipConfig&)>> changes = {
        [](auto& c) { c.endpoints.clear(); },
        [](auto& c) { c.endpoints.resize(KmipConfig::k_max_endpoints + 1, "a:1"); },
        [](auto& c) { c.endpoints.push_back("a b"); },
        [](auto& c) { c.major = 3; },
        [](auto& c) { c.pin = ByteVector(31); },
        [](auto& c) { c.certificate = "x"; },
    };
    for (auto const& change : changes) {
        auto made = config();
        change(made);
        auto info = m_registry.add_kmip("cluster", made, key());
        ASSERT_FALSE(info);
        EXPECT_EQ(info.error().code(), ErrorCode::InvalidArgument) << info.error().message();
    }
    EXPECT_TRUE(std::filesystem::is_empty(m_folder.path() / "providers"));
}

} // namespace
} // namespace coffer::kmip
