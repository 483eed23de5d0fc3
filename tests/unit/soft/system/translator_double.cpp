#include "tests/unit/soft/system/harness.hpp"

namespace coffer::tests {

TranslationChanges& translation_changes() noexcept {
    static TranslationChanges changes;
    return changes;
}

} // namespace coffer::tests

namespace coffer::vmm::soft {

void translation_changed(Cpu&, bool globals_too) noexcept {
    auto& changes = coffer::tests::translation_changes();
    ++(globals_too ? changes.all : changes.non_global);
}

} // namespace coffer::vmm::soft
