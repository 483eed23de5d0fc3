#include "vmm/eventlog/pcr_text.hpp"

#include <algorithm>
#include <charconv>

namespace coffer::vmm {

namespace {

std::string_view trimmed(std::string_view text) {
    auto const first = text.find_first_not_of(" \t\r");
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// Nothing where it is no value of that many bytes.
ByteVector parse_value(std::string_view text, size_t size) {
    if (text.starts_with("0x") || text.starts_with("0X")) text.remove_prefix(2);
    ByteVector value;
    if (text.size() != 2 * size) return value;
    for (size_t i = 0; i < text.size(); i += 2) {
        uint8_t byte = 0;
        auto const [end, error] = std::from_chars(text.data() + i, text.data() + i + 2, byte, 16);
        if (error != std::errc() || end != text.data() + i + 2) return {};
        value.push_back(static_cast<std::byte>(byte));
    }
    return value;
}

} // namespace

Result<PcrBanks> parse_pcr_text(std::string_view text) {
    PcrBanks banks;
    devices::PcrBank const* bank = nullptr;
    bool known = true; // whether the present bank is one that is computed here
    for (size_t line_number = 1; !text.empty(); ++line_number) {
        auto const end = std::min(text.find('\n'), text.size());
        auto const line = trimmed(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
        if (line.empty()) continue;
        auto wrong = [&] {
            return make_error(ErrorCode::Corrupt, "line {} is no PCR value as tpm2_pcrread prints it", line_number);
        };
        auto const colon = line.find(':');
        if (colon == std::string_view::npos) return wrong();
        auto const left = trimmed(line.substr(0, colon));
        auto const right = trimmed(line.substr(colon + 1));
        if (right.empty()) {
            auto const found = std::ranges::find_if(devices::k_pcr_banks,
                                                    [&](auto const& candidate) { return candidate.name == left; });
            known = found != devices::k_pcr_banks.end();
            bank = known ? &*found : nullptr;
            if (bank) banks[bank->algorithm];
            continue;
        }
        unsigned pcr = 0;
        auto const [stop, error] = std::from_chars(left.data(), left.data() + left.size(), pcr);
        if (error != std::errc() || stop != left.data() + left.size() || pcr >= devices::k_pcr_count) return wrong();
        if (!known) continue;
        auto value = bank ? parse_value(right, bank->digest_size) : ByteVector();
        if (value.empty()) return wrong();
        banks[bank->algorithm][pcr] = std::move(value);
    }
    return banks;
}

} // namespace coffer::vmm
