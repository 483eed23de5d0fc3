// The asking side: starts a keeper process and has keys wrapped and unwrapped by it.
#pragma once

#include <sys/types.h>

#include "base/file.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_session.hpp"
#include "vmm/home/key_bundle.hpp"

namespace coffer::vmm {

// A keeper that runs. The process ends with the object. Not thread-safe.
class KeeperProcess {
public:
    // Io where the program cannot be started.
    static Result<KeeperProcess> start(HomeRoot const& root, KeeperOptions const& options);

    KeeperProcess(KeeperProcess&& other) noexcept
        : m_socket(std::move(other.m_socket)), m_pid(std::exchange(other.m_pid, -1)),
          m_next_number(other.m_next_number) {}
    KeeperProcess& operator=(KeeperProcess&&) = delete;
    // Closes the socket, which ends the keeper, and waits for its end.
    ~KeeperProcess();

    // The errors of KeyProvider; Io where the keeper itself fails.
    Result<crypto::BundleKey> unwrap(BundleHeader const& header);
    // A fresh bundle key under a fresh KEK of the provider; `label` is the VM's name.
    Result<HomeSeal> make_seal(Uuid const& provider, std::string const& label);
    // The same, and the provider has unwrapped what it wrapped: for homes that are about to depend on it.
    Result<HomeSeal> make_proven_seal(Uuid const& provider, std::string const& label);

    // KeyProvider::test() of the provider, for a user to read; at least one step.
    Result<std::vector<ProviderTestStep>> test(Uuid const& provider);

    pid_t pid() const noexcept { return m_pid; }

private:
    KeeperProcess(UniqueFd socket, pid_t pid) : m_socket(std::move(socket)), m_pid(pid) {}

    UniqueFd m_socket;
    pid_t m_pid;
    uint32_t m_next_number = 1;
};

} // namespace coffer::vmm
