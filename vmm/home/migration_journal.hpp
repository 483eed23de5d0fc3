// What this host durably knows of migrations, one file each in the root's state folder, below .migrations:
//
//   out-UUID   a VM that was handed over to another host
//   in-UUID    a VM that came from another host
//   moved-NAME where a VM of that name went, to another root of this host; as out-UUID, and only for messages
//
// Which host owns a VM is decided by two writings alone: the source's host record (vmm/home/host_record.hpp) says
// `handed over` before it lets the destination go, and the destination's file here goes from Prepared to Started, or to
// Abandoned, once and for good. docs/migration.md has the rest.
//
// Thread-safe, and safe against other processes: a decision is made under a lock.
#pragma once

#include <optional>
#include <string>

#include "base/file.hpp"
#include "crypto/mac.hpp"
#include "vmm/home/home_location.hpp"

namespace coffer::vmm {

enum class OutgoingState : uint8_t {
    HandedOver = 1, // the other host may run it
    Settled = 2,    // the other host has it
    TakenBack = 3,  // the other host has given it up for good
};

struct OutgoingMigration {
    Uuid id;
    Uuid vm;
    std::string name;
    crypto::Digest peer{}; // SHA-256 of the other host's certificate; zeros: moved to another root of this host
    std::string peer_name; // as it is trusted under here
    std::string place;     // where it listened: HOST:PORT
    int64_t time = 0;      // of the last change, seconds since 1970-01-01 UTC
    OutgoingState state = OutgoingState::HandedOver;

    template <class V>
    void fields(V& v) {
        v.required(1, id);
        v.required(2, vm);
        v.required(3, name);
        v.required(4, peer);
        v.required(5, peer_name);
        v.required(6, place);
        v.required(7, time);
        v.required(8, state);
    }
};

enum class IncomingState : uint8_t {
    Prepared = 1, // all of it is here; the source may let go at any moment
    Started = 2,  // this host owns the VM
    Abandoned = 3 // it never will by this migration
};

struct IncomingMigration {
    Uuid id;
    Uuid vm;
    std::string name;
    crypto::Digest peer{};
    std::string peer_name;
    int64_t time = 0;
    IncomingState state = IncomingState::Prepared;

    template <class V>
    void fields(V& v) {
        v.required(1, id);
        v.required(2, vm);
        v.required(3, name);
        v.required(4, peer);
        v.required(5, peer_name);
        v.required(6, time);
        v.required(7, state);
    }
};

class MigrationJournal {
public:
    explicit MigrationJournal(HomeRoot const& root) : m_folder(root.state / ".migrations") {}

    // Nothing where there is none. Integrity where it is damaged.
    Result<std::optional<OutgoingMigration>> read_outgoing(Uuid const& id) const;
    Result<std::optional<IncomingMigration>> read_incoming(Uuid const& id) const;
    // Durable on success; the journal fills in the time.
    Result<void> write_outgoing(OutgoingMigration migration) const;
    // Nothing is left here that it is about. No error where there is none.
    Result<void> forget_outgoing(Uuid const& id) const;

    // The root that a VM of this name went to, by the outgoing migration `id`; nothing where it is not known.
    Result<void> note_moved(Uuid const& id) const;
    Result<std::optional<std::string>> moved_to(std::string const& name) const;
    Result<void> forget_moved(std::string const& name) const;

    // Durable on success. AlreadyExists where the journal knows the migration.
    Result<void> prepare(IncomingMigration migration) const;
    // From Prepared. Cancelled where it was abandoned, or is not known.
    Result<void> start(Uuid const& id) const;
    // From Prepared, or of one that is not known, which then never starts. Gives Abandoned, or Started where it is
    // that.
    Result<IncomingState> abandon(Uuid const& id) const;
    // The source knows the outcome, and asks no more. No error where there is none.
    Result<void> forget_incoming(Uuid const& id) const;

private:
    std::filesystem::path path(char const* direction, Uuid const& id) const;
    Result<void> write_incoming(IncomingMigration migration) const;

    std::filesystem::path m_folder;
};

// The fields of a journal's file, checked. Integrity; `path` is for messages.
Result<OutgoingMigration> decode_outgoing(Bytes fields, std::filesystem::path const& path);
Result<IncomingMigration> decode_incoming(Bytes fields, std::filesystem::path const& path);

// Why a home that was handed over is not opened to write.
Error handed_over(HomeLocation const& location, Uuid const& migration);

} // namespace coffer::vmm
