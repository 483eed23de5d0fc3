#include "vmm/home/home_convert.hpp"

#include "vmm/home/home_build.hpp"
#include "vmm/home/overlay_files.hpp"

namespace coffer::vmm {

Error has_snapshots(std::string_view vm) {
    return make_error(ErrorCode::InvalidArgument,
                      "VM '{}' has snapshots or a suspended state, which belong to the VM as it is: remove them first",
                      vm);
}

Result<void> convert_home(HomeLocation const& location, HomeSession& session, VmConfig const& config, Bytes tpm,
                          std::optional<HomeSeal> seal, HistoryKind event) {
    COFFER_ASSERT(session.encrypted() != seal.has_value());
    COFFER_ASSERT(config.uuid == session.config().uuid && config.name == location.name);
    if (!session.further_files().empty() || has_overlay_files(location)) return has_snapshots(location.name);
    HomeContents contents;
    auto const nvram = TRY(session.load(HomeFile::Nvram));
    auto const record = TRY(read_host_record(location.host_record()));
    if (!record) // opening the home to write has made it
        return make_error(ErrorCode::Io, "this host's record of the home, {}, has gone",
                          location.host_record().native());
    // One sequence counts through both kinds of home, so that none that there was before can be put back.
    uint64_t const sequence = record->sequence + 1;
    auto making = TRY(HomeInTheMaking::begin(location));
    contents.nvram = nvram;
    contents.tpm = tpm;
    contents.history = TRY(session.history());
    contents.event = event;
    TRY(making.write(config, contents, seal ? &*seal : nullptr, sequence));
    // An unencrypted home is refused where the record says that the VM's is encrypted, so this comes before the
    // exchange; an encrypted one of the record's sequence is accepted, and puts the record right.
    if (!seal) TRY(write_host_record(location.host_record(), {config.uuid, false, record->sequence}));
    TRY(making.exchange());
    return write_host_record(location.host_record(), {config.uuid, seal.has_value(), sequence});
}

} // namespace coffer::vmm
