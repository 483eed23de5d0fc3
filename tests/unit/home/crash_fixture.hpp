// A home that can be put back to what it was, for tests that stop the process at every system call that writes.
#pragma once

#include "tests/support/saved_folder.hpp"
#include "tests/support/syscall_tracer.hpp"
#include "tests/unit/home/home_fixture.hpp"

namespace coffer::vmm::tests {

using coffer::tests::Fault;
using coffer::tests::PlannedFault;
using coffer::tests::run_traced;

constexpr unsigned k_most_writes = 400; // no operation comes near; a loop that does not end fails

class HomeCrash : public HomeTest {
protected:
    void SetUp() override {
        HomeTest::SetUp();
        m_saved.save();
    }
    // The folders as they were after SetUp.
    void rewind() { m_saved.rewind(); }
    // What the home's TPM state is, after a crash, when the home is opened by two processes one after the other.
    ByteVector reopened_tpm() {
        ByteVector first;
        {
            auto home = m_host.open("vm");
            EXPECT_TRUE(home) << home.error().message();
            if (!home) return {};
            EXPECT_EQ(*(*home)->load(HomeFile::Nvram), m_nvram);
            first = *(*home)->load(HomeFile::Tpm);
        }
        auto home = m_host.open("vm");
        EXPECT_TRUE(home) << home.error().message();
        if (home) {
            EXPECT_EQ(*(*home)->load(HomeFile::Tpm), first);
        }
        return first;
    }
    // Opens, commits `texts` one after the other as TPM state, and gives how many of the last commits succeeded in a
    // row; 100 where the home does not open.
    int commit_all(std::vector<std::string> const& texts) {
        auto home = m_host.open("vm");
        if (!home) return 100;
        int row = 0;
        for (auto const& text : texts) row = (*home)->commit(HomeFile::Tpm, as_bytes(text)) ? row + 1 : 0;
        return row;
    }

    coffer::tests::SavedFolder m_saved{m_folder.path(), {"root", "state"}};
    coffer::tests::TempFolder m_beside; // what rewind() leaves alone
};

} // namespace coffer::vmm::tests
