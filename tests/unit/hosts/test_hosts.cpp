// Hosts' identities, pinned certificates, and TLS between two of them.
#include <csignal>
#include <thread>

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "crypto/certificate.hpp"
#include "tests/support/temp_folder.hpp"
#include "vmm/migrate/host_identity.hpp"
#include "vmm/migrate/tcp.hpp"

namespace coffer::vmm::tests {
namespace {

using crypto::TlsChannel;

class HostsTest : public testing::Test {
protected:
    static void SetUpTestSuite() { std::signal(SIGPIPE, SIG_IGN); }

    HomeRoot root(std::string const& name) const {
        return {m_folder.path() / name, m_folder.path() / (name + "-state")};
    }
    HostTrust here() const { return HostTrust(root("here")); }
    HostTrust there() const { return HostTrust(root("there")); }
    std::filesystem::path identity_file() const { return root("here").state / ".host" / "identity"; }

    static std::function<Result<void>(crypto::Certificate const&, crypto::Digest const&)> only(HostTrust trust) {
        return [trust](crypto::Certificate const&, crypto::Digest const& fingerprint) -> Result<void> {
            TRY(trust.find(fingerprint));
            return {};
        };
    }
    struct Ends {
        Result<TlsChannel> client = make_error(ErrorCode::Internal, "not tried");
        Result<TlsChannel> server = make_error(ErrorCode::Internal, "not tried");
    };
    // `here` connects to `there`.
    Ends connect(HostIdentity const& client, HostIdentity const& server) const {
        std::array<int, 2> pair{};
        EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
        Ends ends;
        std::thread accepting([&] {
            ends.server = TlsChannel::accept(UniqueFd(pair[1]), {server.certificate, server.key, only(there())});
        });
        ends.client = TlsChannel::connect(UniqueFd(pair[0]), {client.certificate, client.key, only(here())});
        accepting.join();
        return ends;
    }
    // Two hosts that trust each other.
    Ends connect() const {
        auto client = *here().identity();
        auto server = *there().identity();
        EXPECT_TRUE(here().trust(server.certificate, "there"));
        EXPECT_TRUE(there().trust(client.certificate, "here"));
        return connect(client, server);
    }
    static HostIdentity with_dates(int64_t from, int64_t to) {
        auto key = *crypto::SigningKey::generate();
        crypto::CertificateContent content;
        content.public_key = *key.public_key();
        content.common_name = "dated";
        content.not_before = from;
        content.not_after = to;
        auto certificate = *crypto::issue_certificate(content, key, nullptr);
        return {std::move(certificate), std::move(key)};
    }

    coffer::tests::TempFolder m_folder;
};

TEST_F(HostsTest, TheIdentityIsMadeOnceAndIsTheOwnersAlone) {
    auto first = here().identity();
    ASSERT_TRUE(first) << first.error().message();
    auto again = here().identity();
    ASSERT_TRUE(again) << again.error().message();
    EXPECT_EQ(*first->certificate.to_der(), *again->certificate.to_der());
    EXPECT_TRUE(again->certificate.has_key(again->key));
    struct stat info {};
    ASSERT_EQ(::stat(identity_file().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600U);
    auto renewed = here().renew();
    ASSERT_TRUE(renewed);
    EXPECT_NE(*first->certificate.to_der(), *renewed->certificate.to_der());
    EXPECT_EQ(*here().identity()->certificate.to_der(), *renewed->certificate.to_der());
}

TEST_F(HostsTest, AnIdentityThatOthersMayReadIsRefused) {
    ASSERT_TRUE(here().identity());
    ::chmod(identity_file().c_str(), 0640);
    auto read = here().identity();
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code(), ErrorCode::Permission) << read.error().message();
}

TEST_F(HostsTest, EveryChangedByteOfAnIdentityIsNoticed) {
    ASSERT_TRUE(here().identity());
    auto const file = *read_file(identity_file(), 1 << 20);
    for (size_t at = 0; at < file.size(); ++at) {
        auto changed = file;
        changed[at] ^= std::byte{0x10};
        auto decoded = decode_identity(changed, "identity");
        ASSERT_FALSE(decoded) << "byte " << at;
        EXPECT_EQ(decoded.error().code(), ErrorCode::Integrity);
    }
    for (size_t size = 0; size < file.size(); ++size)
        ASSERT_FALSE(decode_identity(Bytes(file).first(size), "identity")) << "cut to " << size;
}

TEST_F(HostsTest, TrustIsByNameAndExactCertificate) {
    auto identity = *there().identity();
    auto host = here().trust(identity.certificate, "there");
    ASSERT_TRUE(host) << host.error().message();
    ASSERT_EQ(here().list()->size(), 1U);
    EXPECT_EQ(here().find(host->fingerprint)->name, "there");

    // Another certificate, be it of the same host, is another one.
    auto other = *there().renew();
    EXPECT_EQ(here().find(*crypto::fingerprint_of(other.certificate)).error().code(), ErrorCode::NotFound);
    EXPECT_EQ(here().trust(other.certificate, "there").error().code(), ErrorCode::AlreadyExists);
    ASSERT_TRUE(here().trust(other.certificate, "there now"));
    EXPECT_EQ(here().list()->size(), 2U);

    ASSERT_TRUE(here().untrust("there now"));
    ASSERT_TRUE(here().untrust(crypto::format_fingerprint(host->fingerprint)));
    EXPECT_TRUE(here().list()->empty());
    EXPECT_EQ(here().untrust("there").error().code(), ErrorCode::NotFound);
    EXPECT_EQ(here().trust(identity.certificate, "a\nline").error().code(), ErrorCode::InvalidArgument);
}

TEST_F(HostsTest, ADamagedPinIsNoticed) {
    auto identity = *there().identity();
    auto host = *here().trust(identity.certificate, "there");
    auto const peers = root("here").state / ".host" / "peers";
    auto const path = std::filesystem::directory_iterator(peers)->path();
    auto file = *read_file(path, 1 << 20);
    file[40] ^= std::byte{1};
    ASSERT_TRUE(replace_file(path, file));
    EXPECT_EQ(here().find(host.fingerprint).error().code(), ErrorCode::Integrity);
    // One host's pin under another's name is none.
    file[40] ^= std::byte{1};
    ASSERT_TRUE(replace_file(path, file));
    ASSERT_TRUE(here().find(host.fingerprint));
    auto other = *here().identity();
    auto const elsewhere = crypto::format_fingerprint(*crypto::fingerprint_of(other.certificate));
    std::string name;
    for (char c : elsewhere)
        if (c != ':') name += c;
    std::filesystem::copy(path, peers / name);
    EXPECT_EQ(here().find(*crypto::fingerprint_of(other.certificate)).error().code(), ErrorCode::Integrity);
}

TEST_F(HostsTest, TwoHostsThatTrustEachOtherTalk) {
    auto client = *here().identity();
    auto server = *there().identity();
    ASSERT_TRUE(here().trust(server.certificate, "there"));
    ASSERT_TRUE(there().trust(client.certificate, "here"));
    auto ends = connect(client, server);
    ASSERT_TRUE(ends.client) << ends.client.error().message();
    ASSERT_TRUE(ends.server) << ends.server.error().message();
    EXPECT_EQ(ends.client->peer().fingerprint, *crypto::fingerprint_of(server.certificate));
    EXPECT_EQ(ends.server->peer().fingerprint, *crypto::fingerprint_of(client.certificate));
    EXPECT_EQ(ends.client->describe().substr(0, 7), "TLSv1.3");
    auto const key = ends.client->export_key("label", 32);
    ASSERT_TRUE(key);
    EXPECT_EQ(*key, *ends.server->export_key("label", 32));
    EXPECT_NE(*key, *ends.server->export_key("another", 32));
    // Another connection has other keying material.
    auto more = connect(client, server);
    ASSERT_TRUE(more.client && more.server);
    EXPECT_NE(*key, *more.client->export_key("label", 32));
}

TEST_F(HostsTest, WhoeverIsNotTrustedIsRefused) {
    auto client = *here().identity();
    auto server = *there().identity();
    auto strangers = connect(client, server);
    ASSERT_FALSE(strangers.client);
    EXPECT_EQ(strangers.client.error().code(), ErrorCode::NotFound) << strangers.client.error().message();
    ASSERT_FALSE(strangers.server);
    EXPECT_EQ(strangers.server.error().code(), ErrorCode::Permission) << strangers.server.error().message();

    ASSERT_TRUE(here().trust(server.certificate, "there"));
    auto one_way = connect(client, server);
    ASSERT_FALSE(one_way.client);
    EXPECT_EQ(one_way.client.error().code(), ErrorCode::Permission) << one_way.client.error().message();
    ASSERT_FALSE(one_way.server);
    EXPECT_EQ(one_way.server.error().code(), ErrorCode::NotFound) << one_way.server.error().message();
}

TEST_F(HostsTest, DatesCount) {
    auto const now = wall_clock_seconds();
    auto server = *there().identity();
    ASSERT_TRUE(here().trust(server.certificate, "there"));
    auto past = with_dates(now - 200, now - 100);
    EXPECT_EQ(there().trust(past.certificate, "past").error().code(), ErrorCode::Permission);
    // This host does not even try with one of its own.
    EXPECT_EQ(connect(past, server).client.error().code(), ErrorCode::Permission);
    EXPECT_TRUE(crypto::check_dates(past.certificate, now - 150));
    EXPECT_FALSE(crypto::check_dates(past.certificate, now - 300));
}

TEST_F(HostsTest, WhatIsNoTlsIsRefused) {
    auto server = *there().identity();
    std::array<int, 2> pair{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
    UniqueFd other(pair[0]);
    ASSERT_TRUE(write_all(other.get(), as_bytes("GET / HTTP/1.1\r\nHost: there\r\n\r\n"), "socket"));
    auto channel = TlsChannel::accept(UniqueFd(pair[1]), {server.certificate, server.key, only(there())});
    ASSERT_FALSE(channel);
    EXPECT_EQ(channel.error().code(), ErrorCode::Corrupt) << channel.error().message();
}

TEST_F(HostsTest, ASilentClientTimesOut) {
    auto server = *there().identity();
    std::array<int, 2> pair{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
    UniqueFd other(pair[0]);
    auto channel =
        TlsChannel::accept(UniqueFd(pair[1]), {server.certificate, server.key, only(there()), 50 * k_ns_per_ms});
    ASSERT_FALSE(channel);
    EXPECT_EQ(channel.error().code(), ErrorCode::Timeout) << channel.error().message();
}

// Both ends send at once, more than any buffer holds, through pumps on both sides.
TEST_F(HostsTest, PumpsMoveAllBytesBothWays) {
    auto ends = connect();
    ASSERT_TRUE(ends.client && ends.server);
    std::array<std::array<int, 2>, 2> pairs{};
    for (auto& pair : pairs) ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
    auto forever = [] { return true; };
    std::array<std::optional<Result<void>>, 2> pumped;
    std::thread first([&] { pumped[0] = ends.client->pump(pairs[0][1], forever); });
    std::thread second([&] { pumped[1] = ends.server->pump(pairs[1][1], forever); });

    constexpr size_t k_size = size_t{8} << 20;
    auto content = [](unsigned seed) {
        ByteVector bytes(k_size);
        for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(seed * 31 + i * 7 + i / 4096);
        return bytes;
    };
    std::array<std::thread, 4> threads;
    std::array<ByteVector, 2> received;
    for (size_t end : {size_t{0}, size_t{1}}) {
        threads[end] = std::thread([&, end] {
            EXPECT_TRUE(write_all(pairs[end][0], content(static_cast<unsigned>(end)), "socket"));
            ::shutdown(pairs[end][0], SHUT_WR);
        });
        threads[2 + end] = std::thread([&, end] {
            ByteVector chunk(65536);
            for (;;) {
                auto const got = ::recv(pairs[end][0], chunk.data(), chunk.size(), 0);
                if (got <= 0) break;
                append(received[end], Bytes(chunk).first(static_cast<size_t>(got)));
            }
        });
    }
    for (auto& thread : threads) thread.join();
    first.join();
    second.join();
    EXPECT_TRUE(received[0] == content(1));
    EXPECT_TRUE(received[1] == content(0));
    for (auto& result : pumped) EXPECT_TRUE(*result) << result->error().message();
    for (auto& pair : pairs)
        for (int fd : pair) ::close(fd);
}

TEST_F(HostsTest, APumpIsGivenUp) {
    auto ends = connect();
    ASSERT_TRUE(ends.client && ends.server);
    std::array<int, 2> pair{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
    UniqueFd near(pair[0]);
    UniqueFd far(pair[1]);
    int asked = 0;
    auto pumped = ends.client->pump(far.get(), [&] { return ++asked < 3; });
    ASSERT_FALSE(pumped);
    EXPECT_EQ(pumped.error().code(), ErrorCode::Cancelled);
    // The other end is lost, without a word.
    ends.client = make_error(ErrorCode::Cancelled, "gone");
    auto lost = ends.server->pump(near.get(), [] { return true; });
    ASSERT_FALSE(lost);
    EXPECT_EQ(lost.error().code(), ErrorCode::Io) << lost.error().message();
}

TEST(TcpPlaces, AreParsed) {
    EXPECT_EQ(TcpPlace::parse("host:123")->to_string(), "host:123");
    EXPECT_EQ(TcpPlace::parse("[::1]:9")->host, "::1");
    EXPECT_EQ(TcpPlace::parse("[::1]:9")->to_string(), "[::1]:9");
    for (auto const* bad : {"", "host", ":1", "host:", "host:65536", "host:-1", "::1:9", "[]:1", "host:1x"})
        EXPECT_FALSE(TcpPlace::parse(bad)) << bad;
}

TEST(TcpPlaces, ConnectAndListen) {
    auto listener = listen_tcp({"127.0.0.1", 0});
    ASSERT_TRUE(listener) << listener.error().message();
    auto place = *local_place(listener->get());
    EXPECT_EQ(listen_tcp(place).error().code(), ErrorCode::Busy);
    auto socket = connect_tcp(place, 5 * k_ns_per_s);
    ASSERT_TRUE(socket) << socket.error().message();
    auto accepted = accept_tcp(listener->get(), 5 * k_ns_per_s);
    ASSERT_TRUE(accepted) << accepted.error().message();
    EXPECT_EQ(accepted->from.substr(0, 10), "127.0.0.1:");
    EXPECT_EQ(accept_tcp(listener->get(), k_ns_per_ms).error().code(), ErrorCode::Timeout);
    listener->reset();
    EXPECT_EQ(connect_tcp(place, 5 * k_ns_per_s).error().code(), ErrorCode::Io);
}

} // namespace
} // namespace coffer::vmm::tests
