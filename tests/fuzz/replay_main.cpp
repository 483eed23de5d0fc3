// Stands in for a fuzzing engine in plain builds: runs a target over its corpus and, with --mutations N, over N further
// inputs derived from it in a fixed order, so that a failure repeats.
//
//     fuzz_<name> [--mutations N] CORPUS_FOLDER
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/bytes.hpp"
#include "base/file.hpp"

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size);

namespace {

using coffer::ByteVector;

constexpr size_t k_input_limit = 1 << 20;

void run_one(ByteVector const& input) {
    // SAFETY: std::byte and uint8_t share size and alignment, and may alias.
    LLVMFuzzerTestOneInput(reinterpret_cast<uint8_t const*>(input.data()), input.size());
}

// One to eight small changes: the classic byte-level mutators.
ByteVector mutate(ByteVector input, std::vector<ByteVector> const& corpus, std::mt19937_64& random) {
    auto below = [&](size_t limit) { return limit == 0 ? size_t{0} : static_cast<size_t>(random() % limit); };
    for (size_t change = 1 + below(8); change > 0; --change) {
        size_t at = below(input.size());
        auto position = input.begin() + static_cast<ptrdiff_t>(at);
        switch (below(5)) {
        case 0:
            if (!input.empty()) input[at] ^= std::byte{1} << below(8);
            break;
        case 1:
            if (!input.empty()) input[at] = static_cast<std::byte>(below(256));
            break;
        case 2: input.insert(position, static_cast<std::byte>(below(256))); break;
        case 3:
            if (!input.empty())
                input.erase(position,
                            position + static_cast<ptrdiff_t>(1 + below(std::min<size_t>(16, input.size() - at))));
            break;
        default: {
            auto const& other = corpus[below(corpus.size())];
            size_t from = below(other.size());
            size_t count = below(std::min<size_t>(64, other.size() - from) + 1);
            input.insert(position, other.begin() + static_cast<ptrdiff_t>(from),
                         other.begin() + static_cast<ptrdiff_t>(from + count));
            break;
        }
        }
        if (input.size() > k_input_limit) input.resize(k_input_limit);
    }
    return input;
}

} // namespace

int main(int argc, char** argv) {
    std::vector<std::string_view> arguments(argv + 1, argv + argc);
    uint64_t mutations = 0;
    if (arguments.size() == 3 && arguments[0] == "--mutations") {
        auto text = arguments[1];
        auto parsed = std::from_chars(text.data(), text.data() + text.size(), mutations);
        if (parsed.ec != std::errc{} || parsed.ptr != text.data() + text.size())
            arguments.clear();
        else
            arguments.erase(arguments.begin(), arguments.begin() + 2);
    }
    if (arguments.size() != 1) {
        std::fprintf(stderr, "usage: %s [--mutations N] CORPUS_FOLDER\n", argv[0]);
        return 2;
    }

    std::vector<std::filesystem::path> names;
    std::error_code error;
    for (auto const& entry : std::filesystem::directory_iterator(arguments[0], error))
        if (entry.is_regular_file()) names.push_back(entry.path());
    if (error || names.empty()) {
        std::fprintf(stderr, "no corpus in %s\n", argv[argc - 1]);
        return 1;
    }
    std::sort(names.begin(), names.end());

    std::vector<ByteVector> corpus;
    for (auto const& name : names) {
        auto content = coffer::read_file(name, k_input_limit);
        if (!content) {
            std::fprintf(stderr, "%s\n", content.error().message().c_str());
            return 1;
        }
        run_one(content.value());
        corpus.push_back(std::move(content).value());
    }

    std::mt19937_64 random(20260101);
    for (uint64_t done = 0; done < mutations; ++done) {
        auto const& seed = corpus[static_cast<size_t>(random() % corpus.size())];
        run_one(mutate(seed, corpus, random));
    }
    std::printf("%zu inputs of the corpus and %llu mutations\n", corpus.size(),
                static_cast<unsigned long long>(mutations));
    return 0;
}
