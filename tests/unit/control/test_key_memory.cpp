// This process's own memory, searched for keys: they are there while they are in use, and nowhere afterwards.
#include <cstdio>
#include <fstream>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "tests/unit/control/control_fixture.hpp"
#include "tests/unit/home/home_fixture.hpp"
#include "vmm/home/key_bundle.hpp"
#include "vmm/home/process_hygiene.hpp"

namespace coffer::vmm {
namespace {

// A key that this test knows without holding it: the search must not find the needle itself.
class Masked {
public:
    static Masked of(Bytes key) {
        Masked masked;
        for (std::byte byte : key) masked.m_bytes.push_back(byte ^ k_mask);
        return masked;
    }
    template <class Key>
    Key key() const {
        crypto::SecretBytes bytes(m_bytes.size());
        for (size_t i = 0; i < m_bytes.size(); ++i) bytes.expose_mutable()[i] = m_bytes[i] ^ k_mask;
        return std::move(*Key::adopt(std::move(bytes)));
    }
    bool is_in(Bytes memory) const {
        auto const first = std::to_integer<int>(m_bytes[0] ^ k_mask);
        for (auto rest = memory; rest.size() >= m_bytes.size();) {
            auto const* hit = std::memchr(rest.data(), first, rest.size() - m_bytes.size() + 1);
            if (!hit) return false;
            rest = rest.subspan(static_cast<size_t>(static_cast<std::byte const*>(hit) - rest.data()));
            size_t same = 0;
            while (same < m_bytes.size() && rest[same] == (m_bytes[same] ^ k_mask)) ++same;
            if (same == m_bytes.size()) return true;
            rest = rest.subspan(1);
        }
        return false;
    }
    // The half that a cipher takes for one of two AES keys.
    Masked half(size_t which) const {
        Masked masked;
        auto const size = m_bytes.size() / 2;
        auto const from = m_bytes.begin() + static_cast<ptrdiff_t>(which * size);
        masked.m_bytes.assign(from, from + static_cast<ptrdiff_t>(size));
        return masked;
    }

private:
    static constexpr std::byte k_mask{0xA5};
    ByteVector m_bytes;
};

// How many places of this process's memory hold the key, but for the search's own buffer, which is wiped.
unsigned places_of(Masked const& key) {
    constexpr size_t k_step = size_t{1} << 20;
    constexpr size_t k_overlap = 64;
    auto* buffer = static_cast<std::byte*>(
        ::mmap(nullptr, k_step + k_overlap, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(buffer, MAP_FAILED);
    auto memory = open_file("/proc/self/mem", O_RDONLY);
    EXPECT_TRUE(memory);
    std::ifstream maps("/proc/self/maps");
    std::string line;
    unsigned places = 0;
    size_t total = 0;
    while (std::getline(maps, line)) {
        unsigned long first = 0;
        unsigned long end = 0;
        char readable = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx %c", &first, &end, &readable) != 3 || readable != 'r') continue;
        // SAFETY: the address as a number.
        auto const own = reinterpret_cast<uintptr_t>(buffer);
        for (auto at = first; at < end; at += k_step) {
            // The kernel puts neighbouring mappings into one line, so the buffer is looked for in each step.
            size_t size = std::min<size_t>(k_step + k_overlap, end - at);
            if (at < own + k_step + k_overlap && own < at + size) continue;
            auto const count = ::pread(memory->get(), buffer, size, static_cast<off_t>(at));
            if (count <= 0) continue;
            total += static_cast<size_t>(count);
            if (key.is_in({buffer, static_cast<size_t>(count)})) ++places;
        }
    }
    ::explicit_bzero(buffer, k_step + k_overlap);
    ::munmap(buffer, k_step + k_overlap);
    EXPECT_GT(total, size_t{1} << 20);
    return places;
}

class KeyMemory : public control::tests::ControlTest {
protected:
    void SetUp() override {
        ControlTest::SetUp();
        std::filesystem::remove(m_location.folder());
        auto key = *crypto::BundleKey::random();
        m_bundle = Masked::of(key.expose());
        HomeSeal seal{*crypto::random_uuid(), *KeyId::parse("1/k"), {tests::bytes_of("wrapped")}, std::move(key)};
        ASSERT_TRUE(create_home(m_location, tests::make_config("vm"), ByteVector(10'000), std::move(seal)));
        auto file = read_file(m_location.folder() / "keys", 1 << 16);
        ASSERT_TRUE(file);
        auto parsed = parse_bundle(*file, "keys");
        ASSERT_TRUE(parsed);
        auto content = open_bundle(*parsed, m_bundle->key<crypto::BundleKey>(), "keys");
        ASSERT_TRUE(content);
        m_dek = Masked::of(content->keys.at(0).key.expose());
    }
    void expect_places(bool some) const {
        for (auto const& key : {*m_bundle, *m_dek, m_dek->half(0), m_dek->half(1)}) EXPECT_EQ(places_of(key) > 0, some);
    }

    std::optional<Masked> m_bundle;
    std::optional<Masked> m_dek;
};

TEST_F(KeyMemory, AHomesKeysAreGoneWhenItIsClosed) {
    expect_places(false);
    {
        auto home = open_home(m_location, HomeAccess::Writer, [&](BundleHeader const&) -> Result<crypto::BundleKey> {
            return m_bundle->key<crypto::BundleKey>();
        });
        ASSERT_TRUE(home) << home.error().message();
        ASSERT_TRUE((*home)->load(HomeFile::Nvram));
        ASSERT_TRUE((*home)->commit(HomeFile::Tpm, as_bytes("state")));
        auto sealed = (*home)->seal("label", as_bytes("content"));
        ASSERT_TRUE(sealed);
        ASSERT_TRUE((*home)->open_sealed("label", *sealed));
        expect_places(true);
    }
    expect_places(false);
}

TEST_F(KeyMemory, AKeyThatWentOverTheControlSocketIsGone) {
    make_server();
    unsigned meanwhile = 0;
    m_server->on<control::RekeyRequest>(
        [&](control::RekeyRequest const& request, control::Conversation& with) -> Result<control::NoAnswer> {
            auto seal = TRY(control::seal_of(request, with.take_key()));
            meanwhile = places_of(*m_bundle);
            return control::NoAnswer{};
        });
    m_server->start();
    {
        auto client = control::Client::connect(m_location);
        ASSERT_TRUE(client);
        auto key = m_bundle->key<crypto::BundleKey>();
        control::RekeyRequest request{*crypto::random_uuid(), "1/k", tests::bytes_of("wrapped")};
        ASSERT_TRUE(client->call(request, {.key = &key}));
    }
    EXPECT_GT(meanwhile, 0U);
    m_server->stop();
    EXPECT_EQ(places_of(*m_bundle), 0U);
}

TEST_F(KeyMemory, ProcessesLeaveNoCore) {
    pid_t const child = ::fork();
    if (child == 0) {
        if (!forbid_dumps()) ::_exit(1);
        rlimit limit{1, 1};
        if (::getrlimit(RLIMIT_CORE, &limit) != 0 || limit.rlim_cur != 0 || limit.rlim_max != 0) ::_exit(2);
        if (::prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 0) ::_exit(3);
        ::_exit(::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? 0 : 4);
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
}

} // namespace
} // namespace coffer::vmm
