"""Native key providers bound to the host's TPM, which a software TPM on loopback stands for."""

import os
import shutil
import socket
import subprocess
import time
import unittest

from test_native_provider import Native

SWTPM = "/usr/bin/swtpm"
START_LIMIT = 60


def free_pair():
    """Two neighbouring TCP ports: the TPM's, and the one of its control channel."""
    for port in range(20000 + os.getpid() % 9000 * 4, 60000, 2):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue
    raise AssertionError("no two neighbouring ports are free")


class SoftwareTpm:
    def __init__(self, folder, port):
        self.folder, self.port, self.process = folder, port, None
        folder.mkdir()

    def start(self):
        self.process = subprocess.Popen(
            [SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={self.folder}", "--server",
             f"type=tcp,port={self.port},bindaddr=127.0.0.1", "--ctrl",
             f"type=tcp,port={self.port + 1},bindaddr=127.0.0.1", "--flags", "not-need-init,startup-clear"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                # The control channel: a connection to the other would count as a client.
                if probe.connect_ex(("127.0.0.1", self.port + 1)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError("swtpm does not start")

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        self.process = None


@unittest.skipUnless(os.access(SWTPM, os.X_OK), "needs the package swtpm")
class Bound(Native):
    def setUp(self):
        super().setUp()
        self.port = free_pair()
        self.tpm = self.new_tpm("tpm")
        self.tpm.start()

    def new_tpm(self, name):
        tpm = SoftwareTpm(self.host.folder / name, self.port)
        self.addCleanup(tpm.stop)
        return tpm

    @property
    def tcti(self):
        return f"swtpm:host=127.0.0.1,port={self.port}"

    def add_bound(self, name="local", code=0):
        done = self.host.coffer("provider", "add", "native", name, "--require-host-tpm", "--tcti", self.tcti)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout + done.stderr

    def state(self, name, host=None):
        shown = (host or self.host).json("show", name)
        return shown["state"], shown.get("reason", "")

    def test_vms_start_with_this_tpm_and_with_no_other(self):
        self.assertNotIn("no passphrase", self.add_bound())
        self.assertEqual(self.provider()["host_tpm"], self.tcti)
        self.create_small("vm")
        self.assertEqual(self.state("vm")[0], "off")
        self.tpm.stop()
        state, reason = self.state("vm")
        self.assertEqual(state, "locked")
        self.assertIn(self.tcti, reason)
        self.tpm.start()  # a power cycle of the host
        self.assertEqual(self.state("vm")[0], "off")
        self.ok("provider", "rotate", "local")
        self.create_small("rotated")
        self.assertEqual({vm["state"] for vm in self.host.json("list")}, {"off"})
        # The same disk beside another TPM.
        self.tpm.stop()
        other = self.new_tpm("another")
        other.start()
        state, reason = self.state("vm")
        self.assertEqual(state, "locked")
        self.assertIn("another TPM", reason)
        self.assertIn("provider restore", reason)

    def test_restoring_seals_to_the_tpm_that_is_there(self):
        self.add_bound()
        self.create_small("old")
        self.ok("provider", "rotate", "local")
        self.create_small("new")
        self.backup()
        self.tpm.stop()
        self.tpm = self.new_tpm("another")
        self.tpm.start()
        self.assertEqual({vm["state"] for vm in self.host.json("list")}, {"locked"})
        self.assertIn("restored version 1, 2", self.restore(self.host))
        self.assertEqual({vm["state"] for vm in self.host.json("list")}, {"off"})
        # A host without a TPM takes the backup without the binding, and one with a TPM may bind it.
        plain = self.second_host()
        shutil.copytree(self.host.root / "vms", plain.root / "vms")
        self.restore(plain)
        self.assertNotIn("host_tpm", self.provider(host=plain))
        self.assertEqual({vm["state"] for vm in plain.json("list")}, {"off"})
        bound = self.second_host()
        shutil.copytree(self.host.root / "vms", bound.root / "vms")
        self.restore(bound, "--require-host-tpm", "--tcti", self.tcti)
        self.assertEqual(self.provider(host=bound)["host_tpm"], self.tcti)
        self.assertEqual({vm["state"] for vm in bound.json("list")}, {"off"})

    def test_the_key_is_not_on_the_disk(self):
        self.add_bound()
        self.create_small("vm")
        self.backup()
        # Where it is restored without the binding, the key lies in the open.
        plain = self.second_host()
        self.restore(plain)
        provider = self.provider()["id"]
        key = (plain.root / "providers" / provider / "kdk.1").read_bytes()[80:112]
        looked_at = 0
        for path in self.host.root.rglob("*"):
            if path.is_file():
                looked_at += 1
                self.assertNotIn(key, path.read_bytes(), path)
        self.assertGreaterEqual(looked_at, 5)

    def test_a_changed_key_file_is_refused(self):
        self.add_bound()
        self.create_small("vm")
        path = self.host.root / "providers" / self.provider()["id"] / "kdk.1"
        whole = path.read_bytes()
        for at in (0, 12, 33, 44, 90, 200, len(whole) - 100, len(whole) - 20, len(whole) - 1):
            changed = bytearray(whole)
            changed[at] ^= 1
            path.write_bytes(changed)
            state, reason = self.state("vm")
            self.assertEqual(state, "locked", at)
            self.assertIn("kdk.1", reason)
        for size in (0, 80, 128, len(whole) - 1):
            path.write_bytes(whole[:size])
            self.assertEqual(self.state("vm")[0], "locked")
        path.write_bytes(whole)
        self.assertEqual(self.state("vm")[0], "off")

    def test_refused_where_there_is_no_tpm(self):
        self.tpm.stop()
        why = self.add_bound(code=69)
        for word in ("no TPM 2.0", "backup", "--require-host-tpm"):
            self.assertIn(word, why)
        self.assertEqual(self.host.json("provider", "list"), [])
        if not os.path.exists("/dev/tpmrm0"):
            self.assertIn("/dev/tpmrm0", self.refused(69, "provider", "add", "native", "x", "--require-host-tpm"))
        self.refused(2, "provider", "add", "native", "x", "--require-host-tpm", "--tcti", "libtcti-of-mine.so")
        self.refused(2, "provider", "add", "native", "x", "--tcti", self.tcti)
        self.with_secrets("provider", "add", "native", "x", "--require-host-tpm", "--tcti", self.tcti, passphrase="p",
                          code=2)

    def test_a_passwordless_owner_is_needed_and_said(self):
        environment = {**os.environ, "TPM2TOOLS_TCTI": self.tcti}
        subprocess.run(["tpm2_changeauth", "-c", "owner", "secret"], env=environment, check=True, timeout=60)
        self.assertIn("owner hierarchy", self.add_bound(code=77))


del Native  # what is imported for its helpers is no test of this file

if __name__ == "__main__":
    unittest.main(verbosity=2)
