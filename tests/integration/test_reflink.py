"""Snapshots where the file system shares blocks between files: copies of disks cost no room, and there are no layers."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from harness import HostTest
from test_snapshot import Plain


def own_file_system(kind):
    """A folder with a small file system of this kind, and how to be rid of it; or why there is none."""
    if os.geteuid() != 0:
        raise unittest.SkipTest("needs root, to mount a file system")
    if not shutil.which(f"mkfs.{kind}"):
        raise unittest.SkipTest(f"needs mkfs.{kind}")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="coffer-reflink-"))
    image, place = folder / "image", folder / "mounted"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(1 << 30)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    mounted = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True)
    if mounted.returncode != 0:
        shutil.rmtree(folder)
        raise unittest.SkipTest(f"this machine mounts no {kind}: {mounted.stderr.strip()}")

    def close():
        subprocess.run(["umount", place], check=True)
        shutil.rmtree(folder)

    return place, close


class InOwnFileSystem(unittest.TestCase):
    """Hosts are made in there."""

    KIND = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        place, close = own_file_system(cls.KIND)
        cls.addClassCleanup(close)
        cls.addClassCleanup(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = str(place)

    @staticmethod
    def shares_all(path):
        done = subprocess.run(["filefrag", "-v", path], capture_output=True, text=True, check=True)
        extents = [line for line in done.stdout.splitlines() if line.split(":")[0].strip().isdigit()]
        return bool(extents) and all("shared" in line for line in extents)


class Off(InOwnFileSystem, HostTest):
    CONTENT = bytes(range(256)) * (32 << 10)  # 8 MiB

    def take_and_revert(self, *options):
        disk = self.host.folder / "disk.img"
        disk.write_bytes(self.CONTENT)
        self.create("vm", "--tpm", "none", "--disk", disk, *options)
        config = self.host.json("show", "vm")["config"]["disks"][0]
        used = pathlib.Path(config["path"])
        used = used if used.is_absolute() else self.host.home("vm") / used
        before = used.read_bytes()
        self.ok("snapshot", "take", "vm", "one")
        [copy] = self.host.home("vm").glob("saved-*-disk-0")
        self.assertEqual(copy.read_bytes(), before)
        self.assertTrue(self.shares_all(copy))
        self.assertEqual(self.host.json("show", "vm")["config"]["disks"][0]["layers"], 0)
        with open(used, "r+b") as file:
            file.seek(1 << 20)
            file.write(b"changed" * 1000)
        self.assertEqual(copy.read_bytes(), before, "what is written to the disk is not written to the copy")
        self.ok("snapshot", "revert", "vm", "one", "--yes")
        self.ok("snapshot", "delete", "vm", "one", "--yes")
        self.assertEqual(used.read_bytes(), before)
        self.assertEqual(list(self.host.home("vm").glob("saved-*")), [])


class OffXfs(Off):
    KIND = "xfs"

    def test_a_raw_disk(self):
        self.take_and_revert()

    def test_an_encrypted_disk(self):
        self.add_provider()
        self.take_and_revert("--encrypt-disks")


class OffBtrfs(Off):
    KIND = "btrfs"

    def test_a_raw_disk(self):
        self.take_and_revert()


class RunningXfs(InOwnFileSystem, Plain):
    KIND = "xfs"
    LAYERS = (0,)


del Plain, Off, InOwnFileSystem  # what is shared is no test

if __name__ == "__main__":
    unittest.main()
