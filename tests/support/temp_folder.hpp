// A folder of a test's own, removed at the end. In memory where the host has a place for it: tests make many files and
// sync them, and what they check does not depend on the medium.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include <unistd.h>

namespace coffer::tests {

class TempFolder {
public:
    TempFolder() {
        bool const in_memory = ::access("/dev/shm", R_OK | W_OK | X_OK) == 0;
        auto base = in_memory ? std::filesystem::path("/dev/shm") : std::filesystem::temp_directory_path();
        auto name = (base / "coffer-test-XXXXXX").native();
        if (!::mkdtemp(name.data())) throw std::runtime_error("mkdtemp failed");
        m_path = name;
    }
    TempFolder(TempFolder const&) = delete;
    TempFolder& operator=(TempFolder const&) = delete;
    ~TempFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(m_path, ignored);
    }
    std::filesystem::path const& path() const { return m_path; }

private:
    std::filesystem::path m_path;
};

} // namespace coffer::tests
