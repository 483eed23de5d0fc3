// The tags of an authenticated disk as they lie in the image: tag blocks, the table of their MACs, and the root over
// the table. The table is in memory; of tag blocks, those used last are. Private to vmm/disk.
#pragma once

#include <filesystem>
#include <list>
#include <map>
#include <unordered_map>

#include "devices/core/backends.hpp"
#include "vmm/disk/disk_seal.hpp"

namespace coffer::vmm {

class DiskTags {
public:
    // References outlive the object.
    DiskTags(disk_spec::Layout const& layout, DiskSeal& seal, devices::BlockBackend& file,
             std::filesystem::path const& path)
        : m_layout(layout), m_seal(seal), m_file(file), m_path(path) {}

    // Reads the table. Integrity where its root is another.
    Result<void> load(crypto::Digest const& root);
    static Result<crypto::Digest> empty_root(disk_spec::Layout const& layout, DiskSeal& seal);

    // Integrity where the unit's tag block was changed.
    Result<TagEntry> entry(uint64_t unit);
    // No unit of the tag block was ever written.
    bool unwritten(uint64_t tag_block) const;

    // Blocks to be written in place, by index, with their MACs.
    struct Block {
        ByteVector content;
        crypto::Digest mac{};
    };
    struct Change {
        std::map<uint64_t, Block> tag_blocks;
        std::map<uint64_t, Block> table_blocks;
        crypto::Digest root{};
    };
    // What the image becomes with these entries, by unit. Nothing is changed yet.
    Result<Change> prepare(std::map<uint64_t, TagEntry> const& entries);
    // The change is in the image.
    void adopt(Change change);

private:
    Result<ByteVector const*> tag_block(uint64_t index);
    void keep(uint64_t index, ByteVector content);
    crypto::Digest expected_mac(uint64_t tag_block) const;
    static Result<crypto::Digest> root_of(DiskSeal& seal, std::vector<crypto::Digest> const& digests);

    disk_spec::Layout const& m_layout;
    DiskSeal& m_seal;
    devices::BlockBackend& m_file;
    std::filesystem::path const& m_path;

    ByteVector m_table;
    std::vector<crypto::Digest> m_digests; // of the table's blocks

    struct Cached {
        ByteVector content;
        std::list<uint64_t>::iterator use;
    };
    std::unordered_map<uint64_t, Cached> m_cache;
    std::list<uint64_t> m_uses; // newest first
};

} // namespace coffer::vmm
