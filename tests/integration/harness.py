"""What the integration tests share: a coffer host of their own, guests' output, terminals.

The tests run the built program as a user does. COFFER names the program, COFFER_IMAGES the folder of the demo guest
(images/build-demo-guest); both are set by meson.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

COFFER = os.environ.get("COFFER", "build/coffer")
IMAGES = pathlib.Path(os.environ.get("COFFER_IMAGES", "images/out"))
# A guest's boot under the software CPU takes seconds; a busy machine takes longer. A test that hits this has failed.
BOOT_LIMIT = 240
CMDLINE = "console=ttyS0 quiet"


def have_kvm():
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def expected_pcrs(count):
    """The values that a PCR takes when 1, 2, ... are extended into it, of 32 bytes each."""
    value, values = b"\0" * 32, []
    for n in range(1, count + 1):
        value = hashlib.sha256(value + n.to_bytes(32, "big")).digest()
        values.append(value.hex())
    return values


class Host:
    """A folder that is one host: homes, providers and the host's own records."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="coffer-it-"))
        self.root = self.folder / "data"
        self.environment = {
            **os.environ,
            "COFFER_HOME": str(self.root),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
        }
        (self.folder / "run").mkdir(mode=0o700)
        self.prefix = []  # of commands: what they are run by

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def coffer(self, *arguments, limit=60, **options):
        """Runs coffer to its end; standard input is closed unless given."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([*self.prefix, COFFER, *map(str, arguments)], env=self.environment, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=limit, text=True, errors="replace", **options)

    def start(self, *arguments, **options):
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen([*self.prefix, COFFER, *map(str, arguments)], env=self.environment, **options)

    def json(self, *arguments):
        done = self.coffer(*arguments, "--json")
        if done.returncode != 0:
            raise AssertionError(f"coffer {' '.join(arguments)} failed: {done.stderr}")
        return json.loads(done.stdout)

    def home(self, name):
        return self.root / "vms" / name


class HostTest(unittest.TestCase):
    def setUp(self):
        self.host = Host()
        self.addCleanup(self.host.close)

    def ok(self, *arguments, **options):
        done = self.host.coffer(*arguments, **options)
        self.assertEqual(done.returncode, 0, f"coffer {arguments}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def refused(self, code, *arguments, **options):
        """The command fails with `code` and a line on standard error, which is returned."""
        done = self.host.coffer(*arguments, **options)
        self.assertEqual(done.returncode, code, f"coffer {arguments}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        self.assertTrue(done.stderr.strip(), "a refusal says why")
        return done.stderr

    def add_provider(self, name="local"):
        self.ok("provider", "add", "native", name)

    def create(self, name, *options, **limits):
        self.ok("create", name, "--memory", "512M", *options, **limits)

    def run_in_guest(self, name, command, *options, code=0, cmdline=CMDLINE):
        """Boots the demo guest's kernel, runs `command` by its agent, and gives its standard output."""
        done = self.host.coffer("run", name, "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                IMAGES / "initrd.img", "--cmdline", cmdline, "--exec", command,
                                "--timeout", BOOT_LIMIT, *options, limit=BOOT_LIMIT + 60)
        self.assertEqual(done.returncode, code,
                         f"in the guest: {command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        return done.stdout

    def run_from_disk(self, name, command, *options, code=0):
        """The same from the VM's own disk: OVMF finds the unified kernel image by itself."""
        done = self.host.coffer("run", name, "--accel", "soft", "--exec", command, "--timeout", BOOT_LIMIT, *options,
                                limit=BOOT_LIMIT + 60)
        self.assertEqual(done.returncode, code,
                         f"in the guest: {command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        return done.stdout

    def copy_of_disk(self):
        path = self.host.folder / "disk.img"
        shutil.copyfile(IMAGES / "disk.img", path)
        return path


class Terminal:
    """A program on a pseudo-terminal, as a person would use it."""

    def __init__(self, host, *arguments):
        self.output = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(COFFER, [COFFER, *map(str, arguments)], host.environment)
        self.status = None

    def read_until(self, pattern, limit=BOOT_LIMIT):
        deadline = time.monotonic() + limit
        while not re.search(pattern, self.output):
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{pattern!r} was not printed; the end of what was:\n"
                                     + self.output[-3000:].decode(errors="replace"))
        return self.output

    def _read(self, limit):
        ready, _, _ = select.select([self.fd], [], [], limit)
        if not ready:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.output += data
        return bool(data)

    def type(self, keys):
        os.write(self.fd, keys)

    def wait(self, limit=60):
        """The exit code; output is read on meanwhile."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
                return os.waitstatus_to_exitcode(status)
            with contextlib.suppress(AssertionError):
                self._read(0.1)
        raise AssertionError("the program did not end")

    def close(self):
        if self.status is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        os.close(self.fd)
