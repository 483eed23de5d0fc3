#!/usr/bin/env python3
"""usage: flip_bit.py FOLDER
Flips one bit in the middle of the largest file in the folder, and prints where."""

import pathlib
import sys


def main():
    path = max((p for p in pathlib.Path(sys.argv[1]).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    offset = path.stat().st_size // 2
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    print(f"{path}, byte {offset}: {byte:#04x} to {byte ^ 1:#04x}")


if __name__ == "__main__":
    main()
