// A control socket in folders of its own, without a VM behind it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/temp_folder.hpp"
#include "vmm/control/backup.hpp"
#include "vmm/control/client.hpp"
#include "vmm/control/rekey.hpp"
#include "vmm/control/server.hpp"
#include "vmm/control/status.hpp"
#include "vmm/control/stop.hpp"

namespace coffer::vmm::control::tests {

// A door that handlers wait at, for tests that need a request to be under way.
class Gate {
public:
    void open() {
        std::lock_guard lock(m_mutex);
        m_open = true;
        m_changed.notify_all();
    }
    void wait() {
        std::unique_lock lock(m_mutex);
        m_changed.wait(lock, [this] { return m_open; });
    }

private:
    std::mutex m_mutex;
    std::condition_variable m_changed;
    bool m_open = false;
};

class ControlTest : public testing::Test {
protected:
    void SetUp() override {
        ::chmod(m_folder.path().c_str(), 0700);
        ::setenv("XDG_RUNTIME_DIR", (m_folder.path() / "run").c_str(), 1);
        std::filesystem::create_directory(m_folder.path() / "run");
        ::chmod((m_folder.path() / "run").c_str(), 0700);
        std::filesystem::create_directories(m_location.folder());
    }
    void TearDown() override {
        m_server.reset();
        ::unsetenv("XDG_RUNTIME_DIR");
    }

    // With Status answered.
    void make_server(Server::Limits limits = {}) {
        auto server = Server::create(m_location, limits);
        ASSERT_TRUE(server) << server.error().message();
        m_server = std::move(*server);
        m_server->on<StatusRequest>([](StatusRequest const&, Conversation&) -> Result<StatusAnswer> {
            return StatusAnswer{"soft", 42, 1234, RunState::Running};
        });
    }
    Result<StatusAnswer> ask_status() {
        auto client = TRY(Client::connect(m_location));
        return client.call(StatusRequest{});
    }
    std::filesystem::path socket_path() const {
        return m_folder.path() / "run" / "coffer" / m_location.root.state.filename() / m_location.name;
    }

    coffer::tests::TempFolder m_folder;
    HomeLocation m_location{{m_folder.path() / "root", m_folder.path() / "state" / "0123456789abcdef"}, "vm"};
    std::unique_ptr<Server> m_server;
};

} // namespace coffer::vmm::control::tests
