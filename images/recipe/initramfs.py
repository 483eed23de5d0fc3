"""The guest's root file system: a compressed cpio archive (newc), written without root and without time stamps."""

import pathlib
import re
import stat
import subprocess
import sys

# Kernel modules that /init loads, with those that they need. NVMe and the TPM drivers are built in.
MODULES = ["virtio_pci", "virtio-rng", "virtio_console", "efivarfs", "button", "evdev"]
LIBRARIES = "usr/lib/x86_64-linux-gnu"
# Opened at run time, so named by no ELF header: the way from tpm2-tools to /dev/tpmrm0.
PLUGINS = ["libtss2-tcti-device.so.0"]


class Archive:
    """A newc archive (Linux Documentation/driver-api/early-userspace/buffer-format.rst) in memory."""

    def __init__(self):
        self._bytes = bytearray()
        self._names = set()

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        if name in self._names:
            sys.exit(f"build-demo-guest: {name} twice in the initramfs")
        self._names.add(name)
        encoded = name.encode() + b"\0"
        fields = [len(self._names), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0]
        self._bytes += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._pad()
        self._bytes += data
        self._pad()

    def _pad(self):
        self._bytes += bytes(-len(self._bytes) % 4)

    def folder(self, name, mode=0o755):
        if name not in self._names:
            parent = str(pathlib.PurePosixPath(name).parent)
            if parent != ".":
                self.folder(parent)
            self._entry(name, stat.S_IFDIR | mode)

    def file(self, name, data, mode=0o644):
        self.folder(str(pathlib.PurePosixPath(name).parent)) if "/" in name else None
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name, major, minor, mode):
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self):
        self._entry("TRAILER!!!", 0)
        self._bytes += bytes(-len(self._bytes) % 512)
        return bytes(self._bytes)


def needed(path):
    """Names of the shared libraries that an ELF file's header asks for."""
    dynamic = subprocess.run(["readelf", "--dynamic", "--wide", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", dynamic)


def is_static(path):
    headers = subprocess.run(["readelf", "--program-headers", "--wide", path], capture_output=True, text=True, check=True)
    return "INTERP" not in headers.stdout


def libraries_of(tree, programs):
    """{name: path} of every library that the programs and their libraries need."""
    found, queue = {}, [name for program in programs for name in needed(program)] + PLUGINS
    while queue:
        name = queue.pop()
        if name in found:
            continue
        path = tree / LIBRARIES / name
        if not path.is_file():
            sys.exit(f"build-demo-guest: no package has the library {name}")
        found[name] = path
        queue += needed(path)
    return found


def add_programs(archive, tree, agent):
    busybox = tree / "usr/bin/busybox"
    archive.file("usr/bin/busybox", busybox.read_bytes(), 0o755)
    for applet in sorted(subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()):
        if applet != "busybox":
            archive.link(f"usr/bin/{applet}", "busybox")

    tpm2 = tree / "usr/bin/tpm2"
    archive.file("usr/bin/tpm2", tpm2.read_bytes(), 0o755)
    for path in sorted((tree / "usr/bin").glob("tpm2_*")):
        if path.is_symlink() and path.resolve() == tpm2.resolve():
            archive.link(f"usr/bin/{path.name}", "tpm2")
    loader = pathlib.Path("usr/lib64/ld-linux-x86-64.so.2")
    libraries = libraries_of(tree, [tpm2])
    libraries.pop(loader.name, None)
    archive.file(str(loader), (tree / loader).read_bytes(), 0o755)
    for name, path in sorted(libraries.items()):
        archive.file(f"{LIBRARIES}/{name}", path.read_bytes())

    if agent:
        if not is_static(agent):
            sys.exit(f"build-demo-guest: {agent} is not statically linked, so the guest could not start it")
        archive.file("usr/sbin/coffer-agent", agent.read_bytes(), 0o755)


def in_load_order(kernel, wanted):
    """Paths of the modules and all that they need, each after those; a module says what it needs in .modinfo."""
    # The kernel takes - and _ in a module's name for the same.
    paths = {path.stem.replace("-", "_"): path for path in kernel.rglob("*.ko")}
    ordered = {}

    def visit(name):
        name = name.replace("-", "_")
        if name in ordered:
            return
        if name not in paths:
            sys.exit(f"build-demo-guest: the kernel has no module {name}")
        depends = re.search(rb"\0depends=([^\0]*)\0", paths[name].read_bytes())
        for needed_name in filter(None, depends[1].decode().split(",") if depends else []):
            visit(needed_name)
        ordered[name] = paths[name]

    for name in wanted:
        visit(name)
    return list(ordered.values())


def add_modules(archive, tree):
    [kernel] = [path for path in (tree / "usr/lib/modules").iterdir() if path.is_dir()]
    for index, path in enumerate(in_load_order(kernel, MODULES)):
        archive.file(f"usr/lib/modules/{index:02}-{path.name}", path.read_bytes())


def build(tree, demo, agent, output):
    archive = Archive()
    for name in ("dev", "proc", "sys", "run", "root", "etc", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", LIBRARIES,
                 "var/log"):
        archive.folder(name)
    archive.folder("tmp", 0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.link(name, f"usr/{name}")
    archive.link("var/run", "/run")
    # For the first line of /init, before devtmpfs is mounted.
    archive.character_device("dev/console", 5, 1, 0o600)
    add_programs(archive, tree, agent)
    add_modules(archive, tree)
    archive.file("init", (demo / "init").read_bytes(), 0o755)
    archive.file("etc/profile", (demo / "profile").read_bytes())
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    # What busybox's acpid runs when the power button is pressed.
    archive.file("etc/acpi/PWRF/00000080", b"#!/bin/sh\nsync\npoweroff -f\n", 0o755)
    for path in sorted((demo / "bin").iterdir()):
        archive.file(f"usr/bin/{path.name}", path.read_bytes(), 0o755)
    packed = subprocess.run(["zstd", "--quiet", "--stdout", "-10", "--single-thread"], input=archive.finish(),
                            stdout=subprocess.PIPE, check=True)
    output.write_bytes(packed.stdout)
