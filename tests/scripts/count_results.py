#!/usr/bin/env python3
"""Counts the results in meson's testlog.json files, names what did not pass, and ends with "N passed, N failed".
Exit code 1 where a test failed or none ran."""

import json
import sys

PASSED = {"OK", "EXPECTEDFAIL"}
SKIPPED = {"SKIP"}


def main():
    passed, failed, skipped = 0, [], []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as log:
            for line in log:
                test = json.loads(line)
                if test["result"] in PASSED:
                    passed += 1
                elif test["result"] in SKIPPED:
                    skipped.append(test["name"])
                else:
                    failed.append(f"{test['name']} ({test['result']})")
    if skipped:
        print("skipped:", ", ".join(skipped))
    for name in failed:
        print("failed:", name)
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
