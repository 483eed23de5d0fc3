// A home without a key provider: neither hidden nor protected against change, only against being read in a damaged
// state. It has no TPM. Private to vmm/home.
#pragma once

#include "vmm/home/home_base.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::vmm {

class PlainHome final : public HomeBase {
public:
    static Result<std::unique_ptr<HomeSession>> open(HomeLocation const& location, std::optional<HomeLock> lock,
                                                     std::optional<HostRecord> const& record);

    bool encrypted() const noexcept override { return false; }
    bool has(HomeFile file) const override;
    Result<ByteVector> load(HomeFile file) const override;
    Result<void> commit(HomeFile file, Bytes content) override;
    Result<ByteVector> seal(std::string_view label, Bytes content) const override;
    Result<ByteVector> open_sealed(std::string_view label, Bytes sealed) const override;

private:
    using HomeBase::HomeBase;

    Result<OpenedDataFile> load_checked(HomeFile file) const;
};

} // namespace coffer::vmm
