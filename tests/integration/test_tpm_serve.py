"""`coffer tpm serve`: Debian's tpm2-tools over the swtpm TCTI, and swtpm's control protocol byte by byte."""

import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
import unittest

from harness import CMDLINE, IMAGES, Host, HostTest

(GET_CAPABILITY, INIT, SHUTDOWN, GET_ESTABLISHED, SET_LOCALITY, HASH_START, HASH_DATA, HASH_END, CANCEL, STORE_VOLATILE,
 RESET_ESTABLISHED, GET_STATE, SET_STATE, STOP, GET_CONFIG, SET_DATAFD, SET_BUFFER, GET_INFO) = range(1, 19)
OK, BAD_PARAMETER, FAIL, BAD_ORDINAL, BAD_LOCALITY = 0, 3, 9, 0xA, 0x3D
PERMANENT, VOLATILE, SAVESTATE = 1, 2, 3
STARTUP = bytes.fromhex("80010000000c000001440000")
RANDOM = bytes.fromhex("80010000000c0000017b0008")
PATIENCE = 60
# Endorsement keys that every TPM is made with.
EK_HANDLES = ["0x81010001", "0x81010002", "0x81010016"]


def pcr_read(pcr):
    select = (1 << pcr).to_bytes(3, "little")
    return struct.pack(">HIIIHB", 0x8001, 20, 0x17E, 1, 0xB, 3) + select


def pcr_extend(pcr, digest):
    body = struct.pack(">IIIHBHIH", pcr, 9, 0x40000009, 0, 1, 0, 1, 0xB) + digest
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x182) + body


def receive(stream, size):
    data = b""
    while len(data) < size:
        part = stream.recv(size - len(data))
        if not part:
            raise EOFError(f"{len(data)} of {size} bytes")
        data += part
    return data


def transact(data, command):
    data.sendall(command)
    head = receive(data, 10)
    return head + receive(data, struct.unpack(">I", head[2:6])[0] - 10)


def code(response):
    return struct.unpack(">I", response[6:10])[0]


class Control:
    def __init__(self, folder):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.connect(f"{folder}/ctrl")
        self.stream.settimeout(PATIENCE)

    def ask(self, command, body=b"", size=4):
        self.stream.sendall(struct.pack(">I", command) + body)
        return receive(self.stream, size)

    def result(self, command, body=b"", size=4):
        return struct.unpack(">I", self.ask(command, body, size)[:4])[0]

    def get_state(self, kind, offset=0):
        head = self.ask(GET_STATE, struct.pack(">III", 1, kind, offset), 16)
        result, flags, total, length = struct.unpack(">IIII", head)
        return result, flags, total, receive(self.stream, length)

    def set_state(self, kind, blob, flags=2):
        return self.result(SET_STATE, struct.pack(">III", flags, kind, len(blob)) + blob)

    def close(self):
        self.stream.close()


class ServeTest(HostTest):
    errors = None  # where a server's messages go; None: where the test's own go

    def setUp(self):
        super().setUp()
        self.make_vm()

    def make_vm(self):
        self.add_provider()
        self.create("vm")
        self.folder = self.host.folder / "sockets"

    def serve(self, *where, name="vm"):
        server = self.host.start("tpm", "serve", name, *(where or ("--socket-dir", self.folder)),
                                 stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.assertIn("serving", server.stdout.readline())
        return server

    def data(self):
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(f"{self.folder}/data")
        stream.settimeout(PATIENCE)
        self.addCleanup(stream.close)
        return stream

    def control(self):
        control = Control(self.folder)
        self.addCleanup(control.close)
        return control


class Tools(ServeTest):
    # There is no resource manager, so transient objects are flushed by hand.
    FLOW = r"""
        set -e
        tpm2_startup -c
        tpm2_selftest -f
        tpm2_getrandom --hex 16 > random
        tpm2_createprimary -Q -C o -G ecc -c primary.ctx
        tpm2_flushcontext -t
        echo -n 'the-sealed-secret' | tpm2_create -Q -C primary.ctx -i- -u seal.pub -r seal.priv
        tpm2_flushcontext -t
        tpm2_load -Q -C primary.ctx -u seal.pub -r seal.priv -c seal.ctx
        tpm2_flushcontext -t
        tpm2_evictcontrol -Q -C o -c seal.ctx 0x81000100
        tpm2_flushcontext -t
        tpm2_create -Q -C primary.ctx -G ecc:ecdsa-sha256 -u sign.pub -r sign.priv
        tpm2_flushcontext -t
        tpm2_load -Q -C primary.ctx -u sign.pub -r sign.priv -c sign.ctx
        echo message > message
        tpm2_sign -Q -c sign.ctx -g sha256 -o signature message
        tpm2_flushcontext -t
        tpm2_verifysignature -Q -c sign.ctx -g sha256 -s signature -m message
        tpm2_flushcontext -t
        tpm2_nvdefine -Q 0x1500001 -C o -s 32 -a 'ownerread|ownerwrite'
        echo -n 'kept-in-nv' | tpm2_nvwrite 0x1500001 -C o -i-
        tpm2_unseal -c 0x81000100
    """

    def tools(self, script):
        environment = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={self.port}"}
        done = subprocess.run(["bash", "-c", script], cwd=self.host.folder, env=environment, timeout=300, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_flows_over_tcp_and_state_outlives_a_kill(self):
        self.port = random.randrange(20000, 60000, 2)
        server = self.serve("--tcp", str(self.port))
        self.assertEqual(self.tools(self.FLOW), "the-sealed-secret")
        server.kill()  # no chance to save anything
        server.wait()
        shown = self.host.json("tpm", "show", "vm")
        self.assertEqual(shown["nv"]["persistent"], ["0x81000100"] + EK_HANDLES)
        owners = [i["handle"] for i in shown["nv"]["indices"] if not i["handle"].startswith("0x01c0")]
        self.assertEqual(owners, ["0x01500001"], "beside the certificates")
        self.serve("--tcp", str(self.port))
        self.assertEqual(self.tools("tpm2_startup -c && tpm2_unseal -c 0x81000100"), "the-sealed-secret")
        self.assertEqual(self.tools("tpm2_nvread 0x1500001 -C o -s 10"), "kept-in-nv")


OVMF = pathlib.Path("/usr/share/OVMF")
# With what the TPM has to keep over snapshots and migrations: PCRs, NV, and a key that is loaded under a session's name.
IN_GUEST_SETUP = ("coffer-demo-eventlog && tpm2_pcrextend 16:sha256=$(printf one | sha256sum | cut -d ' ' -f 1) && "
                  "tpm2_nvdefine -Q 0x1500020 -C o -s 8 -a 'ownerread|ownerwrite' && "
                  "printf 'kept-in-' | tpm2_nvwrite 0x1500020 -C o -i- && echo kept | coffer-demo-seal")
STATE = "tpm2_pcrread sha256:0,1,2,3,4,5,6,7,16 | sha256sum; tpm2_nvread 0x1500020 -C o -s 8; coffer-demo-unseal"


class QemuMachine:
    """QEMU with OVMF and a vTPM that somebody serves; its serial console and its monitor."""

    def __init__(self, folder, tpm_folder, device, *options):
        self.folder = folder
        self.number = getattr(QemuMachine, "count", 0)
        QemuMachine.count = self.number + 1
        serial, monitor = folder / f"serial{self.number}", folder / f"monitor{self.number}"
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "512", "-display", "none", "-nodefaults",
             "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={OVMF}/OVMF_CODE_4M.fd",
             "-drive", f"if=pflash,format=qcow2,unit=1,file={folder}/variables.qcow2",
             "-drive", f"if=none,id=d,format=qcow2,file={folder}/disk.qcow2", "-device", "virtio-blk-pci,drive=d",
             "-chardev", f"socket,id=s,path={serial},server=on,wait=off", "-serial", "chardev:s",
             "-chardev", f"socket,id=m,path={monitor},server=on,wait=off", "-mon", "chardev=m",
             "-chardev", f"socket,id=c,path={tpm_folder}/ctrl", "-tpmdev", "emulator,id=t,chardev=c",
             "-device", f"{device},tpmdev=t", "-kernel", IMAGES / "vmlinuz", "-initrd", IMAGES / "initrd.img",
             "-append", CMDLINE, *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.console, self.monitor = self.connect(serial), self.connect(monitor)
        self.expect(self.monitor, rb"\(qemu\) ")

    def connect(self, path):
        deadline = time.monotonic() + PATIENCE
        stream = socket.socket(socket.AF_UNIX)
        while True:
            try:
                stream.connect(str(path))
                return stream
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise AssertionError("QEMU did not start: " + (self.process.stdout.read() or "")) from None
                time.sleep(0.1)

    def expect(self, stream, pattern, limit=900):
        stream.settimeout(limit)
        seen = b""
        while not re.search(pattern, seen):
            try:
                part = stream.recv(4096)
            except TimeoutError:
                part = b""
            if not part:
                raise AssertionError(f"{pattern!r} did not come; what came ends in\n{seen[-3000:].decode(errors='replace')}")
            seen += part
        return seen

    def command(self, text):
        """A monitor command; its answer, which is empty where all went well."""
        self.monitor.sendall(text.encode() + b"\n")
        answer = self.expect(self.monitor, rb"\n\(qemu\) $").decode(errors="replace")
        # The monitor echoes what is typed, with escapes, on one line.
        return "\n".join(answer.splitlines()[1:-1]).strip()

    def shell(self, text):
        """What a command prints in the guest."""
        # Marks that the shell puts together, so that the echo of what is typed is not taken for them.
        self.console.sendall(f"echo BEGIN-''OF-COMMAND; ({text}); echo END-''OF-COMMAND $?\n".encode())
        seen = self.expect(self.console, rb"END-OF-COMMAND \d+").decode(errors="replace").replace("\r", "")
        out, _, code = seen.rpartition("END-OF-COMMAND ")
        out = out.partition("BEGIN-OF-COMMAND\n")[2]
        if code.split()[0] != "0":
            raise AssertionError(f"{text}: exit code {code}\n{out}")
        # The console is the kernel's as well, and the agent's.
        return "".join(line for line in out.splitlines(True) if not re.match(r"\[ *\d+\.|coffer-agent:", line))

    def quit(self):
        self.monitor.sendall(b"quit\n")
        out, _ = self.process.communicate(timeout=PATIENCE)
        self.close()
        return out

    def close(self):
        self.console.close()
        self.monitor.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@unittest.skipUnless(shutil.which("qemu-system-x86_64") and shutil.which("qemu-img"), "QEMU is not installed")
class Qemu(ServeTest):
    maxDiff = None

    def setUp(self):
        super().setUp()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.host.folder / "disk.qcow2", "16M"], check=True)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", OVMF / "OVMF_VARS_4M.fd",
                        self.host.folder / "variables.qcow2"], check=True)

    def start(self, folder, device, *options):
        machine = QemuMachine(self.host.folder, folder, device, *options)
        self.addCleanup(machine.close)
        return machine

    def boot(self, device):
        """Gives the machine and the server; QEMU's guest may find its timer dead on a busy host, and is started again."""
        for attempt in range(3):
            server = self.serve()
            machine = self.start(self.folder, device)
            seen = machine.expect(machine.console, rb"coffer-demo# |Kernel panic")
            if b"Kernel panic" not in seen:
                return machine, server
            self.end(machine, server)
        self.fail("QEMU's guest does not start")

    def end(self, machine, server):
        out = machine.quit()
        self.assertEqual(machine.process.returncode, 0, out)
        for word in ("rror", "failed", "TPM result", "could not"):
            self.assertNotIn(word, out)
        self.assertEqual(server.wait(PATIENCE), 0, "QEMU shuts the server down when it ends")

    def test_guest_snapshots_and_migrations(self):
        # A second host that has the home as it is now, and its key.
        other = Host()
        self.addCleanup(other.close)
        shutil.copytree(self.host.root, other.root)
        shutil.copytree(self.host.folder / "state", other.folder / "state")

        machine, server = self.boot("tpm-crb")
        machine.shell(IN_GUEST_SETUP)
        before = machine.shell(STATE)
        self.assertIn("kept-in-", before)
        self.assertIn("kept", before)

        self.assertEqual(machine.command("savevm one"), "")
        machine.shell("tpm2_pcrextend 16:sha256=$(printf two | sha256sum | cut -d ' ' -f 1)")
        machine.shell("printf 'changed!' | tpm2_nvwrite 0x1500020 -C o -i-")
        self.assertNotEqual(machine.shell(STATE), before)
        self.assertEqual(machine.command("loadvm one"), "")
        self.assertEqual(machine.shell(STATE), before, "the TPM went back with the guest")

        # Into a file, and from there into another QEMU on the same home.
        file = self.host.folder / "migration"
        self.assertEqual(machine.command(f'migrate "exec:cat > {file}"'), "")
        self.assertIn("completed", machine.command("info migrate"))
        self.end(machine, server)
        server = self.serve()
        machine = self.start(self.folder, "tpm-crb", "-incoming", f"exec:cat {file}")
        machine.console.sendall(b"\n")
        self.assertEqual(machine.shell(STATE), before, "the TPM came along by file")

        # Live, to the other host.
        self.host, here = other, self.host
        self.folder, old = other.folder / "sockets", self.folder
        for name in ("disk.qcow2", "variables.qcow2"):
            shutil.copyfile(here.folder / name, other.folder / name)
        there_server = self.serve()
        channel = other.folder / "channel"
        there = self.start(self.folder, "tpm-crb", "-incoming", f"unix:{channel}")
        machine.shell("tpm2_pcrextend 16:sha256=$(printf three | sha256sum | cut -d ' ' -f 1)")
        machine.shell("printf 'migrated' | tpm2_nvwrite 0x1500020 -C o -i-")
        before = machine.shell(STATE)
        self.assertEqual(machine.command(f"migrate unix:{channel}"), "")
        self.assertIn("completed", machine.command("info migrate"))
        self.end(machine, server)
        self.assertEqual(there.shell(STATE), before, "the TPM came along to the other host")
        there.shell("tpm2_selftest -f && tpm2_clear")
        self.end(there, there_server)
        self.assertFalse((old / "ctrl").exists())
        # The owner's index is gone, the platform's certificates are there: what changed there is kept there.
        indices = [index["handle"] for index in self.host.json("tpm", "show", "vm")["nv"]["indices"]]
        self.assertNotIn("0x01500020", indices)
        self.assertIn("0x01c00002", indices)

    def test_guest_over_tis(self):
        machine, server = self.boot("tpm-tis")
        machine.shell(IN_GUEST_SETUP)
        self.assertIn("kept", machine.shell(STATE))
        self.end(machine, server)


class Protocol(ServeTest):
    def test_every_command_answers(self):
        server = self.serve()
        control, data = self.control(), self.data()
        self.assertEqual(struct.unpack(">Q", control.ask(GET_CAPABILITY, size=8))[0], 0x7FFF)
        self.assertEqual(code(transact(data, RANDOM)), 0x100, "powered on, and not started up")
        self.assertEqual(code(transact(data, STARTUP)), 0)
        self.assertEqual(code(transact(data, RANDOM)), 0)
        self.assertEqual(control.ask(GET_ESTABLISHED, size=8), bytes(8))
        self.assertEqual(control.result(SET_LOCALITY, b"\x03"), OK)
        self.assertEqual(control.result(SET_LOCALITY, b"\x02\0\0\0"), OK, "with padding, as QEMU sends it")
        self.assertEqual(control.result(SET_LOCALITY, b"\x05"), BAD_LOCALITY)
        self.assertEqual(control.result(HASH_START), OK)
        self.assertEqual(control.result(HASH_DATA, struct.pack(">I", 3) + b"abc"), OK)
        self.assertEqual(control.result(HASH_END), OK)
        self.assertEqual(control.ask(GET_ESTABLISHED, size=8), bytes(4) + b"\1\0\0\0")
        self.assertEqual(control.result(RESET_ESTABLISHED, b"\x00\0\0\0"), BAD_LOCALITY)
        self.assertEqual(control.result(RESET_ESTABLISHED, b"\x03\0\0\0"), OK)
        self.assertEqual(control.ask(GET_ESTABLISHED, size=8), bytes(8))
        self.assertEqual(control.result(CANCEL), OK)
        self.assertEqual(control.ask(GET_CONFIG, size=8), struct.pack(">II", 0, 3))
        _, total, length = struct.unpack(">III", control.ask(GET_INFO, struct.pack(">QII", 1, 0, 0), 12))
        self.assertEqual(total, length)
        self.assertIn(b"2.0", receive(control.stream, length))
        # The buffer's size changes only while the TPM is stopped.
        asked = struct.unpack(">IIII", control.ask(SET_BUFFER, struct.pack(">I", 0), 16))
        self.assertEqual(asked[:2], (OK, 4096))
        self.assertEqual(control.result(SET_BUFFER, struct.pack(">I", 3968), 16), BAD_ORDINAL)
        self.assertEqual(control.result(STOP), OK)
        self.assertEqual(code(transact(data, RANDOM)), 0x101, "a stopped TPM fails commands")
        self.assertEqual(control.result(HASH_START), BAD_ORDINAL)
        self.assertEqual(struct.unpack(">IIII", control.ask(SET_BUFFER, struct.pack(">I", 3968), 16))[:2], (OK, 3968))
        self.assertEqual(control.result(INIT, bytes(4)), OK)
        self.assertEqual(code(transact(data, RANDOM)), 0x100, "initialised again")
        self.assertEqual(control.result(SHUTDOWN), OK)
        self.assertEqual(server.wait(PATIENCE), 0)
        self.assertFalse((self.folder / "ctrl").exists() or (self.folder / "data").exists())

    def test_state_blobs_carry_a_running_tpm_and_tell_nothing(self):
        self.create("other")
        server = self.serve()
        control, data = self.control(), self.data()
        transact(data, STARTUP)
        self.assertEqual(code(transact(data, pcr_extend(10, b"\x5a" * 32))), 0)
        extended = transact(data, pcr_read(10))
        blobs = {}
        for kind in (PERMANENT, VOLATILE):
            result, flags, total, blobs[kind] = control.get_state(kind)
            self.assertEqual((result, flags, total), (OK, 2, len(blobs[kind])))
            self.assertEqual(control.get_state(kind, total - 5)[3], blobs[kind][-5:])
            self.assertEqual(control.get_state(kind, total + 1)[0], BAD_PARAMETER)
        self.assertEqual(control.get_state(SAVESTATE), (OK, 0, 0, b""))
        self.assertNotIn(extended[-32:], blobs[VOLATILE], "a blob is encrypted")
        self.assertEqual(control.set_state(PERMANENT, blobs[PERMANENT]), BAD_ORDINAL, "not into a running TPM")
        transact(data, pcr_extend(10, b"\x77" * 32))
        control.result(STOP)
        changed = bytearray(blobs[VOLATILE])
        changed[-40] ^= 1
        self.assertEqual(control.set_state(VOLATILE, bytes(changed)), BAD_PARAMETER)
        self.assertEqual(control.set_state(VOLATILE, blobs[PERMANENT]), BAD_PARAMETER, "one kind for the other")
        self.assertEqual(control.set_state(VOLATILE, blobs[VOLATILE], flags=0), BAD_PARAMETER, "said to be plain")
        self.assertEqual(control.set_state(PERMANENT, blobs[PERMANENT]), OK)
        self.assertEqual(control.set_state(VOLATILE, blobs[VOLATILE]), OK)
        self.assertEqual(control.result(INIT, struct.pack(">I", 1)), OK)
        self.assertEqual(transact(data, pcr_read(10))[-32:], extended[-32:], "as it was, without TPM2_Startup")
        # A permanent state alone is no whole TPM; the TPM that is there stays.
        control.result(STOP)
        self.assertEqual(control.set_state(PERMANENT, blobs[PERMANENT]), OK)
        self.assertEqual(control.result(INIT, bytes(4)), FAIL)
        self.assertEqual(control.result(INIT, bytes(4)), OK)
        self.assertEqual(code(transact(data, STARTUP)), 0)
        server.send_signal(signal.SIGTERM)
        self.assertEqual(server.wait(PATIENCE), 0)
        # Another VM's home does not open them.
        self.serve(name="other")
        control = self.control()
        control.result(STOP)
        self.assertEqual(control.set_state(PERMANENT, blobs[PERMANENT]), BAD_PARAMETER)

    def test_stored_volatile_state_is_used_once(self):
        self.serve()
        control, data = self.control(), self.data()
        transact(data, STARTUP)
        transact(data, pcr_extend(10, b"\x5a" * 32))
        extended = transact(data, pcr_read(10))
        self.assertEqual(control.result(STORE_VOLATILE), OK)
        self.assertEqual(control.result(INIT, bytes(4)), OK)
        self.assertEqual(transact(data, pcr_read(10))[-32:], extended[-32:])
        self.assertEqual(control.result(INIT, bytes(4)), OK)
        self.assertEqual(code(transact(data, pcr_read(10))), 0x100)

    def test_data_channel_is_handed_over(self):
        self.serve()
        control, old = self.control(), self.data()
        self.assertEqual(code(transact(old, STARTUP)), 0)
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        ours.settimeout(PATIENCE)
        self.assertEqual(control.result(SET_DATAFD), BAD_PARAMETER, "no descriptor came along")
        with open(os.devnull) as null:
            socket.send_fds(control.stream, [struct.pack(">I", SET_DATAFD)], [null.fileno()])
            self.assertEqual(receive(control.stream, 4), struct.pack(">I", BAD_PARAMETER))
        socket.send_fds(control.stream, [struct.pack(">I", SET_DATAFD)], [theirs.fileno()])
        theirs.close()
        self.assertEqual(receive(control.stream, 4), bytes(4))
        self.assertEqual(code(transact(ours, RANDOM)), 0)
        self.assertEqual(old.recv(1), b"", "the old one is closed")

    def test_hostile_peers_are_cut_off_and_harm_nobody(self):
        self.serve()
        for size in (0, 9, 4097, 0xFFFFFFFF):
            data = self.data()
            data.sendall(struct.pack(">HII", 0x8001, size, 0x17B))
            self.assertEqual(code(receive(data, 10)), 0x142)
            self.assertEqual(data.recv(1), b"")
        control = self.control()
        self.assertEqual(control.result(0x7F, b"nobody knows"), BAD_ORDINAL)
        self.assertEqual(control.result(0), BAD_ORDINAL)
        self.assertEqual(control.result(HASH_DATA, struct.pack(">I", 1 << 30)), BAD_PARAMETER)
        self.assertEqual(control.stream.recv(1), b"")
        noise = random.Random(5)
        for _ in range(50):
            control = self.control()
            control.stream.sendall(struct.pack(">I", noise.choice([4, 5, 7, 9, 12, 13, 15, 17, 18, 40])) +
                                   noise.randbytes(noise.randrange(40)))
            control.close()
            data = self.data()
            data.sendall(STARTUP[:noise.randrange(12)])
            data.close()
        control, data = self.control(), self.data()
        self.assertEqual(control.result(INIT, bytes(4)), OK)
        self.assertEqual(code(transact(data, STARTUP)), 0)

    def test_who_may_serve_what(self):
        self.serve()
        self.assertEqual((self.folder / "ctrl").stat().st_mode & 0o777, 0o600)
        self.assertEqual((self.folder / "data").stat().st_mode & 0o777, 0o600)
        self.assertIn("process", self.refused(75, "tpm", "serve", "vm", "--socket-dir", self.host.folder / "else"))
        self.create("second")
        self.assertIn("listens", self.refused(75, "tpm", "serve", "second", "--socket-dir", self.folder))
        self.create("without", "--tpm", "none")
        self.refused(2, "tpm", "serve", "without", "--socket-dir", self.host.folder / "else")
        self.refused(2, "tpm", "serve", "second")
        self.refused(2, "tpm", "serve", "second", "--tcp", "65535")


if __name__ == "__main__":
    unittest.main()
