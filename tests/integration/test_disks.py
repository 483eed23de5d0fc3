"""Encrypted disks: a guest boots from one, what it synced outlives a kill, nothing of it can be read or changed."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest

from harness import BOOT_LIMIT, HostTest

TOP = pathlib.Path(__file__).resolve().parents[2]
SECRET = "a-guest's-secret-that-is-easily-found"
SEALED = "sealed-to-what-was-booted"
UNIT = 4096


def data_offset(image):
    """Where the units are, by docs/formats/disk.md."""
    header = image.read_bytes()[:8192]
    header = header[:4096] if header[:8] == b"COFRDISK" else header[4096:]
    content = int.from_bytes(header[24:32], "little")
    journal = int.from_bytes(header[40:48], "little")
    mib = 1 << 20
    if not journal:
        return mib
    units = -(-content // UNIT)
    tags = -(-units // 128)
    table = -(-tags // 128)
    return -(-(mib + journal + (table + tags) * UNIT) // mib) * mib


class Disks(HostTest):
    KIND = ()
    PROTECTION = "unauthenticated"

    def setUp(self):
        super().setUp()
        self.add_provider()

    def image(self, index=0):
        return self.host.home("vm") / f"disk-{index}"

    def plaintext_search(self, *texts, code=0):
        found = subprocess.run([sys.executable, TOP / "tests/scripts/find_plaintext.py", self.host.root, "--", *texts],
                               capture_output=True, text=True)
        self.assertEqual(found.returncode, code, found.stdout)

    def kill_after(self, command, marker):
        """Runs a command in the guest, and kills coffer when it has printed the marker."""
        machine = self.host.start("run", "vm", "--accel", "soft", "--exec", command, "--timeout", BOOT_LIMIT,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            seen = b""
            while marker not in seen:
                data = os.read(machine.stdout.fileno(), 65536)
                if not data:
                    self.fail(f"the guest ended before it printed {marker}: {machine.stderr.read()[-4000:]}")
                seen += data
            machine.send_signal(signal.SIGKILL)
        finally:
            machine.kill()
            machine.communicate()

    def test_boots_and_keeps_what_was_synced(self):
        self.create("vm", "--encrypt-disks", *self.KIND, "--disk", self.copy_of_disk(), "--disk", "new:64M")
        disks = self.host.json("show", "vm")["config"]["disks"]
        self.assertEqual([disk["protection"] for disk in disks], [self.PROTECTION] * 2)
        listed = self.host.json("list")[0]["config"]["disks"]
        self.assertEqual(listed, disks)
        self.assertIn(self.PROTECTION, self.ok("show", "vm"))
        # The whole image, the boot loader's names among it, is out of sight.
        self.plaintext_search(SECRET, "EFI PART", "BOOTX64")

        script = (f"set -e; echo -n {SEALED} | coffer-demo-seal; seq 1 20000 > /tmp/file; echo \"{SECRET}\" >> /tmp/file; "
                  "dd if=/tmp/file of=/dev/nvme1n1 bs=4096 conv=sync,fsync 2>/dev/null; sync; echo synced; sleep 3600")
        self.kill_after(script, b"synced")
        self.plaintext_search(SECRET, "EFI PART", "19998\n19999")

        data = ("".join(f"{n}\n" for n in range(1, 20001)) + SECRET + "\n").encode()
        read_back = self.run_from_disk("vm", f"head -c {len(data)} /dev/nvme1n1 | sha256sum; coffer-demo-unseal")
        self.assertEqual(read_back.split()[0], hashlib.sha256(data).hexdigest())
        self.assertIn(SEALED, read_back)

        # Out again, as plain images.
        exported = self.host.folder / "exported.img"
        self.ok("disk", "export", "vm", "1", exported)
        content = exported.read_bytes()
        self.assertEqual(len(content), 64 << 20)
        self.assertEqual(content[:len(data)], data)
        self.assertFalse(any(content[len(data) + UNIT:]))
        self.refused(73, "disk", "export", "vm", "1", exported)
        self.refused(66, "disk", "export", "vm", "2", self.host.folder / "other.img")

    def test_changed_headers_are_refused(self):
        self.create("vm", "--encrypt-disks", *self.KIND, "--tpm", "none", "--disk", "new:16M")
        self.ok("disk", "export", "vm", "0", self.host.folder / "before.img")
        whole = self.image().read_bytes()
        for offset in (0, 24, 50, 70, 4064):
            # Both headers of an authenticated disk; the newest of them is in one of the two places.
            changed = bytearray(whole)
            for slot in (0, 4096):
                changed[slot + offset] ^= 1
            self.image().write_bytes(changed)
            said = self.refused(65, "disk", "export", "vm", "0", self.host.folder / "out.img")
            self.assertIn("disk-0", said)
            said = self.refused(65, "run", "vm", "--accel", "soft", "--timeout", 60)
            self.assertIn("disk-0", said)
        self.image().write_bytes(whole[:-1])
        self.refused(65, "run", "vm", "--accel", "soft", "--timeout", 60)
        self.image().unlink()
        self.assertIn("missing", self.refused(65, "run", "vm", "--accel", "soft", "--timeout", 60))
        self.image().write_bytes(whole)
        self.ok("disk", "export", "vm", "0", self.host.folder / "out.img")


class AuthenticatedDisks(Disks):
    KIND = ("--integrity",)
    PROTECTION = "authenticated"

    def test_a_changed_unit_is_a_media_error(self):
        data = self.host.folder / "data.img"
        data.write_bytes(bytes(range(256)) * 16 * 256)
        self.create("vm", "--encrypt-disks", "--integrity", "--disk", self.copy_of_disk(), "--disk", data)
        self.ok("disk", "check", "vm", "1")
        image = self.image(1)
        content = bytearray(image.read_bytes())
        content[data_offset(image) + 100 * UNIT + 17] ^= 1
        image.write_bytes(content)
        said = self.refused(65, "disk", "check", "vm", "1")
        self.assertIn("data unit 100 ", said)
        self.assertIn("1 of 256 data units", said)
        # The guest gets an error for that unit, and what lies beside it.
        done = self.host.coffer("run", "vm", "--accel", "soft", "--timeout", BOOT_LIMIT, "--exec",
                                "dd if=/dev/nvme1n1 of=/dev/null bs=4096 skip=100 count=1 iflag=direct && exit 1; "
                                "dd if=/dev/nvme1n1 bs=4096 skip=99 count=1 iflag=direct 2>/dev/null | sha256sum; "
                                "dmesg | grep nvme1n1",
                                limit=BOOT_LIMIT + 60)
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])
        self.assertIn(hashlib.sha256(bytes(range(256)) * 16).hexdigest(), done.stdout)
        self.assertRegex(done.stdout, r"critical medium error|I/O error|Unrecovered")
        self.assertRegex(done.stderr, r"disk-1: data unit 100 .*fails authentication")

    def test_an_old_image_is_refused(self):
        self.create("vm", "--encrypt-disks", "--integrity", "--tpm", "none", "--disk", "new:16M")
        old = self.image().read_bytes()
        # Each opening of a disk for a VM leaves a newer header.
        self.host.coffer("run", "vm", "--accel", "soft", "--timeout", 3, limit=120)
        self.image().write_bytes(old)
        said = self.refused(65, "run", "vm", "--accel", "soft", "--timeout", 60)
        self.assertRegex(said, "disk-0.*rolled back")


class Create(HostTest):
    def test_what_does_not_go_together(self):
        self.refused(2, "create", "vm", "--tpm", "none", "--encrypt-disks", "--disk", "new:16M")  # no provider
        self.add_provider()
        self.refused(2, "create", "vm", "--encrypt-disks")
        self.refused(2, "create", "vm", "--integrity", "--disk", "new:16M")
        self.refused(2, "create", "vm", "--disk", "new:16M")
        self.refused(2, "create", "vm", "--encrypt-disks", "--disk", "new:lots")
        self.refused(66, "create", "vm", "--encrypt-disks", "--disk", "/nonexistent")
        self.assertEqual(self.host.json("list"), [])
        self.create("vm", "--encrypt-disks", "--disk", "new:16M")
        self.refused(69, "disk", "check", "vm", "0")
        self.ok("remove", "vm", "--yes")
        self.assertFalse(self.host.home("vm").exists())


if __name__ == "__main__":
    unittest.main(verbosity=2)
