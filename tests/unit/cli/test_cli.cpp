// The program as a user sees it: verbs that need no guest, their exit codes and their JSON.
#include <array>
#include <cstdio>
#include <fstream>
#include <set>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.hpp"
#include "tests/support/temp_folder.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/memory_size.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/home/home_lock.hpp"

namespace coffer::cli {
namespace {

namespace fs = std::filesystem;

std::string read_text(fs::path const& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
}

struct Done {
    int code = -1;
    std::string out;
    std::string err;
};

class Cli : public testing::Test {
protected:
    void SetUp() override {
        for (auto const* name : {"code.fd", "vars.fd"}) {
            std::ofstream file(m_folder.path() / name);
            file << std::string(64 * 1024, name[0]);
        }
    }

    // Standard input is `input`, and descriptor 0 at once; no terminal is there to be asked on.
    Done coffer(std::vector<std::string> arguments, std::string const& input = {}) {
        auto out = m_folder.path() / "out";
        auto err = m_folder.path() / "err";
        auto in = m_folder.path() / "in";
        std::ofstream(in) << input;
        arguments.insert(arguments.begin(), "coffer");
        pid_t const child = ::fork();
        if (child == 0) {
            ::setsid();
            ::setenv("COFFER_HOME", (m_folder.path() / "root").c_str(), 1);
            ::setenv("XDG_STATE_HOME", (m_folder.path() / "state").c_str(), 1);
            ::dup2(::open(in.c_str(), O_RDONLY), 0);
            ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
            ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
            std::vector<char*> pointers;
            for (auto& argument : arguments) pointers.push_back(argument.data());
            pointers.push_back(nullptr);
            ::execv(COFFER_PROGRAM, pointers.data());
            ::_exit(126);
        }
        int status = 0;
        ::waitpid(child, &status, 0);
        fs::remove(in);
        return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(out), read_text(err)};
    }
    void ok(std::vector<std::string> const& arguments, std::string const& input = {}) {
        auto done = coffer(arguments, input);
        ASSERT_EQ(done.code, 0) << done.err;
    }
    void refused(ExitCode code, std::string_view word, std::vector<std::string> const& arguments,
                 std::string const& input = {}) {
        auto done = coffer(arguments, input);
        EXPECT_EQ(done.code, to_int(code)) << done.out << done.err;
        EXPECT_NE(done.err.find(word), std::string::npos) << done.err;
    }
    std::vector<std::string> create(std::string const& name, std::vector<std::string> const& more = {}) const {
        std::vector<std::string> arguments = {"create",        name,          "--firmware",
                                              path("code.fd"), "--variables", path("vars.fd")};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return arguments;
    }
    nlohmann::json show(std::string const& name) {
        auto done = coffer({"show", name, "--json"});
        EXPECT_EQ(done.code, 0) << done.err;
        return nlohmann::json::parse(done.out);
    }
    nlohmann::json tpm(std::string const& name) {
        auto done = coffer({"tpm", "show", name, "--json"});
        EXPECT_EQ(done.code, 0) << done.err;
        return nlohmann::json::parse(done.out);
    }
    std::string path(std::string const& name) const { return m_folder.path() / name; }
    fs::path home(std::string const& name) const { return m_folder.path() / "root" / "vms" / name; }

    tests::TempFolder m_folder;
};

TEST_F(Cli, EveryVerbHasHelp) {
    for (std::vector<std::string> verb : {std::vector<std::string>{},
                                          {"provider"},
                                          {"provider", "add"},
                                          {"provider", "add", "native"},
                                          {"provider", "add", "kmip"},
                                          {"provider", "list"},
                                          {"provider", "show"},
                                          {"provider", "test"},
                                          {"provider", "default"},
                                          {"provider", "remove"},
                                          {"create"},
                                          {"list"},
                                          {"show"},
                                          {"tpm"},
                                          {"tpm", "show"},
                                          {"tpm", "pcrs"},
                                          {"tpm", "clear"},
                                          {"tpm", "serve"},
                                          {"remove"}}) {
        verb.emplace_back("--help");
        auto done = coffer(verb);
        EXPECT_EQ(done.code, 0);
        EXPECT_NE(done.out.find("Usage:"), std::string::npos);
    }
    EXPECT_EQ(coffer({"--version"}).out.substr(0, 7), "coffer ");
}

TEST_F(Cli, WrongCommandLinesAreUsageErrors) {
    for (std::vector<std::string> const& wrong : {std::vector<std::string>{},
                                                  {"bogus"},
                                                  {"create"},
                                                  {"show"},
                                                  {"list", "--bogus"},
                                                  {"provider"},
                                                  {"create", "x", "--tpm", "bogus"},
                                                  {"create", "x", "--cpus", "many"},
                                                  {"show", "x", "--passphrase-fd", "-1"}})
        EXPECT_EQ(coffer(wrong).code, to_int(ExitCode::Usage));
    refused(ExitCode::Usage, "512M", create("x", {"--memory", "512"}));
    refused(ExitCode::Usage, "memory", create("x", {"--memory", "1M", "--tpm", "none"}));
    refused(ExitCode::Usage, "CPUs", create("x", {"--cpus", "0", "--tpm", "none"}));
    refused(ExitCode::Usage, "name", create("../x", {"--tpm", "none"}));
    refused(ExitCode::Usage, "belong together", {"create", "x", "--tpm", "none", "--firmware", path("code.fd")});
    refused(ExitCode::Usage, "keeper", {"provider", "list", "keeper"});
    EXPECT_FALSE(fs::exists(home("x")));
}

TEST_F(Cli, ATpmWantsAProvider) {
    refused(ExitCode::Usage, "coffer provider add native", create("vm"));
    refused(ExitCode::Usage, "coffer provider add native", create("vm", {"--tpm", "tis"}));
    refused(ExitCode::NotFound, "'nosuch'", create("vm", {"--provider", "nosuch"}));
    EXPECT_FALSE(fs::exists(home("vm")));
    ok({"provider", "add", "native", "one"});
    ok(create("vm"));
    EXPECT_EQ(show("vm")["config"]["tpm"], "crb");
    ok({"provider", "add", "native", "two"});
    refused(ExitCode::Usage, "'one', 'two'", create("vm2"));
    ok(create("vm2", {"--provider", "two", "--tpm", "tis"}));
    EXPECT_EQ(show("vm2")["config"]["tpm"], "tis");
    ok(create("vm3", {"--provider", "two", "--tpm", "tis13"}));
    EXPECT_EQ(show("vm3")["config"]["tpm"], "tis13");
    EXPECT_EQ(show("vm2")["provider"]["name"], "two");
}

TEST_F(Cli, ConfigurationArrives) {
    std::ofstream(path("disk.img")) << std::string(4096, '\0');
    ok({"provider", "add", "native", "one"});
    // The disk is given relative to the current folder and kept absolute; the name may follow it.
    auto relative = fs::relative(path("disk.img"));
    ok({"create", "--disk", relative, "--memory", "2G", "--cpus", "3", "--firmware", path("code.fd"), "--variables",
        path("vars.fd"), "vm"});
    auto config = show("vm")["config"];
    EXPECT_EQ(config["memory"], uint64_t{2} << 30);
    EXPECT_EQ(config["cpus"], 3);
    ASSERT_EQ(config["disks"].size(), 1U);
    EXPECT_EQ(config["disks"][0]["path"], path("disk.img"));
    EXPECT_EQ(config["firmware"], path("code.fd"));
    EXPECT_EQ(show("vm")["state"], "off");
    refused(ExitCode::Exists, "already", create("vm"));
    refused(ExitCode::NotFound, "no-such.img", create("v2", {"--disk", path("no-such.img")}));
    refused(ExitCode::Usage, "neither", create("v2", {"--disk", "/dev/null"}));
    std::ofstream(path("odd.img")) << "odd";
    refused(ExitCode::Usage, "multiple of 512", create("v2", {"--disk", path("odd.img")}));
    refused(ExitCode::Usage, "no firmware image",
            {"create", "v2", "--firmware", path("odd.img"), "--variables", path("vars.fd")});
}

TEST_F(Cli, DiskWithoutPassphraseIsSaidToBeReadable) {
    EXPECT_NE(coffer({"provider", "add", "native", "one"}).out.find("whoever copies the disk"), std::string::npos);
    EXPECT_NE(coffer(create("vm")).out.find("whoever copies the disk"), std::string::npos);
    EXPECT_NE(coffer({"show", "vm"}).out.find("whoever copies the disk"), std::string::npos);
    ok({"provider", "add", "native", "two", "--passphrase-fd", "0"}, "correct horse\n");
    auto created = coffer(create("vm2", {"--provider", "two", "--passphrase-fd", "0"}), "correct horse\n");
    EXPECT_EQ(created.code, 0) << created.err;
    EXPECT_EQ(created.out.find("whoever copies the disk"), std::string::npos);
}

TEST_F(Cli, UnencryptedHomesAreCalledThat) {
    ok(create("plain", {"--tpm", "none"}));
    EXPECT_EQ(show("plain")["encrypted"], false);
    EXPECT_EQ(show("plain")["config"]["tpm"], "none");
    EXPECT_NE(coffer({"show", "plain"}).out.find("unencrypted"), std::string::npos);
    EXPECT_NE(coffer({"list"}).out.find("unencrypted"), std::string::npos);
    // With a provider, a home is encrypted whether it has a TPM or not.
    ok({"provider", "add", "native", "one"});
    ok(create("sealed", {"--tpm", "none", "--provider", "one"}));
    EXPECT_EQ(show("sealed")["encrypted"], true);
}

TEST_F(Cli, StatesAreOffRunningAndLocked) {
    ok({"provider", "add", "native", "one"});
    ok(create("vm"));
    auto list = [&] { return nlohmann::json::parse(coffer({"list", "--json"}).out); };
    ASSERT_EQ(list().size(), 1U);
    EXPECT_EQ(list()[0]["state"], "off");
    {
        auto lock = vmm::HomeLock::acquire(home("vm"));
        ASSERT_TRUE(lock);
        EXPECT_EQ(show("vm")["state"], "running");
        EXPECT_EQ(show("vm")["pid"], ::getpid());
        refused(ExitCode::Busy, "vm", {"remove", "vm", "--yes"});
    }
    EXPECT_EQ(show("vm")["state"], "off");
    fs::rename(m_folder.path() / "root" / "providers", m_folder.path() / "elsewhere");
    auto locked = show("vm");
    EXPECT_EQ(locked["state"], "locked");
    EXPECT_NE(locked["reason"].get<std::string>().find("provider"), std::string::npos);
    EXPECT_EQ(locked["name"], "vm");
    EXPECT_FALSE(locked.contains("config"));
    EXPECT_EQ(list()[0]["state"], "locked");
    EXPECT_EQ(coffer({"list"}).code, 0);
    EXPECT_EQ(coffer({"show", "vm"}).code, 0);
    // Removing needs no key.
    ok({"remove", "vm", "--yes"});
    EXPECT_EQ(coffer({"list", "--json"}).out, "[]\n");
}

TEST_F(Cli, PassphraseOpensAndItsAbsenceLocks) {
    ok({"provider", "add", "native", "one", "--passphrase-fd", "0"}, "correct horse\n");
    refused(ExitCode::NoAccess, "passphrase is wrong", create("vm", {"--passphrase-fd", "0"}), "wrong\n");
    refused(ExitCode::NoAccess, "--passphrase-fd", create("vm"));
    EXPECT_FALSE(fs::exists(home("vm")));
    ok(create("vm", {"--passphrase-fd", "0"}), "correct horse\n");
    EXPECT_EQ(show("vm")["state"], "locked");
    auto unlocked = coffer({"show", "vm", "--json", "--passphrase-fd", "0"}, "correct horse");
    EXPECT_EQ(nlohmann::json::parse(unlocked.out)["state"], "off");
}

TEST_F(Cli, WideModeOfTheKeyIsRefused) {
    ok({"provider", "add", "native", "one"});
    for (auto const& entry : fs::recursive_directory_iterator(m_folder.path() / "root" / "providers"))
        if (entry.path().filename() == "kdk.1") {
            ASSERT_EQ(::chmod(entry.path().c_str(), 0644), 0);
        }
    refused(ExitCode::NoAccess, "chmod 600", create("vm"));
}

TEST_F(Cli, DamagedHomeIsLockedAndSaysWhy) {
    ok({"provider", "add", "native", "one"});
    ok(create("vm"));
    auto keys = home("vm") / "keys";
    auto content = read_text(keys);
    content[content.size() / 2] ^= 1;
    std::ofstream(keys) << content;
    EXPECT_EQ(show("vm")["state"], "locked");
    EXPECT_NE(show("vm")["reason"].get<std::string>().find(keys.native()), std::string::npos);
    EXPECT_EQ(read_text(keys), content);
}

TEST_F(Cli, PcrBanksAreChosenAtCreate) {
    ok({"provider", "add", "native", "local"});
    refused(ExitCode::Usage, "md5", create("vm", {"--pcr-banks", "sha256,md5"}));
    refused(ExitCode::Usage, "--pcr-banks", create("vm", {"--tpm", "none", "--pcr-banks", "sha256"}));
    EXPECT_FALSE(fs::exists(home("vm")));
    ok(create("vm", {"--pcr-banks", "sha512,sha256"}));
    ok(create("usual"));
    EXPECT_EQ(tpm("vm")["banks"], nlohmann::json::array({"sha256", "sha512"}));
    EXPECT_EQ(tpm("usual")["banks"], nlohmann::json::array({"sha1", "sha256", "sha384", "sha512"}));
    EXPECT_EQ(show("vm")["config"]["pcr_banks"], "sha256,sha512");
    auto pcrs = nlohmann::json::parse(coffer({"tpm", "pcrs", "vm", "--json"}).out);
    EXPECT_EQ(pcrs.size(), 2U);
    EXPECT_EQ(pcrs["sha256"].size(), 24U);
    EXPECT_EQ(pcrs["sha256"][0], std::string(64, '0'));
}

TEST_F(Cli, LookingAtATpmChangesNothing) {
    ok({"provider", "add", "native", "local"});
    ok(create("vm"));
    auto content = [&] {
        std::string all;
        for (auto const* name : {"keys", "config", "nvram", "tpm"}) all += read_text(home("vm") / name);
        return all;
    };
    auto before = content();
    auto first = tpm("vm");
    EXPECT_EQ(first["ek"].size(), 3U);
    EXPECT_EQ(first["ek"][0]["name"].get<std::string>().size(), 68U);
    EXPECT_EQ(first, tpm("vm"));
    ok({"tpm", "show", "vm"});
    ok({"tpm", "pcrs", "vm"});
    EXPECT_EQ(content(), before);
}

TEST_F(Cli, TpmVerbsAreRefusedWhereTheyCannotWork) {
    ok({"provider", "add", "native", "local"});
    ok(create("vm"));
    ok(create("without", {"--tpm", "none"}));
    for (std::vector<std::string> verb : {std::vector<std::string>{"tpm", "show"}, {"tpm", "pcrs"}, {"tpm", "clear"}}) {
        auto on = [&](char const* name) {
            auto arguments = verb;
            arguments.emplace_back(name);
            return arguments;
        };
        refused(ExitCode::NotFound, "nosuch", on("nosuch"));
        refused(ExitCode::Usage, "no TPM", on("without"));
        auto lock = vmm::HomeLock::acquire(home("vm"));
        ASSERT_TRUE(lock);
        refused(ExitCode::Busy, "process", on("vm"));
    }
}

TEST_F(Cli, ClearAsksUnlessToldAndClears) {
    ok({"provider", "add", "native", "local"});
    ok(create("vm"));
    auto before = tpm("vm")["ek"];
    auto state = read_text(home("vm") / "tpm");
    refused(ExitCode::Usage, "--yes", {"tpm", "clear", "vm"});
    EXPECT_EQ(read_text(home("vm") / "tpm"), state);
    ok({"tpm", "clear", "vm", "--yes"});
    EXPECT_NE(read_text(home("vm") / "tpm"), state);
    EXPECT_EQ(tpm("vm")["ek"], before);
}

TEST_F(Cli, ProvidersAreChosenTestedAndRemoved) {
    ok({"provider", "add", "native", "one"});
    ok({"provider", "add", "native", "two", "--passphrase-fd", "0"}, "correct horse\n");
    refused(ExitCode::Usage, "provider default", create("vm"));
    refused(ExitCode::NotFound, "'three'", {"provider", "default", "three"});
    ok({"provider", "default", "one"});
    ok(create("vm"));
    EXPECT_EQ(show("vm")["provider"]["name"], "one");
    auto shown = nlohmann::json::parse(coffer({"provider", "show", "one", "--json"}).out);
    EXPECT_EQ(shown["vms"], nlohmann::json::array({"vm"}));
    EXPECT_EQ(shown["default"], true);
    EXPECT_NE(coffer({"provider", "list"}).out.find("one (default)"), std::string::npos);

    auto steps = nlohmann::json::parse(coffer({"provider", "test", "one", "--json"}).out);
    ASSERT_EQ(steps.size(), 3U);
    for (auto const& step : steps) EXPECT_EQ(step["ok"], true) << step;
    ok({"provider", "test", "two", "--passphrase-fd", "0"}, "correct horse\n");
    refused(ExitCode::NoAccess, "does not work", {"provider", "test", "two", "--passphrase-fd", "0"}, "wrong\n");

    refused(ExitCode::Busy, "vm", {"provider", "remove", "one", "--yes"});
    // A home that cannot be read may be anybody's.
    std::ofstream(home("vm") / "keys", std::ios::app) << "more";
    refused(ExitCode::Busy, "vm", {"provider", "remove", "two", "--yes"});
    ok({"remove", "vm", "--yes"});
    refused(ExitCode::Busy, "certificate authority", {"provider", "remove", "one", "--yes"});
    EXPECT_EQ(nlohmann::json::parse(coffer({"provider", "show", "one", "--json"}).out)["authority"], true);
    ok({"ca", "protect", "two", "--passphrase-fd", "0"}, "correct horse\n");
    refused(ExitCode::Usage, "--yes", {"provider", "remove", "one"});
    ok({"provider", "remove", "one", "--yes"});
    refused(ExitCode::NotFound, "'one'", {"provider", "show", "one"});
    // The default is gone with it, and one provider is left.
    ok(create("vm2", {"--passphrase-fd", "0"}), "correct horse\n");
}

TEST_F(Cli, KmipProvidersWantUsableFiles) {
    auto add = [&](std::vector<std::string> const& more) {
        std::vector<std::string> arguments = {"provider",  "add",    "kmip",      "kms",   "--ca",
                                              path("pem"), "--cert", path("pem"), "--key", path("pem")};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return arguments;
    };
    refused(ExitCode::Usage, "--endpoint", add({}));
    refused(ExitCode::NotFound, "pem", add({"--endpoint", "a:1"}));
    std::ofstream(path("pem")) << "not a certificate";
    refused(ExitCode::Usage, "--ca", add({"--endpoint", "a:1"}));
    refused(ExitCode::Usage, "endpoint", add({"--endpoint", "a:b"}));
    refused(ExitCode::Usage, "'3.0'", add({"--endpoint", "a:1", "--version", "3.0"}));
    refused(ExitCode::Usage, "1.4", add({"--endpoint", "a:1", "--version", "1.2", "--wrap-at-server"}));
    refused(ExitCode::Usage, "SHA-256", add({"--endpoint", "a:1", "--pin", "12"}));
    EXPECT_EQ(coffer({"provider", "list", "--json"}).out, "[]\n");
}

TEST_F(Cli, RemoveAsksUnlessTold) {
    ok(create("plain", {"--tpm", "none"}));
    refused(ExitCode::Usage, "--yes", {"remove", "plain"}, "plain\n");
    EXPECT_TRUE(fs::exists(home("plain")));
    refused(ExitCode::NotFound, "'nosuch'", {"remove", "nosuch", "--yes"});
    refused(ExitCode::NotFound, "'nosuch'", {"show", "nosuch"});
    ok({"remove", "plain", "--yes"});
    EXPECT_FALSE(fs::exists(home("plain")));
}

TEST_F(Cli, HomeRootIsTakenBeforeAndBehindTheVerb) {
    ok({"--home-root", path("other"), "provider", "add", "native", "there"});
    EXPECT_EQ(coffer({"provider", "list", "--json"}).out, "[]\n");
    auto listed = coffer({"provider", "list", "--json", "--home-root", path("other")});
    EXPECT_EQ(nlohmann::json::parse(listed.out)[0]["name"], "there");
    EXPECT_EQ(nlohmann::json::parse(listed.out)[0]["passphrase"], false);
}

// A passphrase is in no file, and in nothing that was printed.
TEST_F(Cli, SecretsAreInNoFileAndNoOutput) {
    std::string const secret = "planted-passphrase-0451";
    std::string printed;
    auto note = [&](Done const& done) { printed += done.out + done.err; };
    note(coffer({"provider", "add", "native", "one", "--passphrase-fd", "0"}, secret + "\n"));
    note(coffer(create("vm", {"--passphrase-fd", "0"}), secret + "\n"));
    note(coffer(create("v2", {"--passphrase-fd", "0"}), secret + "x\n"));
    note(coffer({"show", "vm", "--passphrase-fd", "0"}, secret + "\n"));
    note(coffer({"list", "--json"}));
    EXPECT_EQ(printed.find(secret), std::string::npos);
    EXPECT_NE(printed.find("created VM 'vm'"), std::string::npos) << printed;
    unsigned files = 0;
    for (auto const* folder : {"root", "state"})
        for (auto const& entry : fs::recursive_directory_iterator(m_folder.path() / folder)) {
            if (!entry.is_regular_file()) continue;
            ++files;
            auto content = read_text(entry.path());
            EXPECT_EQ(content.find(secret), std::string::npos) << entry.path();
            // The variable store is 'v' 64 Ki times, the configuration has the firmware's path.
            EXPECT_EQ(content.find(std::string(32, 'v')), std::string::npos) << entry.path();
            EXPECT_EQ(content.find("code.fd"), std::string::npos) << entry.path();
        }
    // keys, config, nvram, tpm, lock; provider, kdk.1, lock; ca/authority, ca/lock; the host's record and reminder
    EXPECT_EQ(files, 12U);
}

TEST(MemorySize, TakesUnitsAndNothingElse) {
    EXPECT_EQ(*parse_memory_size("512M"), uint64_t{512} << 20);
    EXPECT_EQ(*parse_memory_size("4G"), uint64_t{4} << 30);
    EXPECT_EQ(*parse_memory_size("1g"), uint64_t{1} << 30);
    EXPECT_EQ(*parse_memory_size("2GiB"), uint64_t{2} << 30);
    EXPECT_EQ(*parse_memory_size("1T"), uint64_t{1} << 40);
    EXPECT_EQ(*parse_memory_size("64K"), uint64_t{64} << 10);
    for (auto const* text : {"", "M", "512", "1.5G", "-1G", "+1G", " 1G", "1G ", "1GB", "1X", "0x10M",
                             "99999999999999999999M", "16777216T"})
        EXPECT_FALSE(parse_memory_size(text)) << text;
}

TEST(Wording, SizesAreExact) {
    EXPECT_EQ(format_size(0), "0 bytes");
    EXPECT_EQ(format_size(uint64_t{1} << 30), "1 GiB");
    EXPECT_EQ(format_size((uint64_t{1} << 30) + (uint64_t{1} << 20)), "1025 MiB");
    EXPECT_EQ(format_size(540'672), "528 KiB");
    EXPECT_EQ(format_size(1001), "1001 bytes");
}

TEST(ExitCodes, EveryErrorHasOneAndNoneIsSuccess) {
    for (uint8_t code = 0; code <= static_cast<uint8_t>(ErrorCode::Cancelled); ++code)
        EXPECT_NE(exit_code_for(static_cast<ErrorCode>(code)), ExitCode::Ok);
    EXPECT_EQ(to_int(exit_code_for(ErrorCode::Integrity)), 65);
    EXPECT_EQ(to_int(exit_code_for(ErrorCode::Timeout)), 124);
}

} // namespace
} // namespace coffer::cli
