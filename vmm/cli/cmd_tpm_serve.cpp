// coffer tpm serve NAME
#include <CLI/CLI.hpp>

#include "vmm/cli/cmd_tpm.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/tpm_access.hpp"
#include "vmm/tpm/tpm_server.hpp"

namespace coffer::cli {

namespace {

struct ServeOptions {
    std::string name;
    uint16_t port = 0;
    std::string folder;
    int passphrase_fd = -1;
};

Result<vmm::TpmSockets> open_sockets(ServeOptions const& options) {
    if (options.folder.empty()) return vmm::TpmSockets::on_loopback(options.port);
    std::error_code error;
    auto folder = std::filesystem::absolute(options.folder, error);
    if (error) return make_error(ErrorCode::Io, "cannot resolve {}: {}", options.folder, error.message());
    return vmm::TpmSockets::in_folder(folder);
}

Result<int> serve(Context const& context, ServeOptions const& options) {
    if (options.folder.empty() && options.port == 0)
        return make_error(ErrorCode::InvalidArgument, "say where to serve: give --socket-dir DIR or --tcp PORT");
    auto access = TRY(TpmAccess::open(context, options.name, options.passphrase_fd, TpmChanges::Keep));
    TRY(refuse_template(access->home().config()));
    auto sockets = open_sockets(options);
    if (!sockets) return std::move(sockets).error();
    vmm::TpmEngine engine(access->home(), access->tpm());
    // Whoever started this waits for the line.
    if (options.folder.empty())
        print_line(fmt::format("serving the TPM of '{}' on 127.0.0.1, data on port {}, control on port {}; any user of "
                               "this host can reach it",
                               options.name, options.port, options.port + 1));
    else
        print_line(fmt::format("serving the TPM of '{}', data on {}/data, control on {}/ctrl", options.name,
                               options.folder, options.folder));
    TRY(vmm::serve_tpm(engine, *sockets));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_tpm_serve(CLI::App& tpm, Context& context) {
    auto* verb =
        tpm.add_subcommand("serve", "Serve the TPM to QEMU, libvirt or TPM tools as swtpm does, until a client "
                                    "shuts it down or a signal comes");
    auto options = std::make_shared<ServeOptions>();
    verb->add_option("NAME", options->name, "The VM, which is off")->required();
    auto* tcp =
        verb->add_option("--tcp", options->port, "Data channel on PORT of 127.0.0.1, control channel on the next port")
            ->check(CLI::Range(1, 65534))
            ->type_name("PORT");
    verb->add_option("--socket-dir", options->folder, "Data channel on DIR/data, control channel on DIR/ctrl")
        ->excludes(tcp)
        ->type_name("DIR");
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback([&context, options] { context.action = [&context, options] { return serve(context, *options); }; });
}

} // namespace coffer::cli
