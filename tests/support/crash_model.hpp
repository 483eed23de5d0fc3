// What a power failure leaves on the disk: a model of a file system that promises no more than POSIX does.
//
// An operation is run once in a child process, and its writing system calls are recorded. Then every state that a crash
// can leave is put in place, one after the other: after each call, with
//   - what was written to files and not synced lost, kept, torn between two 4 KiB units in two ways, or zeros under the
//     new size;
//   - each entry of a folder that was made, renamed or removed, and whose folder was not synced, lost or kept.
// fsync(2) of a file makes its content and size durable and not its name; fsync of a folder makes its entries durable;
// a rename is one step. Nothing else orders anything: a real file system loses less.
//
//     CrashModel model({folder / "root", folder / "state"});
//     model.record([&] { return commit() ? 0 : 1; });
//     model.for_each_state([&](CrashModel::State const& state) { ... opens the home, and checks ... });
//
// With the sync calls left out (Promise), the same check has to fail somewhere, or it checks nothing.
#pragma once

#include <algorithm>
#include <array>
#include <climits>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <fmt/format.h>

#include "base/bytes.hpp"
#include "base/file.hpp"
#include "tests/support/syscall_tracer.hpp"

namespace coffer::tests {

class CrashModel {
public:
    // Which sync calls the model believes.
    enum class Promise { All, NoFileSync, NoFolderSync };

    struct State {
        size_t calls = 0;      // that were made before the crash
        bool finished = false; // all of them: what was promised when they were done has to hold
        unsigned marks = 0;    // calls of mark() before the crash
        std::string what;      // for messages
    };

    // Told by the recorded work: what was done so far was acknowledged.
    static void mark() { ::close(k_mark); }

    // Only what lies below these folders is modelled. They are on one file system and hold folders and regular files.
    explicit CrashModel(std::vector<std::filesystem::path> roots, Promise promise = Promise::All)
        : m_roots(std::move(roots)), m_promise(promise) {
        for (auto& root : m_roots) root = std::filesystem::weakly_canonical(root);
    }

    // Runs `work` and gives its exit code; everything that lies in the folders before counts as durable. `work` must
    // not use threads. Throws where it makes a writing system call that is not modelled.
    int record(std::function<int()> const& work) {
        m_steps.clear();
        m_first = std::make_unique<Disk>();
        for (auto const& root : m_roots) read_tree(*m_first, root);
        auto run = run_watched(work, {.entering =
                                          [this](pid_t child, user_regs_struct const& regs) {
                                              before(child, regs);
                                              return std::optional<long>();
                                          },
                                      .left = [this](pid_t child, user_regs_struct const& regs,
                                                     long result) { after(child, regs, result); }});
        if (run.killed) throw std::runtime_error("the recorded work was killed");
        m_last = std::make_unique<Disk>();
        for (auto const& root : m_roots) read_tree(*m_last, root);
        return run.exit_code;
    }

    // Puts every state in place and calls `check`, until it gives false. How many were tried; two that are the same on
    // the disk count once for each number of calls. Leaves the folders as the work left them.
    size_t for_each_state(std::function<bool(State const&)> const& check) {
        size_t tried = 0;
        unsigned marks = 0;
        Live live(*m_first);
        bool going_on = true;
        for (size_t calls = 0; calls <= m_steps.size() && going_on; ++calls) {
            if (calls > 0) {
                auto const& step = m_steps[calls - 1];
                marks += step.kind == Kind::Mark ? 1 : 0;
                apply(live, step);
            }
            std::set<std::map<std::string, Entry>> seen;
            for (auto const& names : choices_of_names(live)) {
                for (auto const& data : choices_of_data(live)) {
                    auto tree = tree_after_crash(live, names, data);
                    if (!seen.insert(tree).second) continue;
                    put(tree);
                    ++tried;
                    State const state{calls, calls == m_steps.size(), marks, describe(calls, live, names, data)};
                    going_on = check(state);
                    if (!going_on) break;
                }
                if (!going_on) break;
            }
        }
        put(whole_tree(*m_last));
        return tried;
    }

    size_t calls() const { return m_steps.size(); }

private:
    static constexpr int k_mark = -4242;
    static constexpr size_t k_unit = 4096;
    static constexpr size_t k_all_subsets = 5; // of so many changes of names all subsets are tried, of more some

    using Path = std::string;
    enum class Kind { Mark, MakeFile, MakeFolder, Write, Truncate, SyncFile, SyncFolder, Rename, Remove, Exchange };
    struct Step {
        Kind kind;
        Path path;
        Path to;             // of Rename and Exchange
        uint64_t offset = 0; // of Write; of Truncate the size
        ByteVector data;
    };
    // A node is a file or a folder; names lead to nodes.
    using NodeId = size_t;
    struct Node {
        bool folder = false;
        ByteVector content;
        std::map<std::string, NodeId> entries;
    };
    struct Disk {
        std::vector<Node> nodes;
        std::map<Path, NodeId> roots;
    };
    // What a path holds on the disk; for comparing.
    struct Entry {
        bool folder = false;
        ByteVector content;
        auto operator<=>(Entry const&) const = default;
    };
    // One change of names, as one step: (folder, name) leads to a node, or to none.
    struct NameChange {
        struct One {
            NodeId folder;
            std::string name;
            std::optional<NodeId> node;
        };
        std::vector<One> all;
        std::set<NodeId> unsynced; // folders
        std::string what;
    };
    // What programs see, and what of it is not durable yet.
    struct Live {
        explicit Live(Disk const& disk) : now(disk), durable(disk) {}
        Disk now;
        Disk durable;
        std::set<NodeId> dirty; // files
        std::vector<NameChange> changes;
    };
    enum class Loss { Kept, Lost, FirstUnitKept, FirstUnitLost, Zeros };
    static constexpr std::array k_losses{Loss::Kept, Loss::Lost, Loss::FirstUnitKept, Loss::FirstUnitLost, Loss::Zeros};
    using DataChoice = std::map<NodeId, Loss>;
    using NameChoice = std::vector<bool>; // for each change whether it is kept

    // ---- recording

    bool is_modelled(Path const& path) const {
        return std::any_of(m_roots.begin(), m_roots.end(), [&](auto const& root) {
            return path == root.native() || path.starts_with(root.native() + "/");
        });
    }
    static Path link_of(std::string const& link) {
        std::array<char, PATH_MAX> target{};
        auto const size = ::readlink(link.c_str(), target.data(), target.size());
        return size > 0 ? Path(target.data(), static_cast<size_t>(size)) : Path();
    }
    static Path path_of_fd(pid_t child, uint64_t fd) {
        return link_of(fmt::format("/proc/{}/fd/{}", child, static_cast<int>(fd)));
    }
    static ByteVector read_child(pid_t child, uint64_t address, size_t size) {
        ByteVector bytes(size);
        iovec here{bytes.data(), size};
        // SAFETY: an address of the child's, which process_vm_readv(2) takes as a pointer.
        iovec there{reinterpret_cast<void*>(address), size};
        if (::process_vm_readv(child, &here, 1, &there, 1, 0) != static_cast<ssize_t>(size))
            throw std::runtime_error("cannot read the traced process");
        return bytes;
    }
    static Path read_path(pid_t child, uint64_t folder_fd, uint64_t address) {
        std::string text;
        for (;;) {
            auto const byte = std::to_integer<char>(read_child(child, address + text.size(), 1)[0]);
            if (byte == '\0') break;
            text += byte;
        }
        if (text.starts_with("/")) return std::filesystem::path(text).lexically_normal();
        auto const base = static_cast<int>(folder_fd) == AT_FDCWD ? link_of(fmt::format("/proc/{}/cwd", child))
                                                                  : path_of_fd(child, folder_fd);
        return (std::filesystem::path(base) / text).lexically_normal();
    }
    static bool exists(Path const& path) { return ::access(path.c_str(), F_OK) == 0; }

    // What has to be known from before the call.
    void before(pid_t child, user_regs_struct const& regs) {
        m_path.clear();
        m_to.clear();
        switch (regs.orig_rax) {
        case SYS_open: m_path = read_path(child, static_cast<uint64_t>(AT_FDCWD), regs.rdi); break;
        case SYS_openat: m_path = read_path(child, regs.rdi, regs.rsi); break;
        case SYS_unlink:
        case SYS_rmdir:
        case SYS_mkdir: m_path = read_path(child, static_cast<uint64_t>(AT_FDCWD), regs.rdi); break;
        case SYS_unlinkat:
        case SYS_mkdirat: m_path = read_path(child, regs.rdi, regs.rsi); break;
        case SYS_rename:
            m_path = read_path(child, static_cast<uint64_t>(AT_FDCWD), regs.rdi);
            m_to = read_path(child, static_cast<uint64_t>(AT_FDCWD), regs.rsi);
            break;
        case SYS_renameat:
        case SYS_renameat2:
            m_path = read_path(child, regs.rdi, regs.rsi);
            m_to = read_path(child, regs.rdx, regs.r10);
            break;
        case SYS_write:
            m_path = path_of_fd(child, regs.rdi);
            if (is_modelled(m_path)) m_offset = position_of(child, regs.rdi, m_path);
            break;
        default: break;
        }
        m_existed = exists(m_path);
    }
    static uint64_t position_of(pid_t child, uint64_t fd, Path const& path) {
        UniqueFd info(::open(fmt::format("/proc/{}/fdinfo/{}", child, static_cast<int>(fd)).c_str(), O_RDONLY));
        std::array<char, 256> text{};
        unsigned long long position = 0;
        unsigned flags = 0;
        if (::read(info.get(), text.data(), text.size() - 1) <= 0 ||
            std::sscanf(text.data(), "pos: %llu flags: %o", &position, &flags) != 2)
            throw std::runtime_error("cannot read the traced process's descriptors");
        return (flags & O_APPEND) != 0 ? std::filesystem::file_size(path) : position;
    }

    void after(pid_t child, user_regs_struct const& regs, long result) {
        if (regs.orig_rax == SYS_close && static_cast<int>(regs.rdi) == k_mark) {
            add({Kind::Mark, {}, {}, 0, {}});
            return;
        }
        if (result < 0) return;
        switch (regs.orig_rax) {
        case SYS_open:
        case SYS_openat: {
            auto const flags = regs.orig_rax == SYS_open ? regs.rsi : regs.rdx;
            if ((flags & O_TMPFILE) == O_TMPFILE && is_modelled(m_path)) throw std::runtime_error("O_TMPFILE");
            if (!is_modelled(m_path)) return;
            if (!m_existed) add({Kind::MakeFile, m_path, {}, 0, {}});
            if (m_existed && (flags & O_TRUNC) != 0) add({Kind::Truncate, m_path, {}, 0, {}});
            return;
        }
        case SYS_write:
            if (is_modelled(m_path))
                add({Kind::Write, m_path, {}, m_offset, read_child(child, regs.rsi, static_cast<size_t>(result))});
            return;
        case SYS_pwrite64:
            if (auto path = path_of_fd(child, regs.rdi); is_modelled(path))
                add({Kind::Write, path, {}, regs.r10, read_child(child, regs.rsi, static_cast<size_t>(result))});
            return;
        case SYS_ftruncate:
            if (auto path = path_of_fd(child, regs.rdi); is_modelled(path))
                add({Kind::Truncate, path, {}, regs.rsi, {}});
            return;
        case SYS_fsync:
        case SYS_fdatasync:
            if (auto path = path_of_fd(child, regs.rdi); is_modelled(path))
                add({std::filesystem::is_directory(path) ? Kind::SyncFolder : Kind::SyncFile, path, {}, 0, {}});
            return;
        case SYS_renameat2:
            if (is_modelled(m_path) && regs.r8 == RENAME_EXCHANGE) {
                if (!is_modelled(m_to)) throw std::runtime_error("a rename out of the model");
                add({Kind::Exchange, m_path, m_to, 0, {}});
                return;
            }
            if (is_modelled(m_path) && (regs.r8 & ~uint64_t{RENAME_NOREPLACE}) != 0)
                throw std::runtime_error("renameat2 with flags");
            [[fallthrough]];
        case SYS_rename:
        case SYS_renameat:
            if (is_modelled(m_path) != is_modelled(m_to)) throw std::runtime_error("a rename out of the model");
            if (is_modelled(m_path)) add({Kind::Rename, m_path, m_to, 0, {}});
            return;
        case SYS_unlink:
        case SYS_unlinkat:
        case SYS_rmdir:
            if (is_modelled(m_path)) add({Kind::Remove, m_path, {}, 0, {}});
            return;
        case SYS_mkdir:
        case SYS_mkdirat:
            if (is_modelled(m_path)) add({Kind::MakeFolder, m_path, {}, 0, {}});
            return;
        // What writes to files in other ways would escape the model.
        case SYS_writev:
        case SYS_pwritev:
        case SYS_pwritev2:
        case SYS_fallocate:
            if (is_modelled(path_of_fd(child, regs.rdi))) not_modelled(regs);
            return;
        case SYS_mmap:
            if ((regs.r10 & 0x0F) == MAP_SHARED && (regs.rdx & PROT_WRITE) != 0 && (regs.r10 & MAP_ANONYMOUS) == 0 &&
                is_modelled(path_of_fd(child, regs.r8)))
                not_modelled(regs);
            return;
        case SYS_truncate:
        case SYS_link:
        case SYS_linkat:
        case SYS_symlink:
        case SYS_symlinkat:
        case SYS_copy_file_range:
        case SYS_sendfile:
        case SYS_splice: not_modelled(regs);
        default: return;
        }
    }
    [[noreturn]] static void not_modelled(user_regs_struct const& regs) {
        throw std::runtime_error(fmt::format("system call {} is not in the crash model", regs.orig_rax));
    }
    void add(Step step) { m_steps.push_back(std::move(step)); }

    // ---- the model

    static NodeId read_node(Disk& disk, std::filesystem::path const& path) {
        auto const id = disk.nodes.size();
        disk.nodes.emplace_back();
        if (!std::filesystem::is_directory(path)) {
            auto content = read_file(path, size_t{1} << 30);
            if (!content) throw std::runtime_error(content.error().message());
            disk.nodes[id].content = std::move(*content);
            return id;
        }
        disk.nodes[id].folder = true;
        for (auto const& entry : std::filesystem::directory_iterator(path)) {
            auto const below = read_node(disk, entry.path());
            disk.nodes[id].entries[entry.path().filename()] = below;
        }
        return id;
    }
    static void read_tree(Disk& disk, std::filesystem::path const& root) {
        std::filesystem::create_directories(root);
        disk.roots[root] = read_node(disk, root);
    }

    // The folder that a path's name is in, and the name.
    static std::pair<NodeId, std::string> place_of(Disk const& disk, Path const& path) {
        for (auto const& [root, id] : disk.roots) {
            if (!path.starts_with(root + "/")) continue;
            auto const relative = std::filesystem::path(path).lexically_relative(root);
            NodeId folder = id;
            for (auto const& part : relative.parent_path()) folder = disk.nodes[folder].entries.at(part);
            return {folder, relative.filename()};
        }
        throw std::runtime_error("not in the model: " + path);
    }
    static NodeId node_at(Disk const& disk, Path const& path) {
        if (auto root = disk.roots.find(path); root != disk.roots.end()) return root->second;
        auto const [folder, name] = place_of(disk, path);
        return disk.nodes[folder].entries.at(name);
    }
    static NodeId make_node(Live& live, bool folder) {
        Node node;
        node.folder = folder;
        live.now.nodes.push_back(node);
        live.durable.nodes.push_back(std::move(node));
        return live.now.nodes.size() - 1;
    }
    static void set_names(Disk& disk, NameChange const& change) {
        for (auto const& one : change.all) {
            auto& entries = disk.nodes[one.folder].entries;
            if (one.node)
                entries[one.name] = *one.node;
            else
                entries.erase(one.name);
        }
    }
    static void change_names(Live& live, std::vector<NameChange::One> all, std::string what) {
        NameChange change;
        change.all = std::move(all);
        change.what = std::move(what);
        for (auto const& one : change.all) change.unsynced.insert(one.folder);
        set_names(live.now, change);
        live.changes.push_back(std::move(change));
    }

    void apply(Live& live, Step const& step) const {
        switch (step.kind) {
        case Kind::Mark: return;
        case Kind::MakeFile:
        case Kind::MakeFolder: {
            auto const [folder, name] = place_of(live.now, step.path);
            auto const node = make_node(live, step.kind == Kind::MakeFolder);
            change_names(live, {{folder, name, node}}, "new " + name);
            return;
        }
        case Kind::Write: {
            auto const node = node_at(live.now, step.path);
            auto& content = live.now.nodes[node].content;
            content.resize(std::max<size_t>(content.size(), step.offset + step.data.size()));
            std::copy(step.data.begin(), step.data.end(), content.begin() + static_cast<ptrdiff_t>(step.offset));
            live.dirty.insert(node);
            return;
        }
        case Kind::Truncate: {
            auto const node = node_at(live.now, step.path);
            live.now.nodes[node].content.resize(step.offset);
            live.dirty.insert(node);
            return;
        }
        case Kind::SyncFile: {
            if (m_promise == Promise::NoFileSync) return;
            auto const node = node_at(live.now, step.path);
            live.durable.nodes[node].content = live.now.nodes[node].content;
            live.dirty.erase(node);
            return;
        }
        case Kind::SyncFolder: {
            if (m_promise == Promise::NoFolderSync) return;
            auto const folder = node_at(live.now, step.path);
            std::erase_if(live.changes, [&](NameChange& change) {
                change.unsynced.erase(folder);
                if (!change.unsynced.empty()) return false;
                set_names(live.durable, change);
                return true;
            });
            return;
        }
        case Kind::Rename: {
            auto const from = place_of(live.now, step.path);
            auto const to = place_of(live.now, step.to);
            auto const node = live.now.nodes[from.first].entries.at(from.second);
            change_names(live, {{from.first, from.second, std::nullopt}, {to.first, to.second, node}},
                         from.second + " to " + to.second);
            return;
        }
        case Kind::Exchange: {
            auto const one = place_of(live.now, step.path);
            auto const other = place_of(live.now, step.to);
            change_names(live,
                         {{one.first, one.second, live.now.nodes[other.first].entries.at(other.second)},
                          {other.first, other.second, live.now.nodes[one.first].entries.at(one.second)}},
                         one.second + " for " + other.second);
            return;
        }
        case Kind::Remove: {
            auto const [folder, name] = place_of(live.now, step.path);
            change_names(live, {{folder, name, std::nullopt}}, "no " + name);
            return;
        }
        }
    }

    // ---- states

    static std::vector<NameChoice> choices_of_names(Live const& live) {
        size_t const count = live.changes.size();
        std::vector<NameChoice> choices;
        if (count <= k_all_subsets) {
            for (size_t bits = 0; bits < size_t{1} << count; ++bits) {
                NameChoice choice(count);
                for (size_t i = 0; i < count; ++i) choice[i] = (bits >> i & 1) != 0;
                choices.push_back(std::move(choice));
            }
            return choices;
        }
        for (size_t kept = 0; kept <= count; ++kept) { // the first ones, and the last ones
            NameChoice first(count, false);
            std::fill_n(first.begin(), kept, true);
            NameChoice last(first.rbegin(), first.rend());
            choices.push_back(std::move(first));
            choices.push_back(std::move(last));
        }
        for (size_t lone = 0; lone < count; ++lone) { // all but one, and one alone
            NameChoice lost(count, true);
            NameChoice kept(count, false);
            lost[lone] = false;
            kept[lone] = true;
            choices.push_back(std::move(lost));
            choices.push_back(std::move(kept));
        }
        return choices;
    }
    // Every loss of one file, with all others kept and with all others lost.
    static std::vector<DataChoice> choices_of_data(Live const& live) {
        std::vector<DataChoice> choices;
        for (Loss others : {Loss::Kept, Loss::Lost}) {
            DataChoice same;
            for (auto node : live.dirty) same[node] = others;
            choices.push_back(same);
            for (auto node : live.dirty) {
                for (Loss loss : k_losses) {
                    auto choice = same;
                    choice[node] = loss;
                    choices.push_back(std::move(choice));
                }
            }
        }
        return choices;
    }
    static ByteVector after_loss(ByteVector const& durable, ByteVector const& now, Loss loss) {
        if (loss == Loss::Kept) return now;
        if (loss == Loss::Lost) return durable;
        // The new size: zeros, or some units of the one and some of the other.
        auto content = durable;
        content.resize(now.size());
        if (loss == Loss::Zeros) {
            std::fill(content.begin(), content.end(), std::byte{0});
            return content;
        }
        auto const unit = static_cast<ptrdiff_t>(std::min(k_unit, now.size()));
        if (loss == Loss::FirstUnitKept)
            std::copy(now.begin(), now.begin() + unit, content.begin());
        else
            std::copy(now.begin() + unit, now.end(), content.begin() + unit);
        return content;
    }

    using Tree = std::map<std::string, Entry>;
    static void list(Disk const& disk, NodeId id, Path const& path, Tree& tree) {
        auto const& node = disk.nodes[id];
        tree[path] = {node.folder, node.content};
        for (auto const& [name, below] : node.entries) list(disk, below, path + "/" + name, tree);
    }
    static Tree whole_tree(Disk const& disk) {
        Tree tree;
        for (auto const& [root, id] : disk.roots) list(disk, id, root, tree);
        return tree;
    }
    static Tree tree_after_crash(Live const& live, NameChoice const& names, DataChoice const& data) {
        auto disk = live.durable;
        for (size_t i = 0; i < names.size(); ++i)
            if (names[i]) set_names(disk, live.changes[i]);
        for (auto const& [node, loss] : data)
            disk.nodes[node].content = after_loss(live.durable.nodes[node].content, live.now.nodes[node].content, loss);
        return whole_tree(disk);
    }

    void put(Tree const& tree) const {
        for (auto const& root : m_roots) std::filesystem::remove_all(root);
        for (auto const& [path, entry] : tree) { // folders come before what is in them
            if (entry.folder) {
                std::filesystem::create_directories(path);
                ::chmod(path.c_str(), 0700);
                continue;
            }
            auto fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
            if (!fd || !pwrite_all(fd->get(), entry.content, 0, path)) throw std::runtime_error("cannot write " + path);
        }
    }

    std::string describe(size_t calls, Live const& live, NameChoice const& names, DataChoice const& data) const {
        static constexpr std::array<char const*, 10> k_kinds{"mark", "new file", "new folder", "write",   "truncate",
                                                             "sync", "sync of",  "rename",     "removal", "exchange"};
        std::string text = fmt::format("after {} of {} calls", calls, m_steps.size());
        if (calls > 0) {
            auto const& step = m_steps[calls - 1];
            text += fmt::format(", the last a {} {}", k_kinds[static_cast<size_t>(step.kind)], step.path);
        }
        for (size_t i = 0; i < names.size(); ++i)
            text += fmt::format("; {} {}", live.changes[i].what, names[i] ? "kept" : "lost");
        static constexpr std::array<char const*, 5> k_loss{"kept", "lost", "first unit kept", "first unit lost",
                                                           "zeros"};
        for (auto const& [node, loss] : data)
            text += fmt::format("; content of node {} {}", node, k_loss[static_cast<size_t>(loss)]);
        return text;
    }

    std::vector<std::filesystem::path> m_roots;
    Promise m_promise;
    std::vector<Step> m_steps;
    std::unique_ptr<Disk> m_first;
    std::unique_ptr<Disk> m_last;
    // Of the call that is being made.
    Path m_path;
    Path m_to;
    bool m_existed = false;
    uint64_t m_offset = 0;
};

} // namespace coffer::tests
