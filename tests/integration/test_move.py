"""A VM moves to another folder for homes while it is off or suspended, and goes on there."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from harness import BOOT_LIMIT, CMDLINE, IMAGES, HostTest, expected_pcrs


def other_storage(test):
    """A root on another file system, where this machine has one."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="coffer-move-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    test.addCleanup(shutil.rmtree, place, ignore_errors=True)
    root = place / "homes"
    root.mkdir()
    return root


class Move(HostTest):
    def setUp(self):
        super().setUp()
        self.add_provider()
        self.there = self.host.folder / "other storage" / "homes"
        self.there.mkdir(parents=True)

    def bring_provider(self):
        shutil.copytree(self.host.root / "providers", self.there / "providers")

    def test_off_with_its_tpm_and_encrypted_disk(self):
        self.create("vm", "--encrypt-disks", "--disk", "new:64M")
        ek = self.run_in_guest("vm", "tpm2_pcrread -Q sha256:0 && tpm2_createek -Q -G ecc -c /tmp/ek -u /tmp/ek.pub && "
                                     "sha256sum < /tmp/ek.pub && echo kept > /dev/nvme0n1")
        said = self.refused(77, "move", "vm", "--home-root", self.there)
        self.assertIn("provider restore", said)
        self.bring_provider()
        said = self.ok("move", "vm", "--home-root", self.there)
        self.assertIn(str(self.there), said)
        self.assertFalse(self.host.home("vm").exists())
        self.refused(66, "show", "vm")
        self.assertEqual([vm["name"] for vm in self.host.json("--home-root", self.there, "list")], ["vm"])
        after = self.run_in_guest("vm", "tpm2_createek -Q -G ecc -c /tmp/ek -u /tmp/ek.pub && sha256sum < /tmp/ek.pub && "
                                        "head -c 4 /dev/nvme0n1", "--home-root", self.there)
        self.assertEqual(after, ek + "kept")
        # And back.
        self.ok("--home-root", self.there, "move", "vm", "--home-root", self.host.root)
        self.assertTrue(self.host.home("vm").exists())

    def test_suspended_goes_on(self):
        self.create("vm")
        self.bring_provider()
        running = self.host.start("run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                  IMAGES / "initrd.img", "--cmdline", CMDLINE, "--exec",
                                  "echo begun; sleep 5; echo done", "--timeout", BOOT_LIMIT, stdout=subprocess.PIPE)
        self.addCleanup(running.kill)
        self.assertEqual(running.stdout.readline(), b"begun\n")
        self.ok("suspend", "vm", limit=120)
        running.wait(60)
        self.ok("move", "vm", "--home-root", self.there)
        resumed = self.host.coffer("--home-root", self.there, "resume", "vm", "--timeout", BOOT_LIMIT,
                                   limit=BOOT_LIMIT + 60)
        self.assertEqual((resumed.returncode, resumed.stdout), (0, "done\n"), resumed.stderr)


class Running(HostTest):
    """The guest counts, extends a PCR with every count, and writes to its encrypted disk, all the while."""

    STEPS = 50
    SECRET = "sealed-before-the-move"
    LOOP = f"""set -e
printf %s {SECRET} | coffer-demo-seal >/dev/null
n=0; while [ $n -lt {STEPS} ]; do n=$((n+1)); tpm2_pcrextend 16:sha256=$(printf %064x $n)
printf %08d $n | dd of=/dev/nvme0n1 bs=512 seek=$n conv=sync,notrunc,fsync 2>/dev/null
head -c 1000000 /dev/urandom > /tmp/bulk; dd if=/tmp/bulk of=/dev/nvme0n1 bs=1M seek=$((1 + n % 40)) conv=notrunc,fsync 2>/dev/null
echo step $n $(tpm2_pcrread sha256:16 | tail -1 | tr -d ' ') $((1 + n % 40)) $(sha256sum < /tmp/bulk | cut -c 1-64); sleep 0.3; done
echo 3 > /proc/sys/vm/drop_caches
for n in $(seq 1 {STEPS}); do dd if=/dev/nvme0n1 bs=512 skip=$n count=1 2>/dev/null | head -c 8; done; echo
for at in $(seq 1 40); do echo bulk $at $(dd if=/dev/nvme0n1 bs=1M skip=$at count=1 2>/dev/null | head -c 1000000 | sha256sum | cut -c 1-64); done
coffer-demo-unseal; echo"""

    def setUp(self):
        super().setUp()
        self.add_provider()
        self.there = other_storage(self)
        self.create("vm", "--encrypt-disks", "--disk", "new:64M")

    def ok_there(self, *arguments, **options):
        return self.ok("--home-root", self.there, *arguments, **options)

    def show_there(self):
        return self.host.json("--home-root", self.there, "show", "vm")

    def wait_for(self, output, pattern, process):
        deadline = time.monotonic() + BOOT_LIMIT
        while not re.search(pattern, output.read_text(errors="replace"), re.M):
            self.assertIsNone(process.poll(), (self.host.folder / "errors").read_text())
            self.assertLess(time.monotonic(), deadline, output.read_text(errors="replace")[-3000:])
            time.sleep(0.1)

    def steps(self, text):
        return [(int(n), pcr.split("0x")[-1].lower(), at, digest)
                for n, pcr, at, digest in re.findall(r"^step (\d+) (\S+) (\d+) (\w{64})$", text, re.M)]

    def open_files(self, process, folder):
        folder_of_process = f"/proc/{process.pid}/fd"
        paths = [os.readlink(f"{folder_of_process}/{fd}") for fd in os.listdir(folder_of_process)]
        return [path for path in paths if path.startswith(str(folder))]

    def check(self, text, first=1):
        """No step is lost or repeated, the disk has what was written, and the secret opens."""
        steps = self.steps(text)
        self.assertEqual([n for n, *_ in steps], list(range(first, self.STEPS + 1)), text[-3000:])
        pcrs = expected_pcrs(self.STEPS)
        for n, pcr, _, _ in steps:
            self.assertEqual(pcr, pcrs[n - 1], f"PCR 16 after step {n}")
        self.assertIn("".join("%08d" % n for n in range(1, self.STEPS + 1)), text)
        read = dict(re.findall(r"^bulk (\d+) (\w{64})$", text, re.M))
        for at, digest in {at: digest for _, _, at, digest in steps}.items():
            self.assertEqual(read[at], digest, f"MiB {at} of the disk")
        self.assertTrue(text.endswith(self.SECRET + "\n"), text[-1000:])

    def test_runs_on_in_its_process(self):
        output = self.host.folder / "output"
        with open(output, "wb") as out, open(self.host.folder / "errors", "wb") as errors:
            process = self.host.start("run", "vm", "--verbose", "--accel", "soft", "--kernel", IMAGES / "vmlinuz",
                                      "--initrd", IMAGES / "initrd.img", "--cmdline", CMDLINE, "--exec", self.LOOP,
                                      stdout=out, stderr=errors)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        self.wait_for(output, r"^step 3 ", process)

        # Without the provider nothing moves.
        self.assertIn("provider restore", self.refused(77, "move", "vm", "--home-root", self.there))
        self.assertEqual(self.host.json("show", "vm")["state"], "running")
        self.assertFalse((self.there / "vms").exists())
        shutil.copytree(self.host.root / "providers", self.there / "providers")

        self.ok("snapshot", "take", "vm", "before", limit=BOOT_LIMIT)
        moved = self.ok("move", "vm", "--home-root", self.there, limit=BOOT_LIMIT)
        print(moved.strip())
        self.assertRegex(moved, r"runs on: it stood still for [0-9.]+ ms")
        self.assertFalse(list((self.host.root / "vms").iterdir()))
        self.assertEqual(self.open_files(process, self.host.root / "vms"), [])

        # The old root says where it is, and the new one reaches the very process.
        for verb in (["show", "vm"], ["stop", "vm"], ["run", "vm"], ["suspend", "vm"], ["move", "vm", "--home-root",
                                                                                        self.there]):
            self.assertIn(f"has moved to {self.there}", self.refused(66, *verb))
        self.assertEqual(self.host.json("list"), [])
        shown = self.show_there()
        self.assertEqual((shown["state"], shown["pid"], shown["backend"]), ("running", process.pid, "soft"))
        self.assertEqual([vm["name"] for vm in self.host.json("--home-root", self.there, "list")], ["vm"])
        self.ok_there("rekey", "vm", limit=BOOT_LIMIT)
        self.assertNotEqual(self.show_there()["key_id"], shown["key_id"])
        self.ok_there("backup", "vm", self.host.folder / "vm.backup", limit=BOOT_LIMIT)
        self.ok_there("tpm", "eventlog", "vm", limit=BOOT_LIMIT)
        self.ok_there("snapshot", "take", "vm", "after", limit=BOOT_LIMIT)
        self.assertEqual([s["tag"] for s in self.host.json("--home-root", self.there, "snapshot", "list", "vm")["snapshots"]],
                         ["before", "after"])

        # And back, while it writes above two snapshots.
        self.ok_there("move", "vm", "--home-root", self.host.root, limit=BOOT_LIMIT)
        self.assertEqual(self.host.json("show", "vm")["pid"], process.pid)
        self.ok("move", "vm", "--home-root", self.there, limit=BOOT_LIMIT)
        at_move = len(self.steps(output.read_text()))
        self.assertLess(at_move, self.STEPS, "it moved while it counted")
        self.assertEqual(process.wait(2 * BOOT_LIMIT), 0, (self.host.folder / "errors").read_text())
        self.check(output.read_text())

        # The snapshot from before the move brings all back, and runs there.
        self.ok_there("snapshot", "revert", "vm", "before", "--yes", limit=BOOT_LIMIT)
        resumed = self.host.folder / "resumed"
        with open(resumed, "wb") as out, open(self.host.folder / "errors", "wb") as errors:
            process = self.host.start("--home-root", self.there, "resume", "vm", stdout=out, stderr=errors)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        self.wait_for(resumed, r"^step \d+ ", process)
        first = self.steps(resumed.read_text())[0][0]
        self.assertLess(first, at_move)
        # Its memory may still come from the image in the home that it leaves.
        self.ok_there("move", "vm", "--home-root", self.host.root, limit=BOOT_LIMIT)
        self.assertEqual(self.open_files(process, self.there / "vms"), [])
        moved_at = len(self.steps(resumed.read_text()))
        self.wait_for(resumed, rf"(?:^step .*\s+){{{moved_at + 2}}}", process)
        self.ok("stop", "vm", "--force", limit=BOOT_LIMIT)
        process.wait(60)
        last = self.steps(resumed.read_text())[-1][0]
        read = self.run_in_guest("vm", f"dd if=/dev/nvme0n1 bs=512 skip={last} count=1 2>/dev/null | head -c 8; "
                                       "coffer-demo-unseal")
        self.assertEqual(read, "%08d" % last + self.SECRET)


class Stopped(HostTest):
    """A move of a running VM that does not get to its end; no guest is needed for that."""

    def setUp(self):
        super().setUp()
        self.add_provider()
        self.create("vm", "--encrypt-disks", "--disk", "new:8M")
        # Enough to be copied for a while.
        with open(self.host.home("vm") / "filler", "wb") as file:
            for _ in range(256):
                file.write(b"\x5a" * (1 << 20))
        self.there = other_storage(self)
        shutil.copytree(self.host.root / "providers", self.there / "providers")

    def wait_until(self, true):
        deadline = time.monotonic() + BOOT_LIMIT
        while not true():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.001)

    def state(self, *root):
        return self.host.json(*root, "show", "vm")["state"]

    def start_vm(self):
        process = self.host.start("run", "vm", "--accel", "soft", "--serial", self.host.folder / "serial",
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        self.wait_until(lambda: "uptime" in self.host.json("show", "vm"))
        return process

    def start_moving(self):
        """A move that copies the home."""
        moving = self.host.start("move", "vm", "--home-root", self.there, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: moving.poll() is None and moving.kill())
        self.wait_until(lambda: (self.there / "vms" / ".vm.new" / "filler").exists() or moving.poll() is not None)
        self.assertIsNone(moving.poll(), "the home was copied before the test could look")
        return moving

    def test_given_up_and_killed(self):
        process = self.start_vm()
        moving = self.start_moving()
        moving.send_signal(signal.SIGINT)
        _, said = moving.communicate(timeout=BOOT_LIMIT)
        self.assertEqual(moving.returncode, 130, said)
        self.assertIn("runs on in " + str(self.host.root), said)
        self.assertEqual(self.state(), "running")
        self.assertEqual(os.listdir(self.there / "vms"), [])

        # The client goes away: the same.
        moving = self.start_moving()
        moving.kill()
        moving.communicate()
        self.wait_until(lambda: os.listdir(self.there / "vms") == [])
        self.assertEqual(self.state(), "running")

        # The VM's process is killed: the VM is off, and the same command moves it.
        moving = self.start_moving()
        process.kill()
        process.wait()
        _, said = moving.communicate(timeout=BOOT_LIMIT)
        self.assertNotEqual(moving.returncode, 0)
        self.assertIn("ended", said)
        self.assertEqual(self.state(), "off")
        self.ok("move", "vm", "--home-root", self.there, limit=BOOT_LIMIT)
        self.assertEqual(self.state("--home-root", self.there), "off")
        self.assertEqual(os.listdir(self.there / "vms"), ["vm"])
        self.assertIn(f"has moved to {self.there}", self.refused(66, "run", "vm"))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    unittest.main()
