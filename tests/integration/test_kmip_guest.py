"""Guests whose keys are at a key server: it may go while they run, and the provider may be changed under them."""

import re
import subprocess
import unittest

from harness import BOOT_LIMIT
from test_kmip import KmipTest
from test_tpm import SEAL, UNSEAL

SECRET = "the-sealed-secret"
# A TPM that commits at every round; each failure is counted, and none is forgiven.
ROUNDS = r"""
tpm2_nvdefine 0x1500010 -C o -a 'ownerread|ownerwrite|nt=counter' > /dev/null || echo FAILED define
rounds=0; end=$(($(date +%s) + {seconds}))
while [ $(date +%s) -lt $end ]; do
    tpm2_nvincrement 0x1500010 -C o || echo FAILED increment
    [ "$(tpm2_unseal -c 0x81000100 -p pcr:sha256:0,1,2,3,4,5,7)" = the-sealed-secret ] || echo FAILED unseal
    rounds=$((rounds + 1)); echo round $rounds
done
echo ended after $rounds rounds
"""


class Guest(KmipTest):
    def start(self, name, command):
        """A running VM, with what its command prints."""
        process = self.host.start("run", name, "--accel", "soft", "--exec", command, "--timeout", BOOT_LIMIT * 4,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def read_until(self, process, text):
        printed = ""
        for line in process.stdout:
            printed += line
            if text in line:
                return printed
        self.fail(f"{text!r} was not printed:\n{printed[-4000:]}")

    def test_unseals_while_the_server_is_gone_and_opens_again_when_it_is_back(self):
        self.add("kms")
        self.create("vm", "--provider", "kms", "--disk", self.copy_of_disk())
        self.assertIn(SECRET, self.run_from_disk("vm", SEAL))
        running = self.start("vm", ROUNDS.format(seconds=30))
        self.read_until(running, "round 1")
        self.server.kill()
        self.assertEqual(self.host.json("show", "vm")["state"], "running")
        rest = running.stdout.read()
        self.assertEqual(running.wait(), 0, rest)
        self.assertNotIn("FAILED", rest)
        self.assertRegex(rest, "ended after [1-9]")
        shown = self.host.json("show", "vm")
        self.assertEqual(shown["state"], "locked")
        self.assertIn(self.server.endpoint, shown["reason"])
        self.refused(77, "run", "vm", "--accel", "soft", "--timeout", "1")
        self.server.start()
        self.assertEqual(self.host.json("show", "vm")["state"], "off")
        self.assertIn(SECRET, self.run_from_disk("vm", UNSEAL))

    def test_providers_are_changed_under_a_running_guest(self):
        other = self.new_server("server-2")
        self.add("kms")
        self.add("another kms", servers=[other])
        self.add_provider("local")
        self.create("vm", "--provider", "local", "--disk", self.copy_of_disk())
        running = self.start("vm", f"{SEAL}\nset +e\n{ROUNDS.format(seconds=120)}")
        printed = self.read_until(running, "round 1")
        self.assertNotIn("FAILED", printed)
        for provider in ("kms", "another kms", "kms", "local"):
            self.ok("rekey", "vm", "--provider", provider)
            shown = self.host.json("show", "vm")
            self.assertEqual(shown["provider"]["name"], provider)
            self.assertEqual(shown["state"], "running")
            printed = self.read_until(running, "round ")
            self.assertNotIn("FAILED", printed)
        self.assertIsNone(running.poll(), "the guest ran all the while")
        # Neither server is needed any more.
        self.server.kill()
        other.kill()
        rest = running.stdout.read()
        self.assertEqual(running.wait(), 0, rest)
        self.assertNotIn("FAILED", rest)
        rounds = int(re.search(r"ended after (\d+) rounds", rest)[1])
        count = self.run_from_disk("vm", "tpm2_nvread 0x1500010 -C o | od -An -tx1 | tr -d ' \\n'; echo; "
                                         "tpm2_unseal -c 0x81000100 -p pcr:sha256:0,1,2,3,4,5,7")
        self.assertIn(SECRET, count)
        # A counter begins at the highest value that any counter had (TPM 2.0 Library, part 3, TPM2_NV_Increment).
        self.assertGreaterEqual(int(re.search(r"[0-9a-f]{16}", count)[0], 16), rounds)


del KmipTest  # what is imported for its helpers is no test of this file

if __name__ == "__main__":
    unittest.main(verbosity=2)
