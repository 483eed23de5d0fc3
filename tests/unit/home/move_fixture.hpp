// A home that can move to another root, in which its key provider is.
#pragma once

#include <algorithm>

#include "keyprovider/registry.hpp"
#include "tests/unit/home/crash_fixture.hpp"
#include "vmm/home/home_lock.hpp"
#include "vmm/home/home_move.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::vmm::tests {

namespace fs = std::filesystem;

class HomeMove : public HomeCrash {
protected:
    // A native provider in both roots, the same, and a home of it in the first.
    void SetUp() override {
        ProviderRegistry const providers(m_host.root().providers());
        auto provider = providers.add_native("p", nullptr);
        ASSERT_TRUE(provider) << provider.error().message();
        fs::create_directories(m_there.root);
        fs::copy(m_host.root().providers(), m_there.providers(), fs::copy_options::recursive);
        auto seal = m_host.seal();
        seal.provider = provider->id;
        ASSERT_TRUE(create_home(m_host.location("vm"), m_config, m_nvram, std::move(seal)));
        {
            auto home = m_host.open("vm");
            ASSERT_TRUE(home) << home.error().message();
            ASSERT_TRUE((*home)->commit(HomeFile::Tpm, m_tpm));
            add_image(**home, "snapshot-1", ByteVector(image_size(), std::byte{7}));
        }
        m_all.save();
    }
    virtual size_t image_size() const { return 200'000; }
    void put_back() { m_all.rewind(); }
    Result<void> move() const {
        return move_home(m_host.location("vm"), m_there, [](uint64_t, uint64_t) -> Result<void> { return {}; });
    }
    HomeLocation there() const { return {m_there, "vm"}; }
    Result<std::unique_ptr<HomeSession>> open(HomeLocation const& location) const {
        return open_home(location, HomeAccess::Writer,
                         [&](BundleHeader const&) -> Result<crypto::BundleKey> { return copy_of(m_host.key()); });
    }
    static bool has_content(HomeSession& home, ByteVector const& tpm) {
        auto found = home.load(HomeFile::Tpm);
        return found && *found == tpm && home.open_image("snapshot-1").has_value();
    }
    static int number_of(HomeSession& home, std::vector<ByteVector> const& states) {
        auto found = home.load(HomeFile::Tpm);
        if (!found || !home.open_image("snapshot-1")) return -1;
        auto const at = std::ranges::find(states, *found);
        return at == states.end() ? -1 : static_cast<int>(at - states.begin());
    }
    // Nothing of it is left in the first root.
    void expect_gone_here() const {
        EXPECT_FALSE(fs::exists(m_host.location("vm").folder()));
        EXPECT_FALSE(fs::exists(m_host.location("vm").host_record()));
        for (auto const& entry : fs::directory_iterator(m_host.root().vms())) ADD_FAILURE() << entry.path();
        for (auto const& state : {m_host.root().state, m_there.state}) {
            if (!fs::exists(state / ".migrations")) continue;
            for (auto const& entry : fs::directory_iterator(state / ".migrations"))
                EXPECT_TRUE(entry.path().filename() == "lock" || entry.path().filename() == "moved-vm") << entry.path();
        }
    }

    coffer::tests::SavedFolder m_all{m_folder.path()};
    HomeRoot m_there{m_folder.path() / "there", m_folder.path() / "there-state"};
};

} // namespace coffer::vmm::tests
