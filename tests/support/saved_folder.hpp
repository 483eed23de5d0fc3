// A folder that can be put back to what it was, for tests that stop an operation again and again.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "tests/support/temp_folder.hpp"

namespace coffer::tests {

class SavedFolder {
public:
    // `names`: the entries of `folder` that rewind() puts back, each a folder; empty: all there are.
    explicit SavedFolder(std::filesystem::path folder, std::vector<std::string_view> names = {})
        : m_folder(std::move(folder)), m_names(std::move(names)) {}

    // What is there now is what rewind() goes back to.
    void save() {
        std::filesystem::remove_all(m_copy.path() / "all");
        copy(m_folder, m_copy.path() / "all");
    }
    void rewind() const {
        if (m_names.empty()) {
            for (auto const& entry : std::filesystem::directory_iterator(m_folder))
                std::filesystem::remove_all(entry.path());
            copy(m_copy.path() / "all", m_folder);
        }
        for (auto name : m_names) {
            std::filesystem::remove_all(m_folder / name);
            copy(m_copy.path() / "all" / name, m_folder / name);
        }
    }

private:
    static void copy(std::filesystem::path const& from, std::filesystem::path const& to) {
        std::filesystem::copy(from, to, std::filesystem::copy_options::recursive);
    }

    std::filesystem::path m_folder;
    std::vector<std::string_view> m_names;
    TempFolder m_copy;
};

} // namespace coffer::tests
