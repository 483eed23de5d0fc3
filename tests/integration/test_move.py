"""A VM moves to another folder for homes while it is off or suspended, and goes on there."""

import shutil
import signal
import subprocess
import unittest

from harness import BOOT_LIMIT, CMDLINE, IMAGES, HostTest

OFF = 75  # EX_TEMPFAIL: busy


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

    def test_running_is_refused_and_suspended_goes_on(self):
        self.create("vm")
        self.bring_provider()
        running = self.host.start("run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                  IMAGES / "initrd.img", "--cmdline", CMDLINE, "--exec",
                                  "echo begun; sleep 5; echo done", "--timeout", BOOT_LIMIT, stdout=subprocess.PIPE)
        self.addCleanup(running.kill)
        self.assertEqual(running.stdout.readline(), b"begun\n")
        said = self.refused(OFF, "move", "vm", "--home-root", self.there)
        self.assertIn("coffer suspend vm", said)
        self.ok("suspend", "vm", limit=120)
        running.wait(60)
        self.ok("move", "vm", "--home-root", self.there)
        resumed = self.host.coffer("--home-root", self.there, "resume", "vm", "--timeout", BOOT_LIMIT,
                                   limit=BOOT_LIMIT + 60)
        self.assertEqual((resumed.returncode, resumed.stdout), (0, "done\n"), resumed.stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    unittest.main()
