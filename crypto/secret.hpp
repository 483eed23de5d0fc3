// Memory for keys and passphrases: OpenSSL's secure heap (locked against swapping, left out of core dumps, between
// guard pages), wiped before it is given back. The heap holds 256 KiB a process, which bounds secrets, not data.
#pragma once

#include <cstddef>
#include <utility>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer::crypto {

// Sets up the secure heap; the first SecretBytes does it too, and ends the process where it fails. An error means that
// the host does not let this process lock memory (RLIMIT_MEMLOCK), and says so. Thread-safe.
Result<void> init_secret_memory();

// A fixed-size run of secret bytes. Move-only, never compared and never printed; a moved-from or default object is
// empty. The process ends where the secure heap is exhausted, as it does when memory is.
class SecretBytes {
public:
    SecretBytes() = default;
    explicit SecretBytes(size_t size); // zeroed
    SecretBytes(SecretBytes&& other) noexcept
        : m_data(std::exchange(other.m_data, nullptr)), m_size(std::exchange(other.m_size, 0)) {}
    SecretBytes& operator=(SecretBytes&& other) noexcept {
        if (this != &other) {
            wipe();
            m_data = std::exchange(other.m_data, nullptr);
            m_size = std::exchange(other.m_size, 0);
        }
        return *this;
    }
    SecretBytes(SecretBytes const&) = delete;
    SecretBytes& operator=(SecretBytes const&) = delete;
    bool operator==(SecretBytes const&) const = delete;
    ~SecretBytes() { wipe(); }

    // From the kernel's random generator by way of OpenSSL's private one.
    static Result<SecretBytes> random(size_t size);
    // A copy, in secret memory, of bytes that the caller then wipes.
    static SecretBytes copy_of(Bytes bytes);

    size_t size() const noexcept { return m_size; }
    bool empty() const noexcept { return m_size == 0; }
    // Named so that every place where secret bytes are touched can be found by searching for it.
    Bytes expose() const noexcept { return {m_data, m_size}; }
    MutBytes expose_mutable() noexcept { return {m_data, m_size}; }

    // Gives the memory back, wiped.
    void wipe() noexcept;

private:
    std::byte* m_data = nullptr;
    size_t m_size = 0;
};

// Overwrites with zeros in a way that compilers do not remove.
void wipe_bytes(MutBytes bytes) noexcept;

} // namespace coffer::crypto
