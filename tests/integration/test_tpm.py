"""Real tpm2-tools in a real guest: everything a TPM's user expects, over CRB and over TIS, and over a power cycle."""

import re
import unittest

from harness import CMDLINE, HostTest

SEAL = r"""
set -e
cd /tmp
tpm2_selftest -f
tpm2_getrandom --hex 16 > random; [ $(wc -c < random) -eq 32 ]
tpm2_pcrread sha256:0,1,2,3,4,5,6,7 -o pcrs > /dev/null
tpm2_startauthsession -S session; tpm2_policypcr -S session -l sha256:0,1,2,3,4,5,7 -L policy > /dev/null
tpm2_flushcontext session
tpm2_createprimary -C o -G ecc -c primary.ctx > /dev/null
echo -n 'the-sealed-secret' | tpm2_create -C primary.ctx -L policy -i- -u seal.pub -r seal.priv > /dev/null
tpm2_load -C primary.ctx -u seal.pub -r seal.priv -c seal.ctx > /dev/null
tpm2_evictcontrol -C o -c seal.ctx 0x81000100 > /dev/null
tpm2_createprimary -C o -G rsa -c rsa.ctx > /dev/null
tpm2_evictcontrol -C o -c rsa.ctx 0x81000101 > /dev/null
tpm2_nvdefine 0x1500001 -C o -s 32 -a 'ownerread|ownerwrite' > /dev/null
echo -n 'outlives-the-power-cycle' | tpm2_nvwrite 0x1500001 -C o -i-
tpm2_unseal -c 0x81000100 -p pcr:sha256:0,1,2,3,4,5,7
"""

UNSEAL = r"""
set -e
tpm2_unseal -c 0x81000100 -p pcr:sha256:0,1,2,3,4,5,7; echo
tpm2_nvread 0x1500001 -C o -s 24; echo
tpm2_readpublic -c 0x81000101 > /dev/null
tpm2_pcrextend 7:sha256=0000000000000000000000000000000000000000000000000000000000000001
! tpm2_unseal -c 0x81000100 -p pcr:sha256:0,1,2,3,4,5,7 2> /dev/null
"""

# The firmware's log, replayed, has to give what the TPM says.
REPLAY = r"""
tpm2_pcrread sha256:0,1,2,3,4,5,6,7+sha384:0,1,2,3,4,5,6,7
echo REPLAYED
tpm2_eventlog /sys/kernel/security/tpm0/binary_bios_measurements | sed -n '/^pcrs:/,$p'
"""


def banks(text):
    """{bank: {pcr: digest}} of what tpm2_pcrread and tpm2_eventlog print alike."""
    result, bank = {}, None
    for line in text.splitlines():
        if match := re.match(r"\s*(sha\d+)\s*:", line):
            bank = result.setdefault(match[1], {})
        elif (match := re.match(r"\s*(\d+)\s*:\s*0x([0-9A-Fa-f]+)", line)) and bank is not None:
            bank[int(match[1])] = match[2].lower()
    return result


class Tpm:
    kind = None

    def test_seal_power_cycle_unseal(self):
        self.add_provider()
        self.create("vm", "--tpm", self.kind, "--provider", "local", "--disk", self.copy_of_disk())
        self.assertIn("the-sealed-secret", self.run_from_disk("vm", SEAL))
        out = self.run_from_disk("vm", UNSEAL)
        self.assertIn("the-sealed-secret", out)
        self.assertIn("outlives-the-power-cycle", out)

    def test_event_log_replays_to_the_pcrs(self):
        self.add_provider()
        self.create("vm", "--tpm", self.kind, "--provider", "local", "--disk", self.copy_of_disk())
        read, _, replayed = self.run_from_disk("vm", REPLAY).partition("REPLAYED")
        read, replayed = banks(read), banks(replayed)
        for bank, size in (("sha256", 64), ("sha384", 96)):
            self.assertEqual(sorted(read[bank]), list(range(8)))
            for pcr in range(8):
                self.assertNotEqual(read[bank][pcr], "0" * size, f"PCR {pcr} was extended")
                self.assertEqual(read[bank][pcr], replayed[bank][pcr], f"{bank} PCR {pcr}")


class Crb(Tpm, HostTest):
    kind = "crb"

    def test_bad_commands_get_errors_and_harm_nobody(self):
        self.add_provider()
        self.create("vm", "--tpm", "crb", "--provider", "local")
        out = self.run_in_guest("vm", r"""
            for n in 1 10 11 64 1000 3968 4000; do head -c $n /dev/urandom > /tmp/junk; dd if=/tmp/junk of=/dev/tpm0 bs=5000 2>/dev/null; done
            printf '\200\001\000\000\000\014\000\000\001\173\000\010' | tpm2_send | wc -c
            tpm2_getrandom --hex 8""")
        self.assertRegex(out, r"20\n[0-9a-f]{16}")


class Tis(Tpm, HostTest):
    kind = "tis"

    def test_the_interrupt_reaches_the_guest(self):
        """Linux before 6.4 tries the interrupt, sees it, and polls nevertheless (docs/tpm.md): one or two are counted."""
        self.add_provider()
        self.create("vm", "--tpm", "tis", "--provider", "local")
        out = self.run_in_guest("vm", "tpm2_selftest -f; tpm2_getrandom --hex 8; echo; cat /proc/interrupts; dmesg",
                                cmdline=CMDLINE + " tpm_tis.interrupts=1")
        self.assertRegex(out, r"^[0-9a-f]{16}\n")
        line = re.search(r"^ *5: +(\d+) +IO-APIC +5-fasteoi", out, re.M)
        self.assertIsNotNone(line, out)
        self.assertGreaterEqual(int(line[1]), 1, "the driver's test raised one")
        self.assertLess(int(line[1]), 1000, "and the line went down again")
        self.assertNotIn("nobody cared", out)


class Tis13(HostTest):
    def test_firmware_and_linux_drive_it(self):
        """As TIS 1.3 it has no TPM_INTERFACE_ID: edk2 takes its word for that, and Linux' tpm_tis binds."""
        self.add_provider()
        self.create("vm", "--tpm", "tis13", "--provider", "local")
        out = self.run_in_guest("vm", r"""
            readlink /sys/class/tpm/tpm0/device/driver
            tpm2_pcrread sha256:0; tpm2_getrandom --hex 8; echo
            tpm2_eventlog /sys/kernel/security/tpm0/binary_bios_measurements | sed -n '/^pcrs:/,$p'""")
        self.assertIn("/tpm_tis", out)
        self.assertRegex(out, r"(?m)^[0-9a-f]{16}$")
        read, _, replayed = out.partition("pcrs:")
        self.assertNotEqual(banks(read)["sha256"][0], "0" * 64, "the firmware measured itself")
        self.assertEqual(banks(read)["sha256"][0], banks(replayed)["sha256"][0])


if __name__ == "__main__":
    unittest.main(verbosity=2)
