#include "base/file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>

namespace coffer {
namespace {

class Folder {
public:
    Folder() {
        char name[] = "/tmp/coffer-test-XXXXXX";
        m_path = mkdtemp(name);
    }
    ~Folder() { std::filesystem::remove_all(m_path); }
    std::filesystem::path const& path() const { return m_path; }

private:
    std::filesystem::path m_path;
};

TEST(File, ReplaceGivesNewContentAndLeavesNoTemporary) {
    Folder folder;
    auto path = folder.path() / "config";
    ASSERT_TRUE(replace_file(path, as_bytes("one")));
    ASSERT_TRUE(replace_file(path, as_bytes("second")));
    auto content = read_file(path, 100);
    ASSERT_TRUE(content);
    EXPECT_EQ(content->size(), 6U);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(File, LimitIsKeptBeforeReading) {
    Folder folder;
    auto path = folder.path() / "long";
    ASSERT_TRUE(replace_file(path, as_bytes("0123456789")));
    auto content = read_file(path, 9);
    ASSERT_FALSE(content);
    EXPECT_EQ(content.error().code(), ErrorCode::Corrupt);
}

TEST(File, MissingFolderIsAnErrorThatNamesIt) {
    auto result = replace_file("/nonexistent-coffer/x", as_bytes("x"));
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().message().find("/nonexistent-coffer"), std::string::npos);
}

}  // namespace
}  // namespace coffer
