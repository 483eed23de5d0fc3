// coffer tpm eventlog NAME, or --file LOG
#include <algorithm>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/file.hpp"
#include "vmm/cli/cmd_tpm.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/control/client.hpp"
#include "vmm/control/event_log.hpp"
#include "vmm/eventlog/event_text.hpp"
#include "vmm/eventlog/memory_log.hpp"
#include "vmm/eventlog/pcr_text.hpp"
#include "vmm/home/home_admin.hpp"

namespace coffer::cli {

namespace {

constexpr size_t k_max_pcr_text = size_t{1} << 20;

struct Options {
    std::string name;
    std::string file;
    std::string pcrs;
    std::string save;
    bool json = false;
};

struct Source {
    ByteVector log;
    std::optional<vmm::PcrBanks> pcrs; // what the TPM says; nothing where nobody asked it
};

std::string text_of(Bytes bytes) {
    std::string text;
    for (std::byte b : bytes) text += static_cast<char>(b);
    return text;
}

Result<Source> from_files(Options const& options) {
    Source source;
    source.log = TRY(read_file(options.file, vmm::k_max_event_log));
    if (options.pcrs.empty()) return source;
    auto const content = TRY(read_file(options.pcrs, k_max_pcr_text));
    auto const text = text_of(content);
    source.pcrs = TRY_CONTEXT(vmm::parse_pcr_text(text), options.pcrs);
    return source;
}

Result<ByteVector> content_of(int fd) {
    struct stat info {};
    if (::fstat(fd, &info) != 0) return errno_error(errno, "cannot look at what the VM's process found");
    if (info.st_size < 0 || static_cast<uint64_t>(info.st_size) > vmm::k_max_pieces_file)
        return make_error(ErrorCode::Corrupt, "the VM's process found more than it may");
    ByteVector content(static_cast<size_t>(info.st_size));
    TRY(pread_all(fd, content, 0, "what the VM's process found"));
    return content;
}

Result<Source> from_running_vm(Context const& context, Options const& options) {
    auto const location = TRY(context.location(options.name));
    auto client = vmm::control::Client::connect(location);
    if (!client) {
        if (client.error().code() != ErrorCode::NotFound) return std::move(client).error();
        TRY(vmm::summarize_home(location)); // whether there is such a VM is the better thing to say
        return make_error(ErrorCode::NotFound,
                          "VM '{}' does not run: its PCRs and its event log are gone with its power. A log that was "
                          "taken from the guest is read by --file",
                          options.name);
    }
    UniqueFd const pieces(::memfd_create("event logs", MFD_CLOEXEC));
    if (!pieces.valid()) return errno_error(errno, "cannot make a file in memory");
    auto const answer =
        TRY(client->call(vmm::control::EventLogRequest{}, vmm::control::CallOptions{.descriptor = pieces.get()}));
    Source source;
    source.pcrs.emplace();
    for (auto const& bank : answer.banks) {
        auto& values = (*source.pcrs)[bank.algorithm];
        if (bank.values.size() != values.size())
            return make_error(ErrorCode::Corrupt, "the VM's process gave {} PCRs", bank.values.size());
        std::copy(bank.values.begin(), bank.values.end(), values.begin());
    }
    auto const found = TRY(content_of(pieces.get()));
    source.log = TRY(vmm::choose_log(found, *source.pcrs));
    return source;
}

// A PCR of a bank, as the log has it and as the TPM has it.
struct Verdict {
    enum class Kind : uint8_t {
        Same,
        Different,
        NotInLog, // no event extends it, and it is not as at reset: something measures without this log (IMA)
        Unknown,  // nobody asked the TPM
    };
    std::string_view bank;
    unsigned pcr = 0;
    ByteVector replayed;
    ByteVector actual;
    Kind kind = Kind::Unknown;
};

std::string_view to_string(Verdict::Kind kind) {
    switch (kind) {
    case Verdict::Kind::Same: return "same";
    case Verdict::Kind::Different: return "DIFFERENT";
    case Verdict::Kind::NotInLog: return "not in the log";
    case Verdict::Kind::Unknown: return "unknown";
    }
    return "unknown";
}

std::vector<Verdict> compare(vmm::Replay const& replayed, std::optional<vmm::PcrBanks> const& pcrs) {
    std::vector<Verdict> verdicts;
    for (auto const& [algorithm, values] : replayed.banks) {
        auto const* actual = pcrs && pcrs->contains(algorithm) ? &pcrs->at(algorithm) : nullptr;
        for (unsigned pcr = 0; pcr < values.size(); ++pcr) {
            bool const touched = (replayed.touched >> pcr & 1U) != 0;
            Verdict verdict{devices::find_pcr_bank(algorithm)->name, pcr, values[pcr], {}, Verdict::Kind::Unknown};
            if (actual && !(*actual)[pcr].empty()) {
                verdict.actual = (*actual)[pcr];
                verdict.kind = verdict.actual == verdict.replayed ? Verdict::Kind::Same
                               : touched                          ? Verdict::Kind::Different
                                                                  : Verdict::Kind::NotInLog;
            }
            if (touched || verdict.kind == Verdict::Kind::NotInLog) verdicts.push_back(std::move(verdict));
        }
    }
    return verdicts;
}

std::string type_text(vmm::EventType type) {
    auto const name = vmm::event_type_name(type);
    return name.empty() ? fmt::format("{:#010x}", static_cast<uint32_t>(type)) : std::string(name);
}

std::string algorithm_name(uint16_t algorithm) {
    auto const* bank = devices::find_pcr_bank(algorithm);
    return bank ? std::string(bank->name) : fmt::format("{:#06x}", algorithm);
}

void print_json(Source const& source, vmm::EventLog const& log, std::vector<Verdict> const& verdicts, bool agrees) {
    auto events = nlohmann::json::array();
    for (auto const& event : log.events) {
        nlohmann::json digests = nlohmann::json::object();
        for (auto const& digest : event.digests) digests[algorithm_name(digest.algorithm)] = format_hex(digest.value);
        events.push_back({{"pcr", event.pcr},
                          {"type", type_text(event.type)},
                          {"text", vmm::event_text(event)},
                          {"digests", std::move(digests)},
                          {"size", event.data.size()}});
    }
    nlohmann::json pcrs = nlohmann::json::object();
    for (auto const& verdict : verdicts) {
        nlohmann::json entry = {
            {"pcr", verdict.pcr}, {"replayed", format_hex(verdict.replayed)}, {"verdict", to_string(verdict.kind)}};
        if (!verdict.actual.empty()) entry["tpm"] = format_hex(verdict.actual);
        pcrs[std::string(verdict.bank)].push_back(std::move(entry));
    }
    nlohmann::json json = {{"events", std::move(events)}, {"pcrs", std::move(pcrs)}, {"size", log.size}};
    if (!log.problem.empty()) json["problem"] = log.problem;
    if (source.pcrs) json["agrees"] = agrees;
    print_line(dump(json));
}

void print_text(vmm::EventLog const& log, std::vector<Verdict> const& verdicts) {
    constexpr uint16_t k_sha256 = 0x000B;
    for (size_t i = 0; i < log.events.size(); ++i) {
        auto const& event = log.events[i];
        print_line(
            fmt::format("{:>3}  PCR {:<2}  {}  {}", i + 1, event.pcr, type_text(event.type), vmm::event_text(event)));
        if (event.type == vmm::EventType::NoAction || event.digests.empty()) continue;
        // One digest is enough to tell events apart; --json has them all.
        auto const shown = event.digest_of(k_sha256).empty() ? event.digests.front().algorithm : k_sha256;
        print_line(fmt::format("             {} {}", algorithm_name(shown), format_hex(event.digest_of(shown))));
    }
    print_line(fmt::format("{} events, {} bytes; replayed:", log.events.size(), log.size));
    for (auto const& verdict : verdicts) {
        auto const known = verdict.kind != Verdict::Kind::Unknown;
        print_line(fmt::format("  {:<6} PCR {:<2} {}{}{}", verdict.bank, verdict.pcr, format_hex(verdict.replayed),
                               known ? "  " : "", known ? to_string(verdict.kind) : ""));
        if (verdict.kind == Verdict::Kind::Different || verdict.kind == Verdict::Kind::NotInLog)
            print_line(fmt::format("         the TPM has {}", format_hex(verdict.actual)));
    }
}

Result<int> show(Context const& context, Options const& options) {
    if (options.name.empty() == options.file.empty())
        return make_error(ErrorCode::InvalidArgument, "give the name of a VM that runs, or --file with a log");
    if (options.file.empty() && !options.pcrs.empty())
        return make_error(ErrorCode::InvalidArgument, "--pcrs goes with --file: a VM that runs is asked itself");
    auto const source = TRY(options.file.empty() ? from_running_vm(context, options) : from_files(options));
    if (!options.save.empty()) TRY(replace_file(options.save, source.log));
    auto const log = TRY(vmm::parse_event_log(source.log));
    auto const verdicts = compare(TRY(vmm::replay(log)), source.pcrs);
    auto const is = [](Verdict::Kind kind) { return [kind](Verdict const& verdict) { return verdict.kind == kind; }; };
    bool const differs = std::ranges::any_of(verdicts, is(Verdict::Kind::Different));
    bool const any_same = std::ranges::any_of(verdicts, is(Verdict::Kind::Same));
    if (options.json)
        print_json(source, log, verdicts, any_same && !differs);
    else
        print_text(log, verdicts);
    if (!log.problem.empty()) return make_error(ErrorCode::Corrupt, "{}", log.problem);
    if (differs) return make_error(ErrorCode::Corrupt, "the event log and the PCRs do not agree");
    if (source.pcrs && !any_same)
        return make_error(ErrorCode::Corrupt, "the event log and the TPM have no PCR in common that could be compared");
    return to_int(ExitCode::Ok);
}

} // namespace

void register_tpm_eventlog(CLI::App& tpm, Context& context) {
    auto* verb =
        tpm.add_subcommand("eventlog", "Decode the log of what a guest measured, and compare it with its PCRs");
    auto options = std::make_shared<Options>();
    verb->add_option("NAME", options->name, "The VM, which runs");
    verb->add_option("--file", options->file, "A log that was taken from a guest (binary_bios_measurements)")
        ->type_name("LOG");
    verb->add_option("--pcrs", options->pcrs, "What tpm2_pcrread printed there, to compare with")->type_name("FILE");
    verb->add_option("--save", options->save, "Write the log to a file as well")->type_name("FILE");
    verb->add_flag("--json", options->json, "Print JSON");
    verb->callback([&context, options] { context.action = [&context, options] { return show(context, *options); }; });
}

} // namespace coffer::cli
