"""A GPT disk with one EFI system partition, whose fallback loader is the unified kernel image (UEFI 2.10, sections 5.3
and 3.5.1.1)."""

import os
import pathlib
import struct
import subprocess
import tempfile
import uuid
import zlib

SECTOR = 512
ALIGNMENT = 2048  # sectors: 1 MiB
ENTRY_COUNT = 128
ENTRY_SIZE = 128
ENTRY_SECTORS = ENTRY_COUNT * ENTRY_SIZE // SECTOR
EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
# The image's own; fixed, so that building twice gives the same bytes.
DISK_ID = uuid.UUID("5ea1ed00-c0ff-4e12-9d15-000000000001")
PARTITION_ID = uuid.UUID("5ea1ed00-c0ff-4e12-9d15-000000000002")
VOLUME_ID = "C0FFE12D"
MIB = 2**20


def header(own, other, entries_at, entries, total):
    def packed(checksum):
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, checksum, 0, own, other,
                           2 + ENTRY_SECTORS, total - ENTRY_SECTORS - 2, DISK_ID.bytes_le, entries_at, ENTRY_COUNT,
                           ENTRY_SIZE, zlib.crc32(entries))
    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")


def write_gpt(file, first, last, total):
    entry = struct.pack("<16s16sQQQ72s", EFI_SYSTEM.bytes_le, PARTITION_ID.bytes_le, first, last, 0,
                        "EFI system".encode("utf-16-le"))
    entries = entry.ljust(ENTRY_COUNT * ENTRY_SIZE, b"\0")
    # Protective MBR: one partition of type 0xEE over all.
    record = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, total - 1)
    file.seek(0)
    file.write(bytes(446) + record + bytes(48) + b"\x55\xaa")
    file.write(header(1, total - 1, 2, entries, total) + entries)
    file.seek((total - 1 - ENTRY_SECTORS) * SECTOR)
    file.write(entries + header(total - 1, 1, total - 1 - ENTRY_SECTORS, entries, total))


def build(loader, output):
    # FAT32 wants 65,525 clusters; half as much again as the loader leaves room to replace it.
    size = max(64 * MIB, -(-loader.stat().st_size * 3 // 2 // MIB) * MIB)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        partition = pathlib.Path(folder) / "esp"
        with open(partition, "wb") as file:
            file.truncate(size)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "0", "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
        subprocess.run(["mkfs.vfat", "--invariant", "-F", "32", "-s", "1", "-n", "COFFER", "-i", VOLUME_ID, partition],
                       check=True, stdout=subprocess.DEVNULL, env=environment)
        os.utime(loader, (0, 0))
        subprocess.run(["mmd", "-i", partition, "::/EFI", "::/EFI/BOOT"], check=True, env=environment)
        subprocess.run(["mcopy", "-m", "-i", partition, loader, "::/EFI/BOOT/BOOTX64.EFI"], check=True, env=environment)
        total = ALIGNMENT + size // SECTOR + ALIGNMENT
        with open(output, "wb") as file:
            file.truncate(total * SECTOR)
            write_gpt(file, ALIGNMENT, ALIGNMENT + size // SECTOR - 1, total)
            file.seek(ALIGNMENT * SECTOR)
            file.write(partition.read_bytes())
