"""Homes on a disk that is full or read-only: a small file system of the test's own, in a mount namespace of its own."""

import ctypes
import os
import shutil
import struct
import subprocess
import time
import unittest

from harness import BOOT_LIMIT, CMDLINE, IMAGES
from test_tpm_serve import PATIENCE, RANDOM, STARTUP, ServeTest, code, receive, transact

CLONE_NEWNS = 0x00020000
RETRY = 0x922
INDEX = 0x01500001
# TPM2_NV_DefineSpace of INDEX under the owner's empty password: 8 bytes that owner and index password may read and write.
PUBLIC = struct.pack(">IHIHH", INDEX, 0xB, 0x00060006, 0, 8)
DEFINE_BODY = struct.pack(">II", 0x40000001, 9) + struct.pack(">IHBH", 0x40000009, 0, 0, 0) + \
    struct.pack(">H", 0) + struct.pack(">H", len(PUBLIC)) + PUBLIC
DEFINE = struct.pack(">HII", 0x8002, 10 + len(DEFINE_BODY), 0x12A) + DEFINE_BODY
NV_INDICES = struct.pack(">HIIIII", 0x8001, 22, 0x17A, 1, INDEX, 1)


def own_mounts():
    """Whether this process now has mounts that nobody else sees."""
    if os.geteuid() != 0:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


OWN_MOUNTS = own_mounts()


@unittest.skipUnless(OWN_MOUNTS, "needs root, to mount a small file system")
class SmallDisk(ServeTest):
    def make_vm(self):
        self.host.root.mkdir(parents=True)
        self.mount("-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs")
        self.addCleanup(lambda: subprocess.run(["umount", "-l", self.host.root], check=False))
        self.errors = open(self.host.folder / "errors", "w+b")
        self.addCleanup(self.errors.close)
        super().make_vm()

    def mount(self, *arguments):
        subprocess.run(["mount", *arguments, self.host.root], check=True)

    def fill(self):
        with open(self.host.root / "ballast", "wb", buffering=0) as ballast:
            size = 1 << 20
            while size:
                try:
                    ballast.write(b"\x55" * size)
                except OSError:
                    size //= 2
        self.assertEqual(shutil.disk_usage(self.host.root).free, 0)

    def make_room(self):
        (self.host.root / "ballast").unlink()

    def test_the_tpm_says_retry_while_the_disk_is_full_and_loses_nothing(self):
        server = self.serve()
        data = self.data()
        self.assertEqual(code(transact(data, STARTUP)), 0)
        self.fill()

        # The command is carried out, and its response waits for the disk.
        data.sendall(DEFINE)
        data.settimeout(3)
        with self.assertRaises(TimeoutError):
            data.recv(1)
        # Its client goes away. The next one is told to come again, as often as it asks.
        data.close()
        data = self.data()
        for _ in range(3):
            self.assertEqual(code(transact(data, RANDOM)), RETRY)
            self.assertEqual(code(transact(data, NV_INDICES)), RETRY)
        self.assertIn(b"No space left", (self.host.folder / "errors").read_bytes())

        self.make_room()
        self.assertEqual(code(transact(data, RANDOM)), 0)
        self.assertIn(struct.pack(">I", INDEX), transact(data, NV_INDICES))
        data.close()
        server.kill()
        server.wait()
        self.serve()
        data = self.data()
        self.assertEqual(code(transact(data, STARTUP)), 0)
        self.assertIn(struct.pack(">I", INDEX), transact(data, NV_INDICES), "what was acknowledged is there")

    def test_a_held_response_comes_when_there_is_room(self):
        server = self.serve()
        data = self.data()
        self.assertEqual(code(transact(data, STARTUP)), 0)
        self.fill()
        data.sendall(DEFINE)
        data.settimeout(2)
        with self.assertRaises(TimeoutError):
            data.recv(1)
        # Killed before it could promise anything, it may lose the command, and nothing else.
        data.settimeout(PATIENCE)
        self.make_room()
        self.assertEqual(code(receive(data, 10)), 0)
        server.kill()
        server.wait()
        self.serve()
        data = self.data()
        self.assertEqual(code(transact(data, STARTUP)), 0)
        self.assertIn(struct.pack(">I", INDEX), transact(data, NV_INDICES))

    def test_a_guests_command_waits_for_the_disk(self):
        errors = self.host.folder / "errors"
        with open(errors, "wb") as sink:
            # The disk is filled while the guest sleeps.
            machine = self.host.start("run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                      IMAGES / "initrd.img", "--cmdline", CMDLINE, "--timeout", 2 * BOOT_LIMIT, "--exec",
                                      f"echo ready; sleep 30; tpm2_nvdefine -Q -C o -s 8 {INDEX:#x}; echo defined $?; "
                                      "tpm2_getrandom 4 > /dev/null; echo random $?",
                                      stdout=subprocess.PIPE, stderr=sink, text=True)
        self.addCleanup(machine.stdout.close)
        self.addCleanup(machine.wait)
        self.addCleanup(machine.kill)
        self.assertEqual(machine.stdout.readline(), "ready\n", errors.read_text()[-2000:])
        self.fill()
        deadline = time.monotonic() + BOOT_LIMIT
        while "TPM state cannot be stored" not in errors.read_text():
            self.assertLess(time.monotonic(), deadline, errors.read_text()[-2000:])
            self.assertIsNone(machine.poll())
            time.sleep(0.2)
        time.sleep(2)
        self.assertIsNone(machine.poll(), "the guest waits")
        self.make_room()
        self.assertEqual(machine.stdout.read(), "defined 0\nrandom 0\n")
        self.assertEqual(machine.wait(BOOT_LIMIT), 0)
        self.serve()
        data = self.data()
        self.assertEqual(code(transact(data, STARTUP)), 0)
        self.assertIn(struct.pack(">I", INDEX), transact(data, NV_INDICES))

    def test_a_vm_that_does_not_fit_is_not_made(self):
        self.fill()
        self.assertIn("No space left", self.refused(74, "create", "other", "--memory", "256M"))
        self.assertEqual([vm["name"] for vm in self.host.json("list")], ["vm"])
        self.make_room()
        self.create("other")
        self.assertEqual([vm["name"] for vm in self.host.json("list")], ["other", "vm"])

    def test_a_read_only_disk_is_said_and_nothing_lost(self):
        self.ok("tpm", "show", "vm")
        self.mount("-o", "remount,ro")
        self.assertIn("Read-only file system", self.refused(77, "run", "vm", "--accel", "soft", "--timeout", "1"))
        self.assertIn("Read-only file system", self.refused(77, "create", "other"))
        self.assertEqual(self.host.json("show", "vm")["state"], "off")
        self.mount("-o", "remount,rw")
        self.refused(124, "run", "vm", "--accel", "soft", "--timeout", "1", "--serial", self.host.folder / "serial")
        self.ok("tpm", "show", "vm")


if __name__ == "__main__":
    unittest.main()
