#include "vmm/cli/context.hpp"

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "base/file.hpp"

namespace coffer::cli {

void add_passphrase_option(CLI::App& verb, int& passphrase_fd) {
    verb.add_option("--passphrase-fd", passphrase_fd,
                    "Read the key provider's passphrase from this open file descriptor instead of asking for it")
        ->check(CLI::Range(0, 1 << 20))
        ->type_name("N");
}

void print_line(std::string_view line) {
    std::string text(line);
    text += '\n';
    // A closed standard output is nobody's loss: whoever closed it does not read.
    [[maybe_unused]] auto written = write_all(STDOUT_FILENO, as_bytes(text), "standard output");
}

} // namespace coffer::cli
