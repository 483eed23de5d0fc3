"""A guest moves to another host while it runs, with its TPM: nothing is lost, and nobody without the key gets it."""

import hashlib
import json
import re
import signal
import socket
import subprocess
import threading
import time
import unittest

from harness import BOOT_LIMIT, CMDLINE, IMAGES, Host, HostTest, expected_pcrs

PASSWORD = "a password for the backup\n"
SECRET = "sealed-before-the-move"
# Counts, and extends a PCR with every count, until it is told to end; then opens what it sealed before.
LOOP = """set -e
printf %s {secret} | coffer-demo-seal >/dev/null
n=0; while [ $n -lt {steps} ]; do n=$((n+1)); tpm2_pcrextend 16:sha256=$(printf %064x $n)
printf %08d $n | dd of=/dev/nvme0n1 bs=512 seek=$n conv=sync,notrunc,fsync 2>/dev/null
echo step $n $(tpm2_pcrread sha256:16 | tail -1 | tr -d ' '); sleep 0.3; done
coffer-demo-unseal; echo"""


class TwoHosts(HostTest):
    """What tests of two hosts share."""

    def another_host(self):
        host = Host()
        self.addCleanup(host.close)
        return host

    def with_secret(self, host, *arguments):
        path = host.folder / "password"
        path.write_text(PASSWORD)
        with open(path) as secret:
            done = host.coffer(*arguments, "--password-fd", secret.fileno(), pass_fds=[secret.fileno()])
        self.assertEqual(done.returncode, 0, done.stderr)

    def trust_each_other(self, *hosts):
        for host in hosts:
            done = host.coffer("host", "cert", "--export", host.folder / "cert.pem")
            self.assertEqual(done.returncode, 0, done.stderr)
        for host in hosts:
            for other in hosts:
                if other is not host:
                    done = host.coffer("host", "trust", other.folder / "cert.pem", "--name", other.folder.name)
                    self.assertEqual(done.returncode, 0, done.stderr)

    def listen(self, host, *options, address="127.0.0.1", **how):
        """A host that receives: its process, the file that takes what it and its VMs print, and where it listens."""
        output = host.folder / "received"
        errors = host.folder / "received.err"
        with open(output, "wb") as out, open(errors, "wb") as err:
            process = host.start("receive", "--listen", f"{address}:0", *options, stdout=out, stderr=err, **how)
        self.addCleanup(self.stop_all, host, process)
        place = self.wait_for(output, r"listens on (\S+),").group(1)
        return process, output, place

    def stop_all(self, host, process):
        host.coffer("stop", "vm", "--force")
        process.terminate()
        process.wait(30)

    def wait_for(self, path, pattern, limit=BOOT_LIMIT, process=None):
        deadline = time.monotonic() + limit
        while True:
            text = path.read_text(errors="replace")
            found = re.search(pattern, text, re.M)
            if found:
                return found
            if process is not None:
                self.assertIsNone(process.poll(), text[-3000:])
            self.assertLess(time.monotonic(), deadline, text[-3000:])
            time.sleep(0.1)

    def wait_until(self, true, limit=BOOT_LIMIT):
        deadline = time.monotonic() + limit
        while not true():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def start_guest(self, command):
        output = self.host.folder / "output"
        with open(output, "wb") as file:
            process = self.host.start("run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                      IMAGES / "initrd.img", "--cmdline", CMDLINE, "--exec", command,
                                      stdout=file, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process, output

    def steps(self, text):
        return [(int(n), pcr.split("0x")[-1].lower()) for n, pcr in re.findall(r"^step (\d+) (\S+)$", text, re.M)]


class MigrationTest(TwoHosts):
    """Two hosts that trust each other, with the same native provider; the first has a VM."""

    def setUp(self):
        super().setUp()
        self.add_provider()
        self.there = self.another_host()
        self.with_secret(self.host, "provider", "backup", "local", self.host.folder / "provider.p12")
        self.with_secret(self.there, "provider", "restore", self.host.folder / "provider.p12")
        self.trust_each_other(self.host, self.there)
        self.create_vm()

    def create_vm(self):
        # On storage that both hosts share, which is what two roots of one machine have.
        self.disk = self.host.folder / "shared.img"
        with open(self.disk, "wb") as file:
            file.truncate(1 << 20)
        self.create("vm", "--disk", self.disk)


# What a message without content is as a TLS 1.3 record: 12 bytes, the content's type and a tag of 16 (RFC 8446, 5.2).
BARE_MESSAGE = 12 + 1 + 16


class Proxy:
    """Passes connections on to a host, and cuts the first one where it is told to."""

    def __init__(self, place, cut_after_bytes=None, cut_at_bare_message=None, stall=False, once=False,
                 in_network=lambda: None, on_cut=lambda: None):
        """`cut_at_bare_message`: (from the source?, number): that message is not passed on. `stall`: nothing more is
        passed on, and the connection stays. `once`: there is no other one. `in_network` is called on the threads that make sockets."""
        self.in_network = in_network
        self.on_cut = on_cut
        self.stall = stall
        self.once = once
        host, port = place.rsplit(":", 1)
        self.target = (host, int(port))
        self.bytes_left = cut_after_bytes
        self.bare = cut_at_bare_message
        self.first = True
        self.cuts = 0
        self.ends = []
        listens = threading.Event()
        threading.Thread(target=self.accept, args=(listens,), daemon=True).start()
        listens.wait()

    def accept(self, listens):
        self.in_network()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.place = "127.0.0.1:%d" % self.listener.getsockname()[1]
        listens.set()
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target)
            except OSError:
                near.close()
                continue
            self.ends += [near, far]
            faulty, self.first = self.first, False
            for source, sink, outward in ((near, far, True), (far, near, False)):
                threading.Thread(target=self.pass_on, args=(source, sink, outward, faulty), daemon=True).start()

    def pass_on(self, source, sink, outward, faulty):
        """Record by record."""
        bare = 0
        try:
            while True:
                record = self.read(source, 5)
                record += self.read(source, int.from_bytes(record[3:5], "big"))
                if faulty:
                    if self.bytes_left is not None and outward:
                        self.bytes_left -= len(record)
                    if record[0] == 23 and len(record) - 5 == BARE_MESSAGE:
                        bare += 1
                    if (self.bytes_left is not None and self.bytes_left < 0) or self.bare == (outward, bare):
                        self.cuts += 1
                        self.on_cut()
                        if self.once:
                            self.listener.shutdown(socket.SHUT_RDWR)
                        while self.stall and source.recv(1 << 16):
                            pass
                        break
                sink.sendall(record)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    @staticmethod
    def read(source, size):
        data = b""
        while len(data) < size:
            more = source.recv(size - len(data))
            if not more:
                raise OSError("end")
            data += more
        return data

    def close(self):
        for end in (self.listener, *self.ends):
            end.close()


class Live(MigrationTest):
    STEPS = 60

    def proxy(self, place, **cut):
        proxy = Proxy(place, **cut)
        self.addCleanup(proxy.close)
        return proxy

    def migrate(self, host, place, code=0):
        done = host.coffer("migrate", "vm", "--to", place, limit=BOOT_LIMIT)
        said = [(h.folder / "received.err").read_text() for h in (self.host, self.there)
                if (h.folder / "received.err").exists()]
        self.assertEqual(done.returncode, code, done.stderr + "\n".join(said))
        return done.stdout + done.stderr

    def start_migrating(self, place):
        with open(self.host.folder / "migrating.err", "wb") as errors:
            process = self.host.start("migrate", "vm", "--to", place, stdout=subprocess.DEVNULL, stderr=errors)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def assert_clean(self, host):
        """Nothing of the VM is there, soon."""
        deadline = time.monotonic() + 60
        vms = host.root / "vms"
        while vms.exists() and any(vms.iterdir()):
            self.assertLess(time.monotonic(), deadline, list(vms.iterdir()))
            time.sleep(0.2)

    def test_goes_on_without_a_lost_or_repeated_step(self):
        stranger = self.another_host()
        self.trust_each_other(self.host, stranger)
        _, _, no_key = self.listen(stranger)
        careful, _, careful_place = self.listen(self.there)
        _, back, home_place = self.listen(self.host, "--verbose", "--shared-folder", self.disk.parent)
        process, output = self.start_guest(LOOP.format(secret=SECRET, steps=self.STEPS))
        self.wait_for(output, r"^step 2 ", process=process)

        # A host that is trusted and has no key is refused before anything moves; the line names key and provider.
        shown = self.host.json("show", "vm")
        refusal = self.refused(77, "migrate", "vm", "--to", no_key)
        self.assertIn(shown["key_id"], refusal)
        self.assertIn(shown["provider"]["id"], refusal)
        self.assert_clean(stranger)

        # One that shares no folder uses no file as a disk, whatever path it is told.
        self.assertIn("--shared-folder", self.refused(77, "migrate", "vm", "--to", careful_place))
        self.assert_clean(self.there)
        careful.terminate()
        careful.wait()
        _, arrived, place = self.listen(self.there, "--verbose", "--shared-folder", self.disk.parent)

        # The connection is lost while memory is sent: the guest goes on here.
        cut = self.proxy(place, cut_after_bytes=1 << 20)
        self.migrate(self.host, cut.place, code=74)
        self.assertEqual(cut.cuts, 1)
        self.assertEqual(self.host.json("show", "vm")["state"], "running")
        self.assert_clean(self.there)

        # The user gives it up.
        stalled = self.proxy(place, cut_after_bytes=1 << 20, stall=True)
        migrating = self.start_migrating(stalled.place)
        self.wait_until(lambda: stalled.cuts == 1)
        # Meanwhile nothing else copies the VM.
        self.assertIn("busy with another request", self.refused(75, "snapshot", "take", "vm", "meanwhile"))
        self.assertIn("busy with another request", self.refused(75, "move", "vm", "--home-root", self.there.root))
        self.assertIn("busy with another request", self.refused(75, "migrate", "vm", "--to", place))
        migrating.send_signal(signal.SIGINT)
        self.assertEqual(migrating.wait(60), 130)
        self.assertEqual(self.host.json("show", "vm")["state"], "running")
        self.assert_clean(self.there)

        # The connection is lost at the very moment when the destination has started: Started, after Ready, is never
        # heard, and nobody can be asked. Then the source's process is killed.
        cut = self.proxy(place, cut_at_bare_message=(False, 2), once=True)
        migrating = self.start_migrating(cut.place)
        self.wait_for(self.host.folder / "migrating.err", "has not confirmed")
        self.assertEqual(cut.cuts, 1)
        self.assertEqual(self.host.json("show", "vm")["state"], "handed-over")
        migrating.send_signal(signal.SIGINT)
        self.assertEqual(migrating.wait(60), 75)
        process.kill()
        process.wait()
        self.assertIn("--resolve", self.refused(75, "run", "vm", "--exec", "true"))
        self.assertIn("runs on host", self.ok("migrate", "--resolve", "vm", "--to", place))

        # The old copy says where the VM is, and is not run.
        self.assertEqual(self.host.json("show", "vm")["state"], "handed-over")
        self.assertIn("has moved to host", self.refused(75, "run", "vm", "--exec", "true"))
        self.assertEqual(self.there.json("show", "vm")["state"], "running")
        # Even without the mark the counter refuses it.
        record = next(path for path in (self.host.folder / "state").rglob("vm") if path.is_file())
        kept = record.read_bytes()
        content = bytearray(kept)
        content[12] &= ~2
        content[64:] = hashlib.sha256(content[:64]).digest()
        record.write_bytes(content)
        self.assertIn("rolled back", self.refused(65, "run", "vm", "--exec", "true"))
        record.write_bytes(kept)

        # And back, over the copy that was handed over: the word that lets the destination go is lost this time.
        steps_there = len(self.steps(arrived.read_text()))
        self.wait_for(arrived, rf"(?:^step .*\s+){{{steps_there + 1}}}")
        cut = self.proxy(home_place, cut_at_bare_message=(True, 1))
        self.assertIn("runs on the other host", self.migrate(self.there, cut.place))
        self.assertEqual(cut.cuts, 1)
        self.assertEqual(self.there.json("show", "vm")["state"], "handed-over")
        self.assertEqual(self.host.json("show", "vm")["state"], "running")

        # Once more there, undisturbed.
        self.ok_there("remove", "vm", "--yes")
        said = self.migrate(self.host, place)
        print(said.strip())
        self.assertRegex(said, r"downtime [0-9.]+ ms")

        self.wait_for(arrived, f"^{SECRET}$")
        runs = [self.steps(path.read_text()) for path in (output, arrived, back)]
        for run in runs:
            self.assertTrue(run, "it counted on each host")
        steps = sorted(runs[0] + runs[1] + runs[2])
        self.assertEqual([n for n, _ in steps], list(range(1, self.STEPS + 1)))
        pcrs = expected_pcrs(self.STEPS)
        for n, pcr in steps:
            self.assertEqual(pcr, pcrs[n - 1], f"PCR 16 after step {n}")

        disk = self.disk.read_bytes()
        for n in range(1, self.STEPS + 1):
            self.assertEqual(disk[512 * n:512 * n + 8], b"%08d" % n, f"the disk's sector of step {n}")

        self.ok("remove", "vm", "--yes")
        deadline = time.monotonic() + 60
        while self.there.json("show", "vm")["state"] != "off":
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.2)
        kinds = [event["kind"] for event in self.there.json("show", "vm")["history"]]
        self.assertEqual(kinds.count("received"), 3)

    def ok_there(self, *arguments):
        done = self.there.coffer(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)


class Hosts(HostTest):
    def test_certificates_are_made_shown_and_pinned(self):
        other = Host()
        self.addCleanup(other.close)
        mine = self.host.json("host", "cert")
        self.assertEqual(mine["fingerprint"], self.host.json("host", "cert")["fingerprint"])
        done = other.coffer("host", "cert", "--export", other.folder / "cert.pem")
        self.assertEqual(done.returncode, 0, done.stderr)
        theirs = other.json("host", "cert")
        self.ok("host", "trust", other.folder / "cert.pem", "--name", "there")
        listed = self.host.json("host", "list")
        self.assertEqual([(h["name"], h["fingerprint"]) for h in listed], [("there", theirs["fingerprint"])])
        self.ok("host", "cert", "--export", self.host.folder / "own.pem")
        self.assertIn("own certificate", self.refused(2, "host", "trust", self.host.folder / "own.pem"))
        self.assertNotEqual(json.loads(self.ok("host", "cert", "--renew", "--json"))["fingerprint"],
                            mine["fingerprint"])
        self.ok("host", "untrust", "there")
        self.assertEqual(self.host.json("host", "list"), [])
        self.refused(66, "host", "untrust", "there")
        for path in (self.host.folder / "state").rglob("identity"):
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)

    def test_verbs_say_what_is_missing(self):
        self.assertIn("no VM", self.refused(66, "migrate", "vm", "--to", "127.0.0.1:1"))
        self.refused(2, "migrate", "vm")
        self.refused(2, "migrate", "vm", "--to", "nowhere")
        self.assertIn("no VM", self.refused(66, "migrate", "vm", "--resolve"))
        self.add_provider()
        self.create("vm")
        self.assertIn("no migration", self.refused(2, "migrate", "vm", "--resolve"))
        self.assertIn("not running", self.refused(66, "migrate", "vm", "--to", "127.0.0.1:1"))


if __name__ == "__main__":
    unittest.main()
