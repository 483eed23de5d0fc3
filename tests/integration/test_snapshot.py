"""A guest is suspended and goes on; snapshots bring disks, memory and TPM back together."""

import os
import re
import subprocess
import time
import unittest

from harness import BOOT_LIMIT, CMDLINE, COFFER, IMAGES, HostTest, expected_pcrs

# Counts, extends a PCR with every count, and tells both.
STEPS = 12
LOOP = (f"n=0; while [ $n -lt {STEPS} ]; do n=$((n+1)); tpm2_pcrextend 16:sha256=$(printf %064x $n); "
        "echo step $n $(tpm2_pcrread sha256:16 | tail -1 | tr -d ' ') $(date +%s); sleep 0.3; done")


class Guests(HostTest):
    def start_guest(self, command, *options):
        """A running VM whose guest carries out `command`, and the file that takes its output."""
        output = self.host.folder / "output"
        with open(output, "wb") as file:
            process = self.host.start("run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                      IMAGES / "initrd.img", "--cmdline", CMDLINE, "--exec", command, *options,
                                      stdout=file, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process, output

    def wait_for(self, output, pattern, process, limit=BOOT_LIMIT):
        deadline = time.monotonic() + limit
        while not re.search(pattern, output.read_text(errors="replace")):
            self.assertIsNone(process.poll(), process.stderr.read() if process.poll() is not None else "")
            self.assertLess(time.monotonic(), deadline, output.read_text(errors="replace")[-3000:])
            time.sleep(0.1)


class Suspended(Guests):
    def setUp(self):
        super().setUp()
        self.add_provider()
        self.create("vm")

    def steps(self, text):
        return [(int(n), pcr.split("0x")[-1].lower(), int(when))
                for n, pcr, when in re.findall(r"^step (\d+) (\S+) (\d+)$", text, re.M)]

    def check_steps(self, text, first, last):
        steps = self.steps(text)
        self.assertEqual([n for n, _, _ in steps], list(range(first, last + 1)), text)
        pcrs = expected_pcrs(last)
        for n, pcr, _ in steps:
            self.assertEqual(pcr, pcrs[n - 1], f"PCR 16 after step {n}")

    def test_goes_on_without_a_lost_or_repeated_step(self):
        process, output = self.start_guest(LOOP)
        self.wait_for(output, r"step 3 ", process)
        self.ok("suspend", "vm", limit=BOOT_LIMIT)
        self.assertEqual(process.wait(60), 75, "suspended before the command ended")
        before = output.read_text()
        last = self.steps(before)[-1][0]
        self.check_steps(before, 1, last)
        self.assertLess(last, STEPS)
        self.assertTrue((self.host.home("vm") / "snapshot-suspended").exists())
        self.assertTrue(self.host.json("snapshot", "list", "vm")["suspended"])
        # A verb that would power it on says so.
        self.assertIn("suspended", self.refused(2, "run", "vm", "--exec", "true"))
        time.sleep(5)
        resumed_at = time.time()
        done = self.host.coffer("resume", "vm", "--timeout", BOOT_LIMIT, limit=BOOT_LIMIT + 60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.check_steps(before + done.stdout, 1, STEPS)
        # The guest's wall clock is right, though it was away.
        for _, _, when in self.steps(done.stdout)[1:]:
            self.assertGreaterEqual(when, int(resumed_at) - 2)
            self.assertLessEqual(when, time.time() + 2)
        self.assertFalse((self.host.home("vm") / "snapshot-suspended").exists())
        self.assertIn("not suspended", self.refused(2, "resume", "vm"))

    def test_snapshot_brings_memory_and_tpm_back_together(self):
        process, output = self.start_guest(LOOP)
        self.wait_for(output, r"step 2 ", process)
        self.ok("snapshot", "take", "vm", "early", "--description", "two steps", limit=BOOT_LIMIT)
        at_snapshot = self.steps(output.read_text())[-1][0]
        self.assertIsNone(process.poll(), "the guest goes on")
        self.assertEqual(process.wait(BOOT_LIMIT), 0)
        self.check_steps(output.read_text(), 1, STEPS)

        listed = self.host.json("snapshot", "list", "vm")
        self.assertEqual([s["tag"] for s in listed["snapshots"]], ["early"])
        self.assertTrue(listed["snapshots"][0]["running"])
        self.assertIn("history", self.ok("snapshot", "revert", "vm", "early", "--yes"))
        # From the snapshot's step on again, with the PCR values that it had then.
        done = self.host.coffer("run", "vm", "--timeout", BOOT_LIMIT, limit=BOOT_LIMIT + 60)
        self.assertEqual(done.returncode, 0, done.stderr)
        again = self.steps(done.stdout)
        self.assertIn(again[0][0], (at_snapshot, at_snapshot + 1))
        self.check_steps(done.stdout, again[0][0], STEPS)
        self.ok("snapshot", "delete", "vm", "early", "--yes")
        self.assertEqual(self.host.json("snapshot", "list", "vm")["snapshots"], [])
        self.assertEqual([p.name for p in self.host.home("vm").iterdir() if p.name.startswith(("snapshot-", "saved-"))],
                         [])

    def test_memory_that_is_written_meanwhile_is_that_of_one_moment(self):
        process, output = self.start_guest(
            "head -c 60000000 /dev/urandom > /tmp/still; sha256sum /tmp/still > /tmp/still.sum; n=0; "
            "while [ $n -lt 40 ]; do n=$((n+1)); head -c 3000000 /dev/urandom > /tmp/a; sha256sum /tmp/a > /tmp/a.sum; "
            "cp /tmp/a /tmp/b; rm /tmp/a; mv /tmp/b /tmp/a; sha256sum -c /tmp/a.sum > /dev/null || exit 7; echo step $n; "
            "done; sha256sum -c /tmp/still.sum > /dev/null || exit 8; echo whole")
        self.wait_for(output, "step 2\n", process)
        self.assertRegex(self.ok("snapshot", "take", "vm", "early", limit=BOOT_LIMIT), "stood still for [0-9]+ ms")
        seen = [int(n) for n in re.findall(r"step (\d+)\n", output.read_text())][-1]
        self.wait_for(output, f"step {seen + 1}\n", process)
        self.ok("snapshot", "revert", "vm", "early", "--yes", limit=BOOT_LIMIT)
        process.wait(60)
        resumed = self.ok("resume", "vm", "--timeout", BOOT_LIMIT, limit=BOOT_LIMIT + 60)
        steps = [int(n) for n in re.findall(r"step (\d+)\n", resumed)]
        self.assertIn(steps[0], range(2, seen + 2))
        self.assertEqual(steps, list(range(steps[0], 41)))
        self.assertIn("whole", resumed)
        self.ok("snapshot", "delete", "vm", "early", "--yes")

    def test_tampered_memory_never_runs(self):
        process, output = self.start_guest("echo begun; sleep 1000; echo ended")
        self.wait_for(output, "begun", process)
        self.ok("suspend", "vm", limit=BOOT_LIMIT)
        process.wait(60)
        image = self.host.home("vm") / "snapshot-suspended"
        good = image.read_bytes()
        places = {"header": 2500, "memory": len(good) // 2, "table": len(good) - 100}
        for what, at in places.items():
            bad = bytearray(good)
            bad[at] ^= 1
            image.write_bytes(bad)
            said = self.refused(65, "resume", "vm", "--eager", limit=BOOT_LIMIT)
            self.assertIn("snapshot-suspended", said, what)
        bad = bytearray(good)
        bad[places["memory"]] ^= 1
        image.write_bytes(bad)
        self.check_without_userfaultfd()
        # While the guest runs already: the process ends when the page is wanted, at the latest by the background.
        said = self.refused(65, "resume", "vm", limit=BOOT_LIMIT)
        self.assertIn("fails authentication", said)

    def check_without_userfaultfd(self):
        """Where the host does not permit it all memory is loaded and checked first, and that is said."""
        if os.geteuid() != 0:
            return  # a user cannot take away from others what the host permits
        done = subprocess.run(["unshare", "--mount", "sh", "-c",
                               "mount --bind /dev/null /dev/userfaultfd 2>/dev/null; "
                               "exec setpriv --inh-caps=-sys_ptrace --bounding-set=-sys_ptrace \"$@\"", "sh",
                               COFFER, "resume", "vm"], env=self.host.environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace", timeout=BOOT_LIMIT)
        self.assertEqual(done.returncode, 65, done.stderr)
        self.assertIn("all memory is loaded before the guest goes on", done.stderr)
        self.assertIn("snapshot-suspended", done.stderr)


class Plain(Guests):
    """An unencrypted home without a TPM, and a raw disk that a running guest writes to all the while."""

    LAYERS = (0, 2)  # after two snapshots; 0: the file system shares blocks

    def setUp(self):
        super().setUp()
        self.disk = self.host.folder / "data.img"
        self.disk.write_bytes(b"\0" * (8 << 20))
        self.create("vm", "--tpm", "none", "--disk", self.disk)

    def on_disk(self, path=None):
        return int((path or self.disk).read_bytes()[:8] or b"0")

    def test_disk_that_is_written_to_goes_back_and_is_merged(self):
        self.assertFalse(self.host.json("show", "vm")["encrypted"])
        process, output = self.start_guest(
            "n=0; while [ $n -lt 60 ]; do n=$((n+1)); printf %08d $n | dd of=/dev/nvme0n1 conv=notrunc,fsync "
            "2>/dev/null || exit 3; echo step $n; sleep 0.2; done; echo read $(head -c 8 /dev/nvme0n1)")
        for tag, step in (("a", 2), ("b", 5)):
            self.wait_for(output, f"step {step}\n", process)
            self.assertRegex(self.ok("snapshot", "take", "vm", tag, "--compress", limit=BOOT_LIMIT), "stood still")
        seen = [int(n) for n in re.findall(r"step (\d+)\n", output.read_text())][-1]
        self.wait_for(output, f"step {seen + 2}\n", process)
        shown = self.host.json("show", "vm")["config"]["disks"][0]
        layered = shown["layers"] == 2
        self.assertIn(shown["layers"], self.LAYERS)
        if layered:
            self.assertLess(self.on_disk(), seen, "frozen where the first snapshot was taken")
        # While the guest writes: the first snapshot's layer is merged.
        self.ok("snapshot", "delete", "vm", "a", "--yes", limit=BOOT_LIMIT)
        if layered:
            self.assertEqual(self.host.json("show", "vm")["config"]["disks"][0]["layers"], 1)
        self.ok("snapshot", "revert", "vm", "b", "--yes", limit=BOOT_LIMIT)
        process.wait(60)
        # Ended while most of its memory is still to come.
        for seconds in ("0.05", "0.3"):
            done = self.host.coffer("resume", "vm", "--timeout", seconds, limit=BOOT_LIMIT)
            self.assertEqual(done.returncode, 124, done.stderr)
            self.ok("snapshot", "revert", "vm", "b", "--yes", limit=BOOT_LIMIT)
        resumed = self.ok("resume", "vm", "--timeout", BOOT_LIMIT, limit=BOOT_LIMIT + 60)
        steps = [int(n) for n in re.findall(r"step (\d+)\n", resumed)]
        self.assertIn(steps[0], range(5, seen + 2), "goes on from the snapshot")
        self.assertEqual(steps, list(range(steps[0], 61)))
        self.assertIn("read 00000060", resumed)
        self.ok("snapshot", "delete", "vm", "b", "--yes")
        self.assertEqual(self.on_disk(), 60, "the disk's own file has everything again")
        self.assertEqual([p.name for p in self.host.home("vm").iterdir()
                          if p.name.startswith(("snapshot-", "saved-", "overlay-"))], [])


class Off(HostTest):
    def test_sealed_secret_disk_and_tpm_come_back(self):
        self.add_provider()
        disk = self.host.folder / "data.img"
        disk.write_bytes(b"\0" * (8 << 20))
        self.create("vm", "--disk", disk)
        self.run_in_guest("vm", "set -e; echo -n sealed-secret | coffer-demo-seal; "
                                "echo on-disk | dd of=/dev/nvme0n1 conv=sync,fsync 2>/dev/null")
        self.ok("snapshot", "take", "vm", "sealed")
        tpm = (self.host.home("vm") / "tpm").read_bytes()
        # The secret is lost, and so is the TPM's owner hierarchy.
        self.ok("tpm", "clear", "vm", "--yes")
        self.assertIn("history", self.ok("snapshot", "revert", "vm", "sealed", "--yes"))
        self.assertNotEqual((self.host.home("vm") / "tpm").read_bytes(), tpm, "a writing of its own")
        back = self.run_in_guest("vm", "coffer-demo-unseal; echo; head -c 7 /dev/nvme0n1; "
                                       "echo changed | dd of=/dev/nvme0n1 conv=sync,fsync 2>/dev/null")
        self.assertIn("sealed-secret", back)
        self.assertIn("on-disk", back)
        self.check_verbs_see_the_disk_as_it_is(disk)

    def check_verbs_see_the_disk_as_it_is(self, disk):
        layered = self.host.json("show", "vm")["config"]["disks"][0]["layers"] > 0
        folder = self.host.folder / "copies"
        folder.mkdir()
        if layered:
            self.assertEqual(disk.read_bytes()[:7], b"on-disk", "as it was when the snapshot was taken")
            self.ok("disk", "export", "vm", "0", folder / "exported")
            self.assertEqual((folder / "exported").read_bytes()[:7], b"changed")
            self.assertIn("--discard-layers", self.refused(2, "remove", "vm", "--yes"))
            self.assertIn("its first snapshot", self.ok("backup", "vm", self.host.folder / "without"))
        self.ok("clone", "vm", "copy", "--tpm", "copy", "--disk-folder", folder)
        self.assertEqual((folder / "copy-data.img").read_bytes()[:7], b"changed")
        self.ok("backup", "vm", "--disks", self.host.folder / "backup")
        self.ok("restore", self.host.folder / "backup", "--name", "restored", "--tpm", "copy", "--disk-folder", folder)
        self.assertEqual((folder / "restored-data.img").read_bytes()[:7], b"changed")
        self.ok("rekey", "vm", "--deep", "--all")
        self.ok("snapshot", "revert", "vm", "sealed", "--yes")
        self.ok("snapshot", "delete", "vm", "sealed", "--yes")
        self.assertEqual(disk.read_bytes()[:7], b"on-disk")
        self.ok("remove", "vm", "--yes")


if __name__ == "__main__":
    unittest.main(verbosity=2)
