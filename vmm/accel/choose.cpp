#include "vmm/accel/choose.hpp"

#include "vmm/accel/kvm/ring0_probe.hpp"

namespace coffer::vmm {

namespace {

Result<kvm::Ring0Measurement> measure() {
    auto system = TRY(kvm::System::open());
    return kvm::measure_ring0(system);
}

} // namespace

AcceleratorChoice choose_accelerator(AcceleratorPreference preference) {
    if (preference == AcceleratorPreference::Kvm) return {AcceleratorKind::Kvm, "kvm was asked for"};
    if (preference == AcceleratorPreference::Soft) return {AcceleratorKind::Soft, "soft was asked for"};
    auto measurement = measure();
    if (!measurement) return {AcceleratorKind::Soft, fmt::format("soft, since {}", measurement.error().message())};
    double millions = measurement->instructions_per_second / 1e6;
    if (measurement->native)
        return {AcceleratorKind::Kvm,
                fmt::format("kvm, since it runs ring 0 natively ({:.0f} million instructions a second measured)",
                            millions)};
    return {AcceleratorKind::Soft,
            fmt::format("soft, since this host's KVM emulates ring 0 ({:.1f} million instructions a second measured)",
                        millions)};
}

} // namespace coffer::vmm
