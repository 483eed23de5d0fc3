// The control socket of the VM that this process runs.
//
// Each client has a thread of its own, so that neither a client that stalls nor a request that takes long holds up the
// guest or another client. There are at most k_max_clients of them, each has a while to send its next request (Limits),
// and one that does not read loses its answer. Only processes of this user are heard.
//
// create() before the sandbox is entered, on() before start(). Handlers run on clients' threads, not under the device
// lock, and several at a time (but see RequestTraits::exclusive).
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "vmm/control/place.hpp"
#include "vmm/control/request.hpp"

namespace coffer::vmm::control {

// A request that is being carried out, as its handler sees it.
class Conversation {
public:
    virtual ~Conversation() = default;

    // What came with the request, as its traits say: once.
    crypto::BundleKey take_key();
    UniqueFd take_descriptor() { return std::move(m_descriptor); }

    // For the user to see; lost where the client does not read.
    virtual void progress(uint64_t done, uint64_t total, std::string_view what) = 0;
    // Whether the client went away or gave the request up, or the VM ends. A handler that runs for longer than a second
    // asks every now and then, and answers with Cancelled.
    virtual bool cancelled() = 0;

protected:
    Conversation(std::optional<crypto::BundleKey> key, UniqueFd descriptor)
        : m_key(std::move(key)), m_descriptor(std::move(descriptor)) {}

private:
    std::optional<crypto::BundleKey> m_key;
    UniqueFd m_descriptor;
};

class Server {
public:
    static constexpr size_t k_max_clients = 8;
    static constexpr unsigned k_max_requests = 64; // of one client; then it connects again
    struct Limits {
        Nanoseconds idle = 10 * k_ns_per_s; // until a client's next request
        Nanoseconds send = 2 * k_ns_per_s;  // until it reads its answer
        Nanoseconds full = 1 * k_ns_per_s;  // that one more client waits for another's end
    };

    // The caller holds the home's lock as its writer, so a socket that lies there is of a process that is gone, and is
    // replaced. Until start() clients wait.
    static Result<std::unique_ptr<Server>> create(HomeLocation const& location, Limits limits);
    static Result<std::unique_ptr<Server>> create(HomeLocation const& location) { return create(location, Limits()); }

    ~Server();
    Server(Server const&) = delete;
    Server& operator=(Server const&) = delete;

    // `handler`: Result<R::Answer>(R const&, Conversation&). Requests without one are answered with Unsupported.
    template <ControlRequest R, class F>
    void on(F handler) {
        add(R::k_type, {R::k_traits, [handler = std::move(handler)](Bytes fields, Conversation& conversation) {
                            return answer<R>(handler, fields, conversation);
                        }});
    }

    void start();
    // The home lies elsewhere now, and so does the socket: clients that are connected stay so. After an error it is
    // where it was. Not while stop() may be called.
    Result<void> move_to(HomeLocation const& location);
    // Removes the socket, tells running handlers that they are cancelled, and waits for them.
    void stop() noexcept;

private:
    struct Entry {
        RequestTraits traits;
        std::function<Result<ByteVector>(Bytes, Conversation&)> handler;
    };
    class Session;

    template <ControlRequest R, class F>
    static Result<ByteVector> answer(F const& handler, Bytes fields, Conversation& conversation) {
        R request;
        TRY(decode_fields(fields, request));
        auto done = TRY(handler(request, conversation));
        return encode_fields(std::move(done));
    }

    Server(Place place, UniqueFd listener, UniqueFd stop, UniqueFd ended, Limits limits);
    void add(RequestType type, Entry entry) { m_entries[type] = std::move(entry); }
    void run() noexcept;
    void accept_one();
    void wait_for_room() noexcept;

    Place m_place;
    Limits m_limits;
    UniqueFd m_listener;
    UniqueFd m_stop;  // an eventfd: readable for good once stop() is called
    UniqueFd m_ended; // an eventfd: readable once a client's thread has ended
    std::map<RequestType, Entry> m_entries;
    std::mutex m_exclusive;
    std::vector<std::unique_ptr<Session>> m_sessions; // the accepting thread's
    std::atomic<bool> m_stopping{false};
    std::thread m_thread;
};

} // namespace coffer::vmm::control
