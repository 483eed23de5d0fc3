// TPM state that lives no longer than the process's interest in it: what is read off a TPM without changing it, and
// what is made before there is a home to keep it.
#pragma once

#include <utility>

#include <string.h>

#include "devices/core/backends.hpp"

namespace coffer::devices {

class MemoryNvStore final : public NvStore {
public:
    MemoryNvStore() = default;
    MemoryNvStore(MemoryNvStore const&) = delete;
    MemoryNvStore& operator=(MemoryNvStore const&) = delete;
    ~MemoryNvStore() override { wipe(); }

    Result<void> commit(Bytes content) override {
        wipe();
        m_content.assign(content.begin(), content.end());
        return {};
    }
    // What was last committed; empty where nothing was.
    ByteVector take() noexcept { return std::exchange(m_content, {}); }

private:
    void wipe() noexcept {
        if (!m_content.empty()) explicit_bzero(m_content.data(), m_content.size());
    }

    ByteVector m_content;
};

} // namespace coffer::devices
