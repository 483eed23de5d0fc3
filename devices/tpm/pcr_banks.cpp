#include "devices/tpm/pcr_banks.hpp"

#include <algorithm>

namespace coffer::devices {

Result<PcrBankMask> parse_pcr_banks(std::string_view list) {
    PcrBankMask banks = 0;
    for (bool more = true; more;) {
        auto comma = list.find(',');
        auto name = list.substr(0, comma);
        more = comma != std::string_view::npos;
        if (more) list.remove_prefix(comma + 1);
        auto bank =
            std::find_if(k_pcr_banks.begin(), k_pcr_banks.end(), [&](PcrBank const& b) { return b.name == name; });
        if (bank == k_pcr_banks.end())
            return make_error(ErrorCode::InvalidArgument, "'{}' is no PCR bank: give a list of {}", name,
                              format_pcr_banks(k_all_pcr_banks));
        if ((banks & bank->bit) != 0)
            return make_error(ErrorCode::InvalidArgument, "PCR bank '{}' is given twice", name);
        banks = static_cast<PcrBankMask>(banks | bank->bit);
    }
    return banks;
}

std::string format_pcr_banks(PcrBankMask banks) {
    std::string text;
    for (auto const& bank : k_pcr_banks)
        if ((banks & bank.bit) != 0) text += fmt::format("{}{}", text.empty() ? "" : ",", bank.name);
    return text;
}

} // namespace coffer::devices
