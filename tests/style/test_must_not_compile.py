#!/usr/bin/env python3
"""usage: test_must_not_compile.py TOP FILE COMPILER...
Compiles FILE as it stands, and once with each mistake that its preprocessor lines name."""

import concurrent.futures
import re
import subprocess
import sys


def main():
    top, source, *compiler = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        cases = re.findall(r"^#(?:if|elif) defined\((\w+)\)\s*// expect: (.+)$", file.read(), re.M)
    if len(cases) < 10:
        sys.exit(f"only {len(cases)} mistakes were found in {source}")

    def compile_with(case):
        options = [f"-D{case}"] if case else []
        return subprocess.run([*compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", top, *options,
                               source], capture_output=True, text=True, check=False)

    sound = compile_with(None)
    if sound.returncode != 0:
        sys.exit(f"without a mistake, it has to compile:\n{sound.stderr}")
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for (case, expected), done in zip(cases, pool.map(compile_with, (case for case, _ in cases))):
            if done.returncode == 0:
                print(f"{case}: compiles, and must not")
                failed += 1
            elif not re.search(expected, done.stderr):
                print(f"{case}: fails for another reason than {expected!r}:\n{done.stderr}")
                failed += 1
    print(f"{len(cases) - failed} of {len(cases)} mistakes are rejected")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
