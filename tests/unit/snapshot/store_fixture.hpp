// A home with a disk of its own, and saved machines for it.
#pragma once

#include "tests/unit/snapshot/image_fixture.hpp"
#include "vmm/snapshot/machine_state.hpp"
#include "vmm/snapshot/snapshot_store.hpp"

namespace coffer::vmm::tests {

// All of a VM that a snapshot keeps.
struct VmContent {
    ByteVector nvram;
    ByteVector tpm;
    ByteVector disk;

    bool operator==(VmContent const&) const = default;
};

class StoreTest : public ImageTest {
protected:
    void SetUp() override {
        m_config.disks = {{disk().native(), false, DiskProtection::None, {}}};
        HomeTest::SetUp();
        std::filesystem::create_directories(disk().parent_path());
        put(disk(), m_disk);
        m_memory.assign(size_t{160} << 10, std::byte{0x3C});
    }
    std::filesystem::path disk() const { return m_folder.path() / "root" / "disk.img"; }

    // What the VM would find on its disk, whichever files it is in.
    static ByteVector disk_now(HomeSession& home) {
        auto image = open_layered(home, home.config().disks[0]);
        EXPECT_TRUE(image) << image.error().message();
        if (!image) return {};
        ByteVector content((*image)->size());
        EXPECT_TRUE((*image)->read(0, content));
        return content;
    }
    static void write_disk(HomeSession& home, ByteVector const& content) {
        auto image = open_layered(home, home.config().disks[0]);
        ASSERT_TRUE(image) << image.error().message();
        ASSERT_TRUE((*image)->write(0, content));
        ASSERT_TRUE((*image)->flush());
    }
    VmContent content_now(HomeSession& home) const {
        auto nvram = home.load(HomeFile::Nvram);
        auto tpm = home.load(HomeFile::Tpm);
        EXPECT_TRUE(nvram && tpm);
        return {*nvram, *tpm, disk_now(home)};
    }
    VmContent first() const { return {m_nvram, m_tpm, m_disk}; }
    static VmContent later() {
        return {ByteVector(10'000, std::byte{0x11}), bytes_of("TPM state, later"), ByteVector(8192, std::byte{0x22})};
    }
    void change(HomeSession& home, VmContent const& to) {
        ASSERT_TRUE(home.commit(HomeFile::Nvram, to.nvram));
        ASSERT_TRUE(home.commit(HomeFile::Tpm, to.tpm));
        write_disk(home, to.disk);
    }
    MachineSource machine(ByteVector const& tpm) const {
        MachineState state;
        state.backend = "soft";
        state.tpm_permanent = tpm;
        return {encode_machine_state(state), {Bytes(m_memory)}};
    }
    std::unique_ptr<HomeSession> open_or_fail() const {
        auto home = m_host.open("vm");
        EXPECT_TRUE(home) << home.error().message();
        return home ? std::move(*home) : nullptr;
    }
    // Names of files in the home's folder that belong to snapshots.
    std::vector<std::string> snapshot_files() const {
        std::vector<std::string> names;
        for (auto const& entry : std::filesystem::directory_iterator(m_host.location("vm").folder())) {
            auto name = entry.path().filename().native();
            if (name.starts_with("snapshot-") || name.starts_with("saved-") || name.starts_with("overlay-"))
                names.push_back(name);
        }
        return names;
    }

    ByteVector m_disk = ByteVector(8192, std::byte{0x77});
    ByteVector m_memory;
    ImageOptions m_alone{.threads = 1}; // no threads: traced children
};

} // namespace coffer::vmm::tests
