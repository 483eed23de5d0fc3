"""A running VM from outside: its control socket, its memory, and what it leaves behind."""

import base64
import contextlib
import hashlib
import hmac
import os
import pathlib
import re
import resource
import struct
import subprocess
import time
import unittest
import uuid

from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from harness import BOOT_LIMIT, CMDLINE, IMAGES, HostTest
from test_disk import OWN_MOUNTS


class RunningTest(HostTest):
    def start_vm(self, *options, **process_options):
        """Starts the VM `vm` with its serial console and its errors in files."""
        self.serial = self.host.folder / "serial"
        self.errors = open(self.host.folder / "errors", "w+b")
        self.addCleanup(self.errors.close)
        machine = self.host.start("run", "vm", "--accel", "soft", "--serial", self.serial, *options,
                                  stdout=subprocess.DEVNULL, stderr=self.errors, **process_options)
        self.addCleanup(machine.wait)
        self.addCleanup(machine.kill)
        return machine

    def wait_for(self, what, condition, machine, limit=BOOT_LIMIT):
        deadline = time.monotonic() + limit
        while not condition():
            if machine.poll() is not None:
                self.fail(f"the VM ended before {what}: {(self.host.folder / 'errors').read_text()[-3000:]}")
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.2)

    def wait_for_control(self, machine):
        self.wait_for("it answers", lambda: "backend" in self.host.json("show", "vm"), machine)

    def wait_for_serial(self, machine, text):
        self.wait_for(f"{text!r} was printed", lambda: self.serial.exists() and text in self.serial.read_bytes(), machine)


class Control(RunningTest):
    def test_show_says_how_it_runs_and_stop_ends_it(self):
        self.create("vm", "--tpm", "none")
        self.assertNotIn("backend", self.host.json("show", "vm"))
        self.assertIn("not running", self.refused(66, "stop", "vm"))
        self.assertIn("nosuch", self.refused(66, "stop", "nosuch"))
        machine = self.start_vm()
        self.wait_for_control(machine)
        first = self.host.json("show", "vm")
        self.assertEqual((first["state"], first["backend"], first["pid"]), ("running", "soft", machine.pid))
        time.sleep(0.1)
        self.assertGreater(self.host.json("show", "vm")["uptime"], first["uptime"])
        self.assertRegex(self.ok("show", "vm"), r"backend +soft\nuptime +\d+ ")
        # Nothing listens to the power button as early as this.
        self.assertIn("--force", self.refused(124, "stop", "vm", "--timeout", "1"))
        self.assertIn("is off", self.ok("stop", "vm", "--force"))
        self.assertEqual(machine.wait(60), 128 + 15)
        self.assertEqual(self.host.json("show", "vm")["state"], "off")

    def test_the_socket_of_a_killed_vm_is_no_vm(self):
        self.create("vm", "--tpm", "none")
        machine = self.start_vm()
        self.wait_for_control(machine)
        machine.kill()
        machine.wait()
        self.assertEqual(len(list((self.host.folder / "run").rglob("vm"))), 1)
        self.refused(66, "stop", "vm")
        machine = self.start_vm()
        self.wait_for_control(machine)
        self.ok("stop", "vm", "--force")

    def test_a_home_in_other_hands_is_busy(self):
        self.add_provider()
        self.create("vm")
        server = self.host.start("tpm", "serve", "vm", "--socket-dir", self.host.folder / "tpm", stdout=subprocess.PIPE)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.assertIn(b"serving", server.stdout.readline())
        self.assertIn(str(server.pid), self.refused(75, "stop", "vm"))

    def test_a_guest_powers_off_when_its_button_is_pressed(self):
        self.create("vm", "--tpm", "none")
        machine = self.start_vm("--kernel", IMAGES / "vmlinuz", "--initrd", IMAGES / "initrd.img", "--cmdline", CMDLINE,
                                "--verbose")
        self.wait_for_serial(machine, b"coffer-demo-eventlog")  # the demo guest's greeting
        # acpid comes up beside the shell.
        deadline = time.monotonic() + BOOT_LIMIT
        while self.host.coffer("stop", "vm", "--timeout", "20").returncode != 0:
            self.assertLess(time.monotonic(), deadline)
            if machine.poll() is not None:
                break
        self.assertEqual(machine.wait(60), 0, "the guest switched itself off")


def tagged(data):
    fields = {}
    while data:
        tag, length = struct.unpack("<HI", data[:6])
        fields[tag] = data[6:6 + length]
        data = data[6 + length:]
    return fields


def hkdf(key, salt, info, size):
    prk = hmac.new(salt, key, hashlib.sha256).digest()
    output = b""
    block = b""
    for number in range(1, -(-size // 32) + 1):
        block = hmac.new(prk, block + info + bytes([number]), hashlib.sha256).digest()
        output += block
    return output[:size]


class Keys:
    """All keys of a VM under a native provider without a passphrase, by docs/formats/home.md alone."""

    def __init__(self, host, name):
        self.kdk_file = next((host.root / "providers").rglob("kdk.1"))
        kdk_file = self.kdk_file.read_bytes()
        assert kdk_file[:7] == b"COFRKDK" and kdk_file[32] == 0
        self.kdk = kdk_file[80:112]
        keys = (host.home(name) / "keys").read_bytes()
        header_size, sealed_size = struct.unpack("<II", keys[12:20])
        head = tagged(keys[64:64 + header_size])
        context = uuid.UUID(tagged(head[4])[1].hex()).bytes + uuid.UUID(head[5].decode().split("/")[1]).bytes
        fixed = b"coffer native provider KEK" + b"\0" + context + struct.pack(">I", 256)
        self.kek = hmac.new(self.kdk, struct.pack(">I", 1) + fixed, hashlib.sha256).digest()
        self.bundle = keywrap.aes_key_unwrap_with_padding(self.kek, head[6])
        sealed = keys[64 + header_size:64 + header_size + sealed_size]
        key = hkdf(self.bundle, head[7], b"coffer home 1 keys", 32)
        content = AESGCM(key).decrypt(bytes(12), sealed, keys[:64 + header_size])
        assert struct.unpack("<I", content[:4])[0] == 1
        self.dek = content[8:72]


class Process:
    """The memory of a running process, by /proc/PID/mem."""

    def __init__(self, pid):
        self.pid = pid

    def regions(self):
        for line in pathlib.Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            first, last, rights, name = re.match(r"(\w+)-(\w+) (\S+) \S+ \S+ \S+ *(.*)", line).groups()
            if rights[0] == "r" and name not in ("[vvar]", "[vsyscall]"):
                yield int(first, 16), int(last, 16), rights

    def find(self, needles):
        """Which of the needles the process holds anywhere, and how many bytes were looked at."""
        longest = max(map(len, needles.values()))
        step = 16 << 20
        found = set()
        total = 0
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            for first, last, _ in self.regions():
                for at in range(first, last, step):
                    # A page that a thread unmaps meanwhile, or a device's, cannot be read.
                    with contextlib.suppress(OSError):
                        data = os.pread(memory.fileno(), min(step + longest, last - at), at)
                        total += len(data)
                        found |= {name for name, needle in needles.items() if needle in data}
        return found, total

    def plant(self, secret):
        """Writes it into the largest writable region: the guest's memory."""
        first, last, _ = max((region for region in self.regions() if "w" in region[2]), key=lambda r: r[1] - r[0])
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), secret, (first + last) // 2)


def encodings(secret):
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):
        yield base64.b64encode(bytes(shift) + secret)[4 if shift else 0:-4]


@unittest.skipUnless(os.geteuid() == 0, "needs root, to read another process's memory")
class Secrets(RunningTest):
    def test_the_machine_process_never_holds_a_providers_key(self):
        self.add_provider()
        self.ok("create", "vm", "--memory", "256M")
        keys = Keys(self.host, "vm")
        needles = {"KDK": keys.kdk, "KEK": keys.kek, "bundle key": keys.bundle, "DEK": keys.dek}
        machine = self.start_vm()
        self.wait_for_control(machine)
        process = Process(machine.pid)
        # While it starts, and when the firmware has used TPM and variables. What has to be there is found, in the locked
        # memory for keys, so the search reaches it.
        found, total = process.find(needles)
        self.assertEqual(found, {"bundle key", "DEK"})
        self.wait_for_serial(machine, b"BdsDxe")
        found, total = process.find(needles)
        self.assertEqual(found, {"bundle key", "DEK"}, "no key of a provider is in the guest-facing process")
        self.assertGreater(total, 256 << 20, "the guest's memory, too")
        process.plant(keys.kdk)
        self.assertIn("KDK", process.find(needles)[0], "the search finds one that is there")
        limits = pathlib.Path(f"/proc/{machine.pid}/limits").read_text()
        self.assertRegex(limits, r"Max core file size +0 +0 ")
        for place in ("cmdline", "environ"):
            data = pathlib.Path(f"/proc/{machine.pid}/{place}").read_bytes()
            self.assertFalse(any(form in data for secret in needles.values() for form in encodings(secret)))
        self.ok("stop", "vm", "--force")
        machine.wait(60)
        self.ok("tpm", "show", "vm")

        # What stays behind: home, host's records, console, messages.
        files = [path for path in self.host.folder.rglob("*") if path.is_file() and path != keys.kdk_file]
        self.assertGreater(len(files), 6)
        for path in files:
            data = path.read_bytes()
            for name, secret in needles.items():
                self.assertFalse(any(form in data for form in encodings(secret)), f"{path} holds the {name}")
        self.assertIn(keys.kdk, keys.kdk_file.read_bytes())

    def test_memory_is_locked_where_that_is_asked_for(self):
        self.create("vm", "--tpm", "none")
        machine = self.start_vm("--lock-memory")
        self.wait_for_control(machine)
        status = pathlib.Path(f"/proc/{machine.pid}/status").read_text()
        locked = int(re.search(r"VmLck:\s+(\d+) kB", status).group(1))
        self.assertGreater(locked, 512 << 10)
        self.ok("stop", "vm", "--force")

    def test_a_limit_that_forbids_locking_is_named(self):
        self.create("vm", "--tpm", "none")

        def forbid():
            import ctypes
            ctypes.CDLL(None).prctl(24, 14, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_IPC_LOCK
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))

        why = self.refused(77, "run", "vm", "--accel", "soft", "--lock-memory", preexec_fn=forbid)
        self.assertIn("RLIMIT_MEMLOCK", why)
        self.assertIn("1024 KiB", why)

    @unittest.skipUnless(OWN_MOUNTS, "needs a mount namespace")
    def test_swap_in_the_clear_is_warned_about(self):
        self.create("vm", "--tpm", "none")
        head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        fake = self.host.folder / "swaps"
        area = self.host.folder / "area"
        area.touch()
        fake.write_text(head + f"{area}                  file\t\t1048572\t\t0\t\t-2\n")
        subprocess.run(["mount", "--bind", fake, "/proc/swaps"], check=True)
        self.addCleanup(lambda: subprocess.run(["umount", "/proc/swaps"], check=False))
        run = ("run", "vm", "--accel", "soft", "--timeout", "1", "--serial", self.host.folder / "serial")
        self.assertRegex(self.refused(124, *run), rf"swaps to {re.escape(str(area))}, .*--lock-memory")
        self.assertNotIn("swaps to", self.refused(124, *run, "--lock-memory"))
        fake.write_text(head)
        self.assertNotIn("swaps to", self.refused(124, *run))


if __name__ == "__main__":
    unittest.main()
