// A home with an image in it, and memory to put there.
#pragma once

#include <random>

#include <sys/mman.h>

#include "tests/unit/home/home_fixture.hpp"
#include "vmm/snapshot/machine_image.hpp"

namespace coffer::vmm::tests {

constexpr std::string_view k_image_name = "snapshot-test";
constexpr std::string_view k_planted = "a planted secret of the guest's, in the clear";

// Page-aligned zeros.
class Ram {
public:
    explicit Ram(size_t size) : m_size(size) {
        m_data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        EXPECT_NE(m_data, MAP_FAILED);
    }
    ~Ram() { ::munmap(m_data, m_size); }
    Ram(Ram const&) = delete;
    Ram& operator=(Ram const&) = delete;
    MutBytes bytes() const { return {static_cast<std::byte*>(m_data), m_size}; }

private:
    void* m_data;
    size_t m_size;
};

// Of every kind: clusters of zeros, of noise, of text that compresses, with some pages of either; the planted secret.
inline void fill_with_everything(MutBytes memory) {
    std::mt19937 noise(7);
    for (size_t at = 0; at < memory.size(); at += 4096) {
        auto page = memory.subspan(at, std::min<size_t>(4096, memory.size() - at));
        size_t cluster = at / 65536;
        size_t kind = cluster % 5 == 4 ? at / 4096 % 3 : cluster % 5;
        if (kind == 0 || kind == 3) continue; // zeros
        if (kind == 1)
            for (auto& b : page) b = static_cast<std::byte>(noise());
        else
            for (size_t i = 0; i < page.size(); ++i) page[i] = static_cast<std::byte>("some text, "[i % 11]);
    }
    if (memory.size() > 70000) std::memcpy(memory.data() + 66000, k_planted.data(), k_planted.size());
}

class ImageTest : public HomeTest {
protected:
    void write(HomeSession& home, Bytes state, std::span<Bytes const> memory, ImageOptions const& options = {}) {
        auto writing = home.begin_image(k_image_name);
        ASSERT_TRUE(writing) << writing.error().message();
        auto root = write_machine_image(*writing, state, memory, options);
        ASSERT_TRUE(root) << root.error().message();
        auto done = home.commit_image(*writing, *root);
        ASSERT_TRUE(done) << done.error().message();
    }
    static Result<std::unique_ptr<ImageReader>> open(HomeSession& home) {
        auto opened = TRY(home.open_image(k_image_name));
        return ImageReader::open(std::move(opened));
    }
    std::filesystem::path image_path() const { return file(k_image_name); }
};

// The whole content, or the first error.
inline Result<ByteVector> read_all(ImageReader const& image) {
    auto worker = TRY(ImageReader::Worker::create(image));
    ByteVector all(image.memory_clusters() * image_spec::k_cluster);
    for (uint64_t cluster = 0; cluster < image.memory_clusters(); ++cluster) {
        auto content = TRY(worker.read(cluster));
        EXPECT_EQ(content.empty(), image.is_zero(cluster));
        std::copy(content.begin(), content.end(),
                  all.begin() + static_cast<std::ptrdiff_t>(cluster * image_spec::k_cluster));
    }
    all.resize(image.memory_size());
    return all;
}

} // namespace coffer::vmm::tests
