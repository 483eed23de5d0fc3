#!/usr/bin/env python3
"""usage: find_plaintext.py FOLDER... -- TEXT...
Searches every file below the folders for texts as ASCII, UTF-16 (as UEFI stores names), hexadecimal and Base64, and
for what libtpms writes at the head of its state. Exit code 1 where one is found, or where the search finds nothing in
a file of its own that does hold them."""

import base64
import pathlib
import struct
import sys

# Magic numbers of libtpms 0.9's state (src/tpm2/NVMarshal.c), big-endian as they are written.
TPM_STATE = {
    "TPM state: PERSISTENT_ALL": struct.pack(">I", 0xAB364723),
    "TPM state: USER_NVRAM": struct.pack(">I", 0x094F22C3),
    "TPM state: PERSISTENT_DATA": struct.pack(">I", 0x12213443),
    "TPM state: VOLATILE_STATE": struct.pack(">I", 0x45637889),
}


def encodings(text):
    raw = text.encode()
    yield "ASCII", raw
    yield "UTF-16", text.encode("utf-16-le")
    yield "hexadecimal", raw.hex().encode()
    # All three ways that Base64 can be aligned; the ends depend on the neighbours.
    for shift in range(3):
        yield "Base64", base64.b64encode(bytes(shift) + raw)[4 if shift else 0:-4]


def found_in(data, needles):
    return [name for name, needle in needles if needle in data]


def main():
    split = sys.argv.index("--")
    folders, texts = sys.argv[1:split], sys.argv[split + 1:]
    needles = [(f"{text} ({encoding})", needle) for text in texts for encoding, needle in encodings(text)]
    # Four bytes turn up by chance in one of 4 GiB / size files, so pairs of them are looked for: a header has several.
    files = [path for folder in folders for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()]

    control = b"\x5a" * 1000 + b"".join(needle for _, needle in needles) + b"".join(TPM_STATE.values())
    if len(found_in(control, needles)) != len(needles):
        print("the search does not find what is there")
        return 1

    bad = 0
    total = 0
    for path in files:
        data = path.read_bytes()
        total += len(data)
        hits = found_in(data, needles)
        state = found_in(data, TPM_STATE.items())
        hits += state if len(state) > 1 else []
        for hit in hits:
            print(f"{path} holds {hit} in the clear")
            bad += 1
        print(f"  {len(data):9} bytes  {path}")
    if not files:
        print("there are no files to search")
        return 1
    print(f"{len(files)} files, {total} bytes: {'PLAINTEXT FOUND' if bad else 'no plaintext found'} "
          f"({len(texts)} texts in {len(needles)} encodings, TPM state markers)")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
