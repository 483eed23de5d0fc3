"""A guest moves to another host with its disks, which it writes all the while: what it wrote before, meanwhile and after is
there."""

import hashlib
import os
import re
import subprocess
import unittest

from harness import BOOT_LIMIT
from test_migrate import MigrationTest

SIZE = 64 << 20
STEPS = 60
# Writes files, durably, and says what is in them; then reads all of them back, from the disk. What is written while the
# disk moves is not written again.
WRITER = f"""set -e; mkdir /tmp/d; mount -t ext4 /dev/nvme0n1 /tmp/d; n=0
while [ $n -lt {STEPS} ]; do n=$((n+1)); f=file$n; head -c $((100000 + n * 3000)) /dev/urandom > /tmp/d/$f; sync
echo wrote $n $f $(sha256sum < /tmp/d/$f | cut -c 1-64); sleep 0.3; done
umount /tmp/d; mount -t ext4 /dev/nvme0n1 /tmp/d
for f in /tmp/d/file* /tmp/d/old; do echo have $(basename $f) $(sha256sum < $f | cut -c 1-64); done; umount /tmp/d; echo DONE"""


class WithDisks(MigrationTest):
    def create_vm(self):
        """The VM is made by the tests, of a disk that has a file system with much in it."""
        content = self.host.folder / "content"
        content.mkdir()
        old = os.urandom(24 << 20)
        (content / "old").write_bytes(old)
        self.old = hashlib.sha256(old).hexdigest()
        self.disk = self.host.folder / "disk.img"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", content, self.disk, f"{SIZE >> 10}k"], check=True)

    def migrate(self, place, *options):
        done = self.host.coffer("migrate", "vm", "--to", place, *options, limit=BOOT_LIMIT)
        self.assertEqual(done.returncode, 0, done.stderr + (self.there.folder / "received.err").read_text())
        print(done.stdout.strip())
        self.assertRegex(done.stdout, r"and [1-9]\d* MiB of disks sent")
        return done

    def check(self, *outputs):
        """What a guest said in all of its life: that it read what it had written last."""
        text = "".join(outputs)
        wrote = re.findall(r"^wrote (\d+) (\S+) (\w{64})$", text, re.M)
        self.assertEqual([int(n) for n, _, _ in wrote], list(range(int(wrote[0][0]), STEPS + 1)))
        expected = {name: digest for _, name, digest in wrote}
        expected["old"] = self.old
        self.assertEqual(dict(re.findall(r"^have (\S+) (\w{64})$", text, re.M)), expected)

    def check_file_system(self, image):
        done = subprocess.run(["e2fsck", "-f", "-n", image], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def wait_until_off(self, host):
        self.wait_until(lambda: host.json("show", "vm")["state"] == "off")

    def go(self, *options, snapshot=False):
        """The guest moves while it writes; what it said here and there."""
        places = self.there.folder / "disks"
        places.mkdir()
        _, arrived, place = self.listen(self.there, "--verbose", "--disk-folder", places)
        process, output = self.start_guest(WRITER)
        self.wait_for(output, "^wrote 3 ", process=process)
        if snapshot:
            self.ok("snapshot", "take", "vm", "before", limit=BOOT_LIMIT)
            self.wait_for(output, "^wrote 8 ", process=process)
        self.migrate(place, *options)
        self.wait_for(arrived, "^DONE$")
        self.wait_until_off(self.there)
        here, there = output.read_text(), arrived.read_text()
        self.assertIn("wrote", here)
        self.assertIn("wrote", there)
        return here, there

    def check_encrypted(self, here, there):
        self.check(here, there)
        raw = self.there.folder / "raw.img"
        done = self.there.coffer("disk", "export", "vm", "0", raw, limit=BOOT_LIMIT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.check_file_system(raw)


class Copied(WithDisks):
    def test_an_image_is_copied_while_it_is_written(self):
        self.create("vm", "--disk", self.disk)
        here, there = self.go("--copy-disks")
        self.check(here, there)
        copy = self.there.folder / "disks" / "disk.img"
        self.assertEqual(self.there.json("show", "vm")["config"]["disks"][0]["path"], str(copy))
        self.assertEqual(copy.stat().st_size, SIZE)
        self.check_file_system(copy)


class Encrypted(WithDisks):
    def test_layers_of_an_authenticated_disk_move_and_revert(self):
        self.create("vm", "--disk", self.disk, "--encrypt-disks", "--integrity", limit=BOOT_LIMIT)
        here, there = self.go(snapshot=True)
        self.check_encrypted(here, there)
        # Back at the destination to what was taken at the source.
        done = self.there.coffer("snapshot", "revert", "vm", "before", "--yes")
        self.assertEqual(done.returncode, 0, done.stderr)
        done = self.there.coffer("run", "vm", "--timeout", BOOT_LIMIT, limit=BOOT_LIMIT + 60)
        self.assertEqual(done.returncode, 0, done.stderr)
        again = int(re.search(r"^wrote (\d+) ", done.stdout, re.M)[1])
        self.assertLess(again, 8)
        before = "".join(line for line in here.splitlines(keepends=True)
                         if line.startswith("wrote") and int(line.split()[1]) < again)
        self.check(before, done.stdout)


class EncryptedOnly(WithDisks):
    def test_a_disk_without_integrity_moves(self):
        self.create("vm", "--disk", self.disk, "--encrypt-disks", limit=BOOT_LIMIT)
        self.check_encrypted(*self.go())


del MigrationTest  # what is imported for its helpers is no test of this file

if __name__ == "__main__":
    unittest.main()
