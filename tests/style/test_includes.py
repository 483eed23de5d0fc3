#!/usr/bin/env python3
"""usage: test_includes.py TOP
Includes go one way (docs/design.md): each folder includes only what is listed for it here, quoted includes are written
from the top folder and exist, what is in base/ has at least two users, and OpenSSL is crypto/'s alone. No source is longer
than 800 lines: it would want splitting by meaning. Proves on planted faults that it sees them."""

import pathlib
import re
import sys
import tempfile

ALLOWED = {
    "base": {"base"},
    "crypto": {"base", "crypto"},
    "keyprovider": {"base", "crypto", "keyprovider"},
    "devices": {"base", "devices"},
    "firmware": {"base", "firmware"},
    "images": {"base", "images"},
    "vmm": {"base", "crypto", "keyprovider", "devices", "firmware", "vmm"},
}
TOP_LAYER = "vmm/cli/"
MOST_LINES = 800
OPENSSL = re.compile(r"^\s*#\s*include\s*<openssl/", re.M)
GENERATED = re.compile(r"^\w+\.hex$")  # written by iasl, in the build folder
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def check(top):
    faults = []
    users = {}
    for folder in ALLOWED:
        for path in sorted((top / folder).rglob("*")):
            if path.suffix not in (".hpp", ".cpp"):
                continue
            name = path.relative_to(top).as_posix()
            text = path.read_text(encoding="utf-8")
            if text.count("\n") > MOST_LINES:
                faults.append(f"{name}: has more than {MOST_LINES} lines; split it by meaning")
            if folder != "crypto" and OPENSSL.search(text):
                faults.append(f"{name}: OpenSSL is for crypto/ alone")
            for included in INCLUDE.findall(text):
                if GENERATED.match(included):
                    continue
                users.setdefault(included, set()).add(folder)
                if not (top / included).is_file():
                    faults.append(f'{name}: "{included}" is not written from the top folder, or does not exist')
                elif included.split("/")[0] not in ALLOWED[folder]:
                    faults.append(f'{name}: {folder}/ must not include "{included}"')
                elif included.startswith(TOP_LAYER) and not name.startswith(TOP_LAYER):
                    faults.append(f'{name}: only {TOP_LAYER} includes "{included}"')
    for path in sorted((top / "base").glob("*.hpp")):
        name = path.relative_to(top).as_posix()
        if len(users.get(name, set()) - {"base"}) < 2:
            faults.append(f"{name}: base/ is for what two folders use")
    return faults


def sees(planted):
    """Whether a tree with one fault gives exactly one complaint, and without it none."""
    sound = {
        "base/a.hpp": "",
        "crypto/c.hpp": '#include "base/a.hpp"\n',
        "devices/d.hpp": '#include "base/a.hpp"\n',
        "vmm/v.hpp": '#include "devices/d.hpp"\n#include "crypto/c.hpp"\n',
        "vmm/cli/m.hpp": '#include "vmm/v.hpp"\n',
    }
    counts = []
    for files in (sound, {**sound, **planted}):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = pathlib.Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            counts.append(len(check(pathlib.Path(folder))))
    return counts == [0, 1]


def main():
    planted = [
        {"devices/bad.hpp": '#include "vmm/v.hpp"\n'},
        {"devices/bad.cpp": '  # include "crypto/c.hpp"\n'},
        {"base/a.hpp": '#include "devices/d.hpp"\n'},
        {"vmm/bad.hpp": '#include "vmm/cli/m.hpp"\n'},
        {"vmm/bad.cpp": '#include "v.hpp"\n'},
        {"base/lonely.hpp": ""},
        {"vmm/long.cpp": "\n" * (MOST_LINES + 1)},
        {"vmm/bad.cpp": "#include <openssl/evp.h>\n"},
    ]
    for fault in planted:
        if not sees(fault):
            sys.exit(f"test_includes does not see {fault}")
    faults = check(pathlib.Path(sys.argv[1]))
    print("\n".join(faults) or "includes go one way")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
