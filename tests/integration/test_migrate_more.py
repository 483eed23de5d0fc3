"""Migrations that differ in where the key is, and in what the guest just did."""

import hashlib
import os
import re
import subprocess
import unittest

from harness import BOOT_LIMIT, expected_pcrs
from test_kmip import KmipTest
from test_migrate import PASSWORD, MigrationTest, TwoHosts

STEPS = 40
# Keeps much in memory, counts in a PCR until it is told to end, and says at the end whether memory is as it was.
COUNT = f"""set -e; head -c 150000000 /dev/urandom > /tmp/kept; sum=$(sha256sum < /tmp/kept); echo kept
n=0; while [ $n -lt {STEPS} ]; do n=$((n+1)); tpm2_pcrextend 16:sha256=$(printf %064x $n)
echo step $n $(tpm2_pcrread sha256:16 | tail -1 | tr -d ' '); sleep 0.3; done
[ "$(sha256sum < /tmp/kept)" = "$sum" ]; echo memory is right; echo DONE"""


class Counting(TwoHosts):
    def migrate(self, place, *options, code=0, host=None, pass_fds=()):
        done = (host or self.host).coffer("migrate", "vm", "--to", place, *options, limit=BOOT_LIMIT)
        self.assertEqual(done.returncode, code, done.stderr + (self.there.folder / "received.err").read_text())
        return done.stdout + done.stderr

    def check_steps(self, *outputs):
        steps = [step for output in outputs for step in self.steps(output.read_text())]
        self.assertEqual([n for n, _ in steps], list(range(1, STEPS + 1)))
        pcrs = expected_pcrs(STEPS)
        for n, pcr in steps:
            self.assertEqual(pcr, pcrs[n - 1], f"PCR 16 after step {n}")

    def nothing_came(self, host):
        vms = host.root / "vms"
        self.wait_until(lambda: not vms.exists() or not any(vms.iterdir()))


class Resumed(Counting, MigrationTest):
    def create_vm(self):
        self.create("vm")

    def test_a_vm_whose_memory_is_still_being_restored(self):
        _, arrived, place = self.listen(self.there, "--verbose")
        process, output = self.start_guest(COUNT)
        self.wait_for(output, "^step 3 ", process=process)
        self.ok("suspend", "vm", limit=BOOT_LIMIT)
        process.wait(60)
        resumed = self.host.folder / "resumed"
        said = self.host.folder / "resumed.err"
        with open(resumed, "wb") as out, open(said, "wb") as err:
            process = self.host.start("resume", "vm", "--verbose", stdout=out, stderr=err)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        self.wait_until(lambda: self.host.coffer("show", "vm", "--json").stdout.find('"uptime') >= 0)
        restoring = "all of the saved memory is there" not in said.read_text()
        print("still restoring" if restoring else "restored", "when it was told to migrate:",
              self.migrate(place).strip())
        text = said.read_text()
        self.assertLess(text.index("all of the saved memory is there"), text.index("migration: round 1"))
        self.wait_for(arrived, "^DONE$")
        self.assertIn("memory is right", arrived.read_text())
        self.check_steps(output, resumed, arrived)


class Kmip(Counting, KmipTest):
    """Both hosts are clients of one key server; another one is a client, too, and may not have this VM's key."""

    def setUp(self):
        super().setUp()
        self.there = self.another_host()
        self.stranger = self.another_host()
        self.add("kms")
        self.id = self.host.json("provider", "show", "kms")["id"]
        self.add_there(self.there, self.client)
        self.add_there(self.stranger, self.authority.issue("stranger", "clientAuth"))
        self.trust_each_other(self.host, self.there, self.stranger)
        self.create("vm", "--provider", "kms")

    def add_there(self, host, client):
        def add(name, *options):
            return host.coffer("provider", "add", "kmip", name, "--endpoint", self.server.endpoint, "--ca",
                               self.authority.certificate, "--cert", client[0], "--key", client[1], *options)
        done = add("kms", "--id", self.id)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(host.json("provider", "show", "kms")["id"], self.id)
        again = add("again", "--id", self.id)
        self.assertEqual(again.returncode, 73, again.stderr)

    def test_moves_between_hosts_that_the_server_lets_have_the_key(self):
        _, _, no_key = self.listen(self.stranger, "--verbose")
        _, arrived, place = self.listen(self.there, "--verbose")
        process, output = self.start_guest(COUNT)
        self.wait_for(output, "^step 2 ", process=process)
        refusal = self.refused(77, "migrate", "vm", "--to", no_key)
        self.assertIn(self.id, refusal)
        self.assertIn(self.host.json("show", "vm")["key_id"], refusal)
        self.nothing_came(self.stranger)
        # Nor does a host that does not reach the server get it.
        self.server.kill()
        self.refused(77, "migrate", "vm", "--to", place)
        self.nothing_came(self.there)
        self.assertEqual(self.host.json("show", "vm")["state"], "running")
        self.server.start()
        self.migrate(place)
        self.wait_for(arrived, "^DONE$")
        self.check_steps(output, arrived)


class Elsewhere(Counting, MigrationTest):
    """The destination's provider is under a passphrase, and the VM's disk is a block device."""

    PASSPHRASE = "correct horse"
    SIZE = 8 << 20

    def create_vm(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to make a loop device")
        self.image = self.host.folder / "image"
        self.image.write_bytes(os.urandom(self.SIZE))
        done = subprocess.run(["losetup", "--find", "--show", self.image], capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest(f"this machine makes no loop device: {done.stderr.strip()}")
        self.device = done.stdout.strip()
        self.addCleanup(subprocess.run, ["losetup", "--detach", self.device], check=True)
        self.create("vm", "--disk", self.device)

    def resize_device(self, size):
        os.truncate(self.image, size)
        subprocess.run(["losetup", "--set-capacity", self.device], check=True)

    def pass_secret(self, text):
        read, write = os.pipe()
        os.write(write, text.encode() + b"\n")
        os.close(write)
        self.addCleanup(os.close, read)
        return read

    def guard_provider(self, host):
        """The same provider, restored under a passphrase."""
        self.assertEqual(host.coffer("provider", "remove", "local", "--yes").returncode, 0)
        fds = [self.pass_secret(self.PASSPHRASE), self.pass_secret(PASSWORD.strip())]
        done = host.coffer("provider", "restore", self.host.folder / "provider.p12", "--passphrase-fd", fds[0],
                           "--password-fd", fds[1], pass_fds=fds)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_block_devices_and_a_provider_with_a_passphrase(self):
        self.guard_provider(self.there)
        digest = "dd if=/dev/nvme0n1 bs=1M 2>/dev/null | sha256sum"
        process, output = self.start_guest(
            f"{digest}; {COUNT}; echo written | dd of=/dev/nvme0n1 bs=512 seek=9 conv=sync,fsync 2>/dev/null; "
            f"{digest}; echo OVER")
        self.wait_for(output, "^step 1 ", process=process)

        # Nobody is there to be asked for the passphrase.
        receiver, _, place = self.listen(self.there, "--shared-folder", "/dev")
        self.assertIn("passphrase", self.refused(77, "migrate", "vm", "--to", place))
        self.nothing_came(self.there)
        receiver.terminate()
        receiver.wait()
        secret = self.pass_secret(self.PASSPHRASE)
        _, arrived, place = self.listen(self.there, "--shared-folder", "/dev", "--passphrase-fd", secret,
                                        pass_fds=[secret])
        # A device that is not the one that the VM has.
        self.resize_device(2 * self.SIZE)
        self.assertIn("of another size", self.refused(66, "migrate", "vm", "--to", place))
        self.resize_device(self.SIZE)
        self.migrate(place)

        # And on to a third host, with a copy of what is in the device.
        third = self.another_host()
        self.with_secret(third, "provider", "restore", self.host.folder / "provider.p12")
        self.trust_each_other(self.there, third)
        places = third.folder / "disks"
        places.mkdir()
        _, at_third, place = self.listen(third, "--disk-folder", places)
        self.assertRegex(self.migrate(place, "--copy-disks", host=self.there), "8 MiB of disks")
        self.wait_for(at_third, "^OVER$")
        self.check_steps(output, arrived, at_third)
        before = self.image.read_bytes()
        after = before[:9 * 512] + b"written\n".ljust(512, b"\0") + before[10 * 512:]
        said = output.read_text() + arrived.read_text() + at_third.read_text()
        self.assertEqual(re.findall(r"^(\w{64})  -$", said, re.M),
                         [hashlib.sha256(content).hexdigest() for content in (before, after)])
        self.wait_until(lambda: third.json("show", "vm")["state"] == "off")
        [copy] = places.iterdir()
        self.assertEqual(copy.read_bytes(), after)


del KmipTest, MigrationTest  # what is imported for its helpers is no test of this file

if __name__ == "__main__":
    unittest.main()
