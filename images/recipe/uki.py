"""A unified kernel image: systemd's EFI stub with kernel, initramfs and command line as PE sections, which the stub
measures into PCR 11 and OVMF as a whole into PCR 4 (UAPI group, Unified Kernel Image specification)."""

import pathlib
import re
import subprocess
import tempfile

OS_RELEASE = 'ID=coffer-demo\nNAME="Coffer demo guest"\nPRETTY_NAME="Coffer demo guest"\n'
PAGE = 0x1000


def end_of_sections(image):
    listing = subprocess.run(["objdump", "--section-headers", "--wide", image], capture_output=True, text=True, check=True)
    sections = re.findall(r"^\s+\d+ \S+\s+([0-9a-f]+)\s+([0-9a-f]+)", listing.stdout, re.M)
    return max(int(address, 16) + int(size, 16) for size, address in sections)


def build(tree, kernel, initrd, cmdline, output):
    stub = tree / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "osrel").write_text(OS_RELEASE)
        (folder / "cmdline").write_text(cmdline)
        # The kernel comes last: it unpacks itself past its own end.
        parts = {"osrel": folder / "osrel", "cmdline": folder / "cmdline", "initrd": initrd, "linux": kernel}
        address = end_of_sections(stub)
        options = []
        for name, path in parts.items():
            address = -(-address // PAGE) * PAGE
            options += [f"--add-section=.{name}={path}", f"--change-section-vma=.{name}={address:#x}"]
            address += path.stat().st_size
        subprocess.run(["objcopy", *options, stub, output], check=True)
    clear_time_stamp(output)


def clear_time_stamp(image):
    """objcopy writes the time of day into the COFF header, and a checksum that covers it into the optional header
    (Microsoft PE/COFF specification, sections 3.3 and 3.4.2). Zero is allowed in both; firmware reads neither."""
    data = bytearray(image.read_bytes())
    header = int.from_bytes(data[0x3C:0x40], "little")
    data[header + 8:header + 12] = bytes(4)
    data[header + 88:header + 92] = bytes(4)
    image.write_bytes(data)
