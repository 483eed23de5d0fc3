// A line that shows how far long work is stays one line.
#include <gtest/gtest.h>

#include "vmm/cli/progress.hpp"

namespace coffer::cli {
namespace {

TEST(Progress, FitsIntoTheTerminal) {
    std::string const what = "round 12, 131072 pages, 350 MiB/s, expected downtime 2000 ms";
    for (size_t columns = 0; columns < 200; ++columns)
        for (uint64_t done : {0U, 1U, 500U, 1000U, 2000U})
            EXPECT_LE(progress_text(what, done, 1000, columns).size(), columns == 0 ? 0 : columns - 1) << columns;
    EXPECT_EQ(progress_text(what, 500, 1000, 80), what + " [#####     ]  50 %");
    EXPECT_EQ(progress_text("saving", 1, 4, 80), "saving [#######                       ]  25 %");
    EXPECT_EQ(progress_text("saving", 4, 4, 80), "saving [##############################] 100 %");
    EXPECT_EQ(progress_text("saving", 1, 4, 20), "saving  25 %");
}

TEST(Progress, OfWhatHasNoEndShowsNone) {
    EXPECT_EQ(progress_text("switching over", 0, 0, 80), "switching over");
    EXPECT_EQ(progress_text("switching over", 0, 0, 10), "switching");
}

} // namespace
} // namespace coffer::cli
