#!/usr/bin/env python3
"""Gives a differential test the code of a program: run_differential.py INPUT TEST [ARGUMENT...]

INPUT is a program's name in PATH, `libc` (the C library that this host's programs run with), or `kernel:FILE`, a bzImage
whose payload is taken out. Where the input, or what unpacks it, is missing, says so and exits with 77.
"""

import lzma
import os
import shutil
import struct
import subprocess
import sys
import tempfile

SKIPPED = 77
TOOLS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}
XZ = b"\xfd7zXZ\0"


def skip(why):
    print(f"skipped: {why}", flush=True)
    sys.exit(SKIPPED)


def payload(image):
    """The compressed kernel of a bzImage (Linux Documentation/arch/x86/boot.rst, protocol 2.08 and later)."""
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", image, 0x206)[0] < 0x208:
        sys.exit("not a bzImage with a payload")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if start + length > len(image):
        sys.exit("the bzImage's payload lies beyond its end")
    return image[start:start + length]


def vmlinux(path):
    if not os.path.isfile(path):
        skip(f"there is no kernel at {path}; images/build-demo-guest makes it")
    with open(path, "rb") as file:
        data = payload(file.read())
    # The kernel's build appends the unpacked size to every format but gzip's, which has it by itself.
    packed, size = data[:-4], struct.unpack("<I", data[-4:])[0]
    if packed.startswith(XZ):
        unpacked = lzma.decompress(packed)
    elif packed[:4] in TOOLS:
        tool = TOOLS[packed[:4]]
        if not shutil.which(tool):
            skip(f"the kernel is packed with {tool}, which is not installed")
        unpacked = subprocess.run([tool, "-d", "-c", "-q"], input=packed, stdout=subprocess.PIPE, check=True).stdout
    else:
        sys.exit(f"the kernel is packed in a format unknown here: {packed[:6].hex()}")
    if len(unpacked) != size or unpacked[:4] != b"\x7fELF":
        sys.exit(f"{len(unpacked)} bytes unpacked where {size} of an ELF file were expected")
    return unpacked


def libc():
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            path = line.split(maxsplit=5)[5].strip() if line.count("/") else ""
            if os.path.basename(path).startswith("libc.so."):
                return path
    skip("this host's programs do not use a shared C library")


def main():
    source, command = sys.argv[1], sys.argv[2:]
    with tempfile.NamedTemporaryFile(prefix="vmlinux-") as file:
        if source.startswith("kernel:"):
            file.write(vmlinux(source.removeprefix("kernel:")))
            file.flush()
            path = file.name
        elif source == "libc":
            path = libc()
        else:
            path = shutil.which(source) or skip(f"{source} is not installed")
        return subprocess.run([command[0], path, *command[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
