#include "devices/chipset/fw_cfg.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "base/log.hpp"
#include "base/tagged.hpp"
#include "devices/chipset/fw_cfg_state.hpp"

namespace coffer::devices {

using namespace fwcfg;

namespace {
constexpr size_t k_chunk = 0x1'0000; // of zeros behind an item's end
}

FwCfg::FwCfg(GuestMemory& memory) : m_memory(memory) {
    Bytes signature = as_bytes("QEMU");
    set_key(SIGNATURE, ByteVector(signature.begin(), signature.end()));
    set_key_u32(ID, TRADITIONAL | DMA);
    set_key(FILE_DIR, {});
}

void FwCfg::set_key(uint16_t key, ByteVector content) {
    Item item;
    item.content = std::move(content);
    m_items.insert_or_assign(key, std::move(item));
}

void FwCfg::set_key_u16(uint16_t key, uint16_t value) {
    Bytes bytes = object_bytes(value);
    set_key(key, ByteVector(bytes.begin(), bytes.end()));
}

void FwCfg::set_key_u32(uint16_t key, uint32_t value) {
    Bytes bytes = object_bytes(value);
    set_key(key, ByteVector(bytes.begin(), bytes.end()));
}

void FwCfg::set_linux_boot(ByteVector setup, ByteVector kernel, ByteVector initrd, std::string_view command_line) {
    auto set = [this](Key size_key, Key data_key, ByteVector content) {
        set_key_u32(size_key, static_cast<uint32_t>(content.size()));
        set_key(data_key, std::move(content));
    };
    set(SETUP_SIZE, SETUP_DATA, std::move(setup));
    set(KERNEL_SIZE, KERNEL_DATA, std::move(kernel));
    set(INITRD_SIZE, INITRD_DATA, std::move(initrd));
    ByteVector text;
    append(text, as_bytes(command_line));
    text.push_back(std::byte{0});
    set(CMDLINE_SIZE, CMDLINE_DATA, std::move(text));
}

Result<void> FwCfg::add(Item item) {
    if (item.name.empty() || item.name.size() > k_max_name || item.name.find('\0') != std::string::npos)
        return make_error(ErrorCode::InvalidArgument, "fw_cfg file name '{}' is empty or longer than {} characters",
                          item.name, k_max_name);
    if (m_keys.contains(item.name))
        return make_error(ErrorCode::AlreadyExists, "fw_cfg file '{}' was added already", item.name);
    if (m_keys.size() >= k_max_files) return make_error(ErrorCode::NoSpace, "more than {} fw_cfg files", k_max_files);
    // Items are never removed, so keys are dense; a snapshot's key means the same item after the same configuration.
    auto key = static_cast<uint16_t>(FILE_FIRST + m_keys.size());
    m_keys.emplace(item.name, key);
    m_items.insert_or_assign(key, std::move(item));
    return {};
}

Result<void> FwCfg::add_file(std::string_view name, ByteVector content) {
    Item item;
    item.name = name;
    item.content = std::move(content);
    return add(std::move(item));
}

Result<void> FwCfg::add_built_file(std::string_view name, Builder builder) {
    Item item;
    item.name = name;
    item.builder = std::move(builder);
    return add(std::move(item));
}

Result<void> FwCfg::add_writable_file(std::string_view name, ByteVector content, OnWrite on_write) {
    Item item;
    item.name = name;
    item.initial = content;
    item.content = std::move(content);
    item.writable = true;
    item.on_write = std::move(on_write);
    return add(std::move(item));
}

void FwCfg::build(Item& item) {
    if (!item.builder) return;
    ByteVector content = item.builder();
    if (item.built && content.size() > item.content.size()) {
        static log::RateLimit limit;
        if (limit.allow())
            log::warning("fw_cfg: '{}' grew from {} to {} bytes after the guest read the directory; not updated",
                         item.name, item.content.size(), content.size());
        return;
    }
    if (item.built) content.resize(item.content.size());
    item.content = std::move(content);
    item.built = true;
}

// Sorted by name, as m_keys is.
void FwCfg::build_directory() {
    ByteVector directory(4 + m_keys.size() * k_directory_entry);
    store_be<uint32_t>(directory, 0, static_cast<uint32_t>(m_keys.size()));
    size_t at = 4;
    for (auto const& [name, key] : m_keys) {
        Item& item = m_items.at(key);
        if (!item.built) build(item);
        store_be<uint32_t>(directory, at, static_cast<uint32_t>(item.content.size()));
        store_be<uint16_t>(directory, at + 4, key);
        std::ranges::copy(as_bytes(name), directory.begin() + static_cast<std::ptrdiff_t>(at) + 8);
        at += k_directory_entry;
    }
    m_items.at(FILE_DIR).content = std::move(directory);
}

FwCfg::Item* FwCfg::selected() noexcept {
    auto item = m_items.find(m_key);
    return item == m_items.end() ? nullptr : &item->second;
}

void FwCfg::select(uint16_t key) {
    m_key = key & static_cast<uint16_t>(~k_write_channel);
    m_offset = 0;
    if (m_key == FILE_DIR)
        build_directory();
    else if (Item* item = selected())
        build(*item);
}

ByteVector FwCfg::content(std::string_view name) {
    auto key = m_keys.find(name);
    if (key == m_keys.end()) return {};
    Item& item = m_items.at(key->second);
    build(item);
    return item.content;
}

IoStatus FwCfg::io_read(uint16_t offset, MutBytes to) {
    if (offset != k_data) return IoStatus::NoSuchRegister;
    if (to.size() != 1) return IoStatus::BadSize;
    // Nothing is left, or no such item: zeros.
    Item const* item = selected();
    to[0] = item && m_offset < item->content.size() ? item->content[m_offset++] : std::byte{0};
    return IoStatus::Ok;
}

IoStatus FwCfg::io_write(uint16_t offset, Bytes from) {
    if (offset != k_selector) return IoStatus::NoSuchRegister;
    if (from.size() != 2) return IoStatus::BadSize;
    select(load_le<uint16_t>(from));
    return IoStatus::Ok;
}

IoStatus FwCfg::dma_read(uint16_t offset, MutBytes to) {
    if (to.size() != 1 && to.size() != 2 && to.size() != 4 && to.size() != 8) return IoStatus::BadSize;
    std::array<std::byte, k_dma_ports> signature;
    store_be<uint64_t>(signature, 0, k_dma_signature);
    if (offset + to.size() > k_dma_ports) return IoStatus::BadSize;
    std::ranges::copy(Bytes(signature).subspan(offset, to.size()), to.begin());
    return IoStatus::Ok;
}

IoStatus FwCfg::dma_write(uint16_t offset, Bytes from) {
    if (from.size() == 8 && offset == k_dma_high) {
        m_dma_high = 0;
        run_dma(GuestPhysAddr(load_be<uint64_t>(from)));
        return IoStatus::Ok;
    }
    if (from.size() != 4) return IoStatus::BadSize;
    if (offset == k_dma_high) {
        m_dma_high = load_be<uint32_t>(from);
        return IoStatus::Ok;
    }
    if (offset != k_dma_low) return IoStatus::Unaligned;
    uint64_t address = uint64_t{std::exchange(m_dma_high, 0)} << 32 | load_be<uint32_t>(from);
    run_dma(GuestPhysAddr(address));
    return IoStatus::Ok;
}

void FwCfg::run_dma(GuestPhysAddr descriptor) {
    static log::RateLimit limit;
    std::array<std::byte, k_dma_access_size> access;
    if (!m_memory.read(descriptor, access)) {
        if (limit.allow()) log::warning("fw_cfg: guest's DMA descriptor at {:#x} is not in RAM", descriptor.value());
        return;
    }
    auto control = load_be<uint32_t>(access, 0);
    bool done = transfer(control, load_be<uint32_t>(access, 4), GuestPhysAddr(load_be<uint64_t>(access, 8)));
    if (!done && limit.allow())
        log::warning("fw_cfg: guest's DMA transfer (control {:#x}) of item {:#x} failed", control, m_key);
    std::array<std::byte, 4> result;
    store_be<uint32_t>(result, 0, done ? 0 : k_dma_error);
    // It was readable a moment ago; where it is no longer, the guest took it away itself.
    (void)m_memory.write(descriptor, result);
}

bool FwCfg::transfer(uint32_t control, uint32_t length, GuestPhysAddr address) {
    if (control & k_dma_select) select(static_cast<uint16_t>(control >> k_dma_key_shift));
    Item* item = selected();
    if (control & k_dma_read) return read_to_guest(item, length, address);
    if (control & k_dma_write) return write_from_guest(item, length, address);
    if (control & k_dma_skip) {
        size_t left = item ? item->content.size() - std::min<size_t>(m_offset, item->content.size()) : 0;
        m_offset += static_cast<uint32_t>(std::min<size_t>(length, left));
    }
    return true;
}

bool FwCfg::read_to_guest(Item const* item, uint32_t length, GuestPhysAddr to) {
    size_t left = item ? item->content.size() - std::min<size_t>(m_offset, item->content.size()) : 0;
    auto from_item = static_cast<uint32_t>(std::min<size_t>(length, left));
    if (from_item > 0) {
        if (!m_memory.write(to, Bytes(item->content).subspan(m_offset, from_item))) return false;
        m_offset += from_item;
    }
    static constexpr std::array<std::byte, k_chunk> k_zeros{};
    for (uint64_t done = from_item; done < length;) {
        size_t count = std::min<size_t>(k_chunk, length - done);
        auto at = to.checked_add(done);
        if (!at || !m_memory.write(*at, Bytes(k_zeros).first(count))) return false;
        done += count;
    }
    return true;
}

bool FwCfg::write_from_guest(Item* item, uint32_t length, GuestPhysAddr from) {
    if (!item || !item->writable || m_offset > item->content.size() || length > item->content.size() - m_offset)
        return false;
    if (!m_memory.read(from, MutBytes(item->content).subspan(m_offset, length))) return false;
    m_offset += length;
    item->written = true;
    if (item->on_write) item->on_write(item->content);
    return true;
}

void FwCfg::reset(ResetKind) noexcept {
    m_key = 0;
    m_offset = 0;
    m_dma_high = 0;
    for (auto& [key, item] : m_items) {
        item.built = false;
        if (item.writable) item.content = item.initial;
        item.written = false;
    }
}

Result<ByteVector> FwCfg::save() const {
    FwCfgState state;
    state.key = m_key;
    state.offset = m_offset;
    state.dma_high = m_dma_high;
    for (auto const& [key, item] : m_items)
        if (item.written) state.written.push_back({item.name, item.content});
    return encode_fields(std::move(state));
}

Result<void> FwCfg::restore(Bytes bytes) {
    FwCfgState state;
    TRY(decode_fields(bytes, state));
    if (state.key & k_write_channel) return make_error(ErrorCode::Corrupt, "saved state of fw_cfg is out of range");
    std::map<uint16_t, ByteVector> written;
    for (auto& saved : state.written) {
        auto key = m_keys.find(saved.name);
        Item const* item = key == m_keys.end() ? nullptr : &m_items.at(key->second);
        if (!item || !item->writable || item->content.size() != saved.content.size() ||
            !written.emplace(key->second, std::move(saved.content)).second)
            return make_error(ErrorCode::Corrupt, "saved state of fw_cfg does not fit its item '{}'", saved.name);
    }
    // Sizes that the guest has read from the directory are fixed from here on, as they were.
    for (auto& [key, item] : m_items) {
        item.built = false;
        if (item.writable) item.content = item.initial;
        item.written = false;
    }
    for (auto& [key, content] : written) {
        Item& item = m_items.at(key);
        item.content = std::move(content);
        item.written = true;
    }
    select(state.key);
    m_offset = state.offset;
    m_dma_high = state.dma_high;
    return {};
}

} // namespace coffer::devices
