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

void translation_changed_at(Cpu&, uint64_t) noexcept { ++coffer::tests::translation_changes().pages; }

} // namespace coffer::vmm::soft
