#include "vmm/machine/host_memory.hpp"

#include <fstream>
#include <functional>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/temp_folder.hpp"
#include "vmm/memory/guest_ram.hpp"

namespace coffer::vmm {
namespace {

namespace fs = std::filesystem;

// A sysfs of its own, in which the device of this test's folder is whatever the test wants.
class Swap : public testing::Test {
protected:
    void SetUp() override {
        fs::create_directories(m_folder.path() / "dev");
        fs::create_directories(m_folder.path() / "block");
        std::ofstream(m_folder.path() / "swap file");
    }
    fs::path make_device(std::string const& name, std::string const& uuid = {}) {
        auto folder = m_folder.path() / "block" / name;
        fs::create_directories(folder / "slaves");
        if (!uuid.empty()) {
            fs::create_directories(folder / "dm");
            std::ofstream(folder / "dm" / "uuid") << uuid << "\n";
        }
        return folder;
    }
    void stack(fs::path const& above, fs::path const& below) {
        fs::create_directory_symlink(below, above / "slaves" / below.filename());
    }
    // What is reported where swap is a file on that device.
    std::vector<std::string> reported(fs::path const& device) {
        struct stat info {};
        EXPECT_EQ(::stat((m_folder.path() / "swap file").c_str(), &info), 0);
        auto link = m_folder.path() / "dev" / fmt::format("{}:{}", major(info.st_dev), minor(info.st_dev));
        fs::remove(link);
        if (!device.empty()) fs::create_directory_symlink(device, link);
        std::ofstream(m_folder.path() / "swaps")
            << "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
            << m_folder.path().native() << "/swap\\040file                  file\t\t1048572\t\t0\t\t-2\n";
        auto swaps = unprotected_swaps({m_folder.path() / "swaps", m_folder.path() / "dev"});
        EXPECT_TRUE(swaps) << swaps.error().message();
        return swaps ? *swaps : std::vector<std::string>{"?"};
    }
    std::vector<std::string> all() const { return {(m_folder.path() / "swap file").native()}; }

    coffer::tests::TempFolder m_folder;
};

TEST_F(Swap, APlainDiskIsReported) {
    EXPECT_EQ(reported(make_device("sda")), all());
}

TEST_F(Swap, ADeviceThatIsNotKnownIsReported) {
    EXPECT_EQ(reported({}), all());
}

TEST_F(Swap, APartitionIsItsDisk) {
    auto partition = make_device("sda/sda2");
    std::ofstream(partition / "partition") << "2\n";
    EXPECT_EQ(reported(partition), all());
}

TEST_F(Swap, CryptIsProtectedWhereverItIsInTheStack) {
    auto disk = make_device("sda");
    auto luks = make_device("dm-0", "CRYPT-LUKS2-0123-luks");
    stack(luks, disk);
    EXPECT_TRUE(reported(luks).empty());
    auto volume = make_device("dm-1", "LVM-abcdef");
    stack(volume, luks);
    EXPECT_TRUE(reported(volume).empty());
    auto mirror = make_device("md0");
    stack(mirror, volume);
    EXPECT_TRUE(reported(mirror).empty());
    // Half of it is in the clear.
    stack(mirror, disk);
    EXPECT_EQ(reported(mirror), all());
}

TEST_F(Swap, AMappingWithoutEncryptionIsReported) {
    auto volume = make_device("dm-1", "LVM-CRYPT-");
    stack(volume, make_device("sda"));
    EXPECT_EQ(reported(volume), all());
}

TEST_F(Swap, MappingsInACircleEnd) {
    auto one = make_device("dm-1", "LVM-a");
    auto two = make_device("dm-2", "LVM-b");
    stack(one, two);
    stack(two, one);
    EXPECT_EQ(reported(one), all());
}

TEST_F(Swap, ZramIsMemoryUnlessItWritesToADisk) {
    auto zram = make_device("zram0");
    EXPECT_TRUE(reported(zram).empty());
    std::ofstream(zram / "backing_dev") << "none\n";
    EXPECT_TRUE(reported(zram).empty());
    std::ofstream(zram / "backing_dev") << "/dev/sda3\n";
    EXPECT_EQ(reported(zram), all());
}

TEST_F(Swap, NoListIsAnError) {
    EXPECT_FALSE(unprotected_swaps({m_folder.path() / "nothing", m_folder.path() / "dev"}));
}

int in_child(std::function<int()> const& work) {
    pid_t const child = ::fork();
    if (child == 0) ::_exit(work());
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 200;
}

TEST(LockMemory, ALimitThatIsTooSmallIsNamed) {
    EXPECT_EQ(in_child([] {
                  // Root may lock what it likes, but for this.
                  constexpr uid_t k_nobody = 65534;
                  if (::geteuid() == 0 && ::setuid(k_nobody) != 0) return 1;
                  rlimit const small{1 << 20, 1 << 20};
                  if (::setrlimit(RLIMIT_MEMLOCK, &small) != 0) return 2;
                  auto locked = lock_memory(uint64_t{512} << 20);
                  if (locked) return 3;
                  if (locked.error().code() != ErrorCode::Permission) return 4;
                  bool const named = locked.error().message().find("RLIMIT_MEMLOCK") != std::string::npos &&
                                     locked.error().message().find("1024 KiB") != std::string::npos;
                  return named ? 0 : 5;
              }),
              0);
}

TEST(LockMemory, LocksWhatIsTouchedAndNoMore) {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root, or a large RLIMIT_MEMLOCK";
    EXPECT_EQ(in_child([] {
                  if (!lock_memory(uint64_t{512} << 20)) return 1;
                  constexpr size_t k_size = size_t{256} << 20;
                  auto* memory = static_cast<char*>(
                      ::mmap(nullptr, k_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
                  if (memory == MAP_FAILED) return 2;
                  memory[0] = 1;
                  // "Locked:" of the mapping's entry in smaps is its resident part (proc(5)).
                  std::ifstream smaps("/proc/self/smaps");
                  // SAFETY: the address as a number.
                  auto const head = fmt::format("{:x}-", reinterpret_cast<uintptr_t>(memory));
                  std::string line;
                  bool found = false;
                  long resident = -1;
                  long locked = -1;
                  while (std::getline(smaps, line)) {
                      if (line.starts_with(head)) found = true;
                      if (found && line.starts_with("Rss:")) resident = std::stol(line.substr(4));
                      if (found && line.starts_with("Locked:")) {
                          locked = std::stol(line.substr(7));
                          break;
                      }
                  }
                  if (!found) return 3;
                  if (locked <= 0 || locked != resident) return 4;
                  if (resident >= static_cast<long>(k_size >> 11)) return 5;
                  // Guest memory is wiped all the same.
                  auto guest = HostMapping::create(k_size);
                  if (!guest) return 6;
                  guest->bytes()[4096] = std::byte{1};
                  guest->discard();
                  return guest->bytes()[4096] == std::byte{0} ? 0 : 7;
              }),
              0);
}

} // namespace
} // namespace coffer::vmm
