// The asking side: starts a keeper process and has keys wrapped and unwrapped by it.
#pragma once

#include <sys/types.h>

#include "base/file.hpp"
#include "keyprovider/registry.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_session.hpp"
#include "vmm/home/key_bundle.hpp"

namespace coffer::vmm {

namespace keeper {
enum class MessageType : uint16_t;
}

// A keeper that runs. The process ends with the object. Not thread-safe.
class KeeperProcess {
public:
    // Io where the program cannot be started.
    static Result<KeeperProcess> start(HomeRoot const& root, KeeperOptions const& options);

    KeeperProcess(KeeperProcess&& other) noexcept
        : m_socket(std::move(other.m_socket)), m_pid(std::exchange(other.m_pid, -1)),
          m_next_number(other.m_next_number), m_registry(std::move(other.m_registry)) {}
    KeeperProcess& operator=(KeeperProcess&&) = delete;
    // Closes the socket, which ends the keeper, and waits for its end.
    ~KeeperProcess();

    // The errors of KeyProvider; Io where the keeper itself fails.
    Result<crypto::BundleKey> unwrap(BundleHeader const& header);
    // A fresh bundle key under a fresh KEK of the provider; `label` is the VM's name. The provider's keys are not
    // removed while the seal lives: it has to, until a home names the key.
    Result<HomeSeal> make_seal(Uuid const& provider, std::string const& label);
    // The same, and the provider has unwrapped what it wrapped: for homes that are about to depend on it.
    Result<HomeSeal> make_proven_seal(Uuid const& provider, std::string const& label);

    // KeyProvider::test() of the provider, for a user to read; at least one step.
    Result<std::vector<ProviderTestStep>> test(Uuid const& provider);

    // ProviderRegistry's functions of these names, for a keeper that was started with KeeperOptions::manage. Paths are
    // absolute.
    Result<ProviderInfo> add_native(std::string const& name, NativeOptions const& options);
    Result<ProviderInfo> rotate(Uuid const& provider);
    Result<ProviderInfo> backup(Uuid const& provider, std::filesystem::path const& file, bool overwrite);
    Result<Restored> restore(std::filesystem::path const& file, RestoreOptions const& options);

    pid_t pid() const noexcept { return m_pid; }

private:
    Result<Restored> change(keeper::MessageType type, ByteVector fields);

    KeeperProcess(UniqueFd socket, pid_t pid, ProviderRegistry registry)
        : m_socket(std::move(socket)), m_pid(pid), m_registry(std::move(registry)) {}

    UniqueFd m_socket;
    pid_t m_pid;
    uint32_t m_next_number = 1;
    ProviderRegistry m_registry; // for its locks; keys are the keeper's
};

} // namespace coffer::vmm
