"""What a guest measures: a full boot by OVMF, a unified kernel image and Linux with IMA on leaves a log that is whole,
and that gives the PCRs of all four banks when it is replayed: by this program, by tpm2_eventlog, and for IMA's PCR here."""

import base64
import hashlib
import re
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import BOOT_LIMIT, CMDLINE, HostTest

BANKS = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
ESP_OFFSET = 2048 * 512  # images/recipe/disk.py
LOADER = "::/EFI/BOOT/BOOTX64.EFI"
IMA_PCR = 10

# IMA measures what is run and read as long as it is new: the tools run once before PCRs and list are taken, and both are
# taken again until nothing was measured in between.
TAKE = r"""
cd /tmp
list=/sys/kernel/security/integrity/ima/ascii_runtime_measurements
tpm2_pcrread > pcrs; base64 pcrs | head -n 1 > /dev/null; cp $list one; cmp -s one pcrs
for try in 1 2 3 4 5 6 7 8; do
    cp $list one; tpm2_pcrread > pcrs; cp $list two
    if cmp -s one two; then break; fi
done
cmp one two || exit 9
for file in /sys/kernel/security/tpm0/binary_bios_measurements pcrs one; do base64 $file; echo NEXT; done
"""


def with_command_line(disk, cmdline):
    """Gives the unified kernel image on a disk another command line."""
    with tempfile.TemporaryDirectory() as folder:
        image, section = Path(folder) / "image.efi", Path(folder) / "cmdline"
        section.write_text(cmdline)
        drive = f"{disk}@@{ESP_OFFSET}"
        subprocess.run(["mcopy", "-i", drive, LOADER, image], check=True)
        subprocess.run(["objcopy", f"--update-section=.cmdline={section}", image], check=True)
        subprocess.run(["mcopy", "-o", "-i", drive, image, LOADER], check=True)


def pcrs_of(text):
    """{bank: {pcr: digest}} of what tpm2_pcrread and tpm2_eventlog print alike."""
    result, bank = {}, None
    for line in text.splitlines():
        if match := re.match(r"\s*(sha\d+)\s*:\s*$", line):
            bank = result.setdefault(match[1], {})
        elif (match := re.match(r"\s*(\d+)\s*:\s*0x([0-9A-Fa-f]+)", line)) and bank is not None:
            bank[int(match[1])] = match[2].lower()
    return result


def reset_value(pcr, size):
    return ("ff" if 17 <= pcr <= 22 else "00") * size


def ima_replay(text):
    """IMA's PCR in each bank (Linux Documentation/security/IMA-templates.rst, templates ima-ng and ima-sig): the digest that a bank
    is extended with is that of the template's data, by the bank's own algorithm."""
    pcr = {bank: bytes(size) for bank, size in BANKS.items()}
    count = 0
    for line in text.splitlines():
        number, sha1, template, digest, name = line.split(" ", 4)
        assert int(number) == IMA_PCR and template in ("ima-ng", "ima-sig"), line
        algorithm, value = digest.split(":")
        fields = [algorithm.encode() + b":\0" + bytes.fromhex(value), name.strip().encode() + b"\0"]
        if template == "ima-sig":
            fields.append(b"")  # nothing is signed here
        data = b"".join(struct.pack("<I", len(field)) + field for field in fields)
        violation = set(sha1) == {"0"}
        assert violation or hashlib.sha1(data).hexdigest() == sha1, line
        for bank, size in BANKS.items():
            # Where the kernel was not built with a bank's algorithm, the SHA-1 digest is filled up with zeros.
            digest_of = hashlib.new(bank if bank in ("sha1", "sha256") else "sha1", data).digest()
            extend = b"\xff" * size if violation else digest_of.ljust(size, b"\0")
            pcr[bank] = hashlib.new(bank, pcr[bank] + extend).digest()
        count += 1
    return {bank: value.hex() for bank, value in pcr.items()}, count


class FullBoot(HostTest):
    def start_guest(self, command, cmdline):
        self.add_provider()
        disk = self.copy_of_disk()
        with_command_line(disk, cmdline)
        self.create("vm", "--disk", disk, "--pcr-banks", ",".join(BANKS))
        guest = self.host.start("run", "vm", "--accel", "soft", "--exec", command, "--timeout", BOOT_LIMIT,
                                stdout=subprocess.PIPE, text=True)
        self.addCleanup(guest.stdout.close)
        self.addCleanup(guest.wait)
        self.addCleanup(guest.kill)
        return guest

    def test_log_and_pcrs_agree_in_every_bank(self):
        guest = self.start_guest(f"( {TAKE} ) || exit; echo READY; sleep {BOOT_LIMIT}",
                                 f"{CMDLINE} ima_policy=tcb")
        lines = []
        for line in guest.stdout:
            if line == "READY\n":
                break
            lines.append(line)
        else:
            self.fail(f"the guest ended early: {''.join(lines)[-2000:]}")
        log, pcrs, ima = (base64.b64decode(part) for part in "".join(lines).split("NEXT\n")[:3])
        log_file, pcr_file = self.host.folder / "log", self.host.folder / "pcrs"
        log_file.write_bytes(log)
        pcr_file.write_bytes(pcrs)
        read = pcrs_of(pcrs.decode())
        self.assertEqual(sorted(read), sorted(BANKS))

        guest.terminate()

        # The file, taken from the guest.
        from_file = self.host.json("tpm", "eventlog", "--file", log_file, "--pcrs", pcr_file)
        self.assertNotIn("problem", from_file)
        self.assertEqual(from_file["size"], len(log))
        verdicts = {bank: {v["pcr"]: v for v in values} for bank, values in from_file["pcrs"].items()}
        # IMA has a list of its own; every other PCR is what the log says, or as at reset.
        expected_ima, measured = ima_replay(ima.decode())
        self.assertGreater(measured, 0, "IMA is on")
        for bank, size in BANKS.items():
            for pcr in range(24):
                where = f"{bank} PCR {pcr}"
                if pcr == IMA_PCR:
                    self.assertEqual(read[bank][pcr], expected_ima[bank], where)
                    self.assertEqual(verdicts[bank][pcr]["verdict"], "not in the log", where)
                elif pcr in verdicts[bank]:
                    self.assertEqual(verdicts[bank][pcr]["verdict"], "same", where)
                    self.assertEqual(verdicts[bank][pcr]["replayed"], read[bank][pcr], where)
                else:
                    self.assertEqual(read[bank][pcr], reset_value(pcr, size), where)
            self.assertTrue(set(range(8)) <= set(verdicts[bank]), "the firmware measures into PCR 0 to 7")
        # Loader, kernel and command line are in it: by what OVMF, the stub and Linux each log.
        texts = "\n".join(f"{e['pcr']} {e['type']} {e['text']}" for e in from_file["events"])
        for part in (r"4 EV_EFI_BOOT_SERVICES_APPLICATION .*HD\(1,GPT,", "5 EV_EFI_ACTION Exit Boot Services Returned",
                     "7 EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot", "5 EV_EFI_GPT_EVENT disk"):
            self.assertRegex(texts, part)
        self.assertNotIn("malformed", texts)

        # tpm2_eventlog's own replay.
        done = subprocess.run(["tpm2_eventlog", log_file], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        for bank, values in pcrs_of(done.stdout.partition("\npcrs:")[2]).items():
            for pcr, value in values.items():
                self.assertEqual(value, read[bank][pcr], f"tpm2_eventlog, {bank} PCR {pcr}")

        # What differs is shown and told by the exit code; so is a log that was cut.
        wrong = self.host.folder / "wrong-pcrs"
        wrong.write_text(re.sub(r"(\s4\s*: 0x)(..)", r"\g<1>00", pcrs.decode()))
        done = self.host.coffer("tpm", "eventlog", "--file", log_file, "--pcrs", wrong)
        self.assertEqual(done.returncode, 1)
        self.assertIn("DIFFERENT", done.stdout)
        cut = self.host.folder / "cut"
        cut.write_bytes(log[:-3])
        self.assertIn("cut short", self.refused(1, "tpm", "eventlog", "--file", cut))


class Verb(HostTest):
    def test_what_it_asks_for(self):
        self.add_provider()
        self.create("vm")
        self.assertIn("does not run", self.refused(66, "tpm", "eventlog", "vm"))
        self.refused(66, "tpm", "eventlog", "nobody")
        self.refused(2, "tpm", "eventlog")
        self.refused(2, "tpm", "eventlog", "vm", "--file", "x")
        self.refused(66, "tpm", "eventlog", "--file", self.host.folder / "nowhere")
        junk = self.host.folder / "junk"
        junk.write_bytes(bytes(100))
        self.refused(1, "tpm", "eventlog", "--file", junk)


if __name__ == "__main__":
    unittest.main(verbosity=2)
