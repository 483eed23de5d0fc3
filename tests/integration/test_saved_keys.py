"""A VM with snapshots, or suspended, under the verbs that change its keys or make other VMs of it."""

import sys
import unittest

from harness import BOOT_LIMIT
from test_snapshot import LOOP, STEPS, Suspended

SECRET = "sealed-before-all-of-it"
UNSEAL = "coffer-demo-unseal; echo"


class Saved(Suspended):
    def epochs(self):
        """The epochs of the data keys that the home's files are under (docs/formats/home.md)."""
        files = [path for path in self.host.home("vm").iterdir() if path.name not in ("keys", "lock")]
        return {path.name: int.from_bytes(path.read_bytes()[40:44], "little") for path in files}

    def goes_on(self, *verb):
        """The rest of the guest's steps, each there once and with the PCR values of an unbroken run."""
        done = self.host.coffer(*verb, "--timeout", BOOT_LIMIT, limit=BOOT_LIMIT + 60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_secrets_outlive_deep_rekey_clone_and_template(self):
        self.add_provider("second")
        process, output = self.start_guest(f"set -e; echo -n {SECRET} | coffer-demo-seal; {LOOP}; {UNSEAL}")
        self.wait_for(output, "step 2 ", process)
        self.ok("snapshot", "take", "vm", "early", limit=BOOT_LIMIT)
        self.ok("suspend", "vm", limit=BOOT_LIMIT)
        self.assertEqual(process.wait(60), 75)
        before = output.read_text()

        # Half of a suspended VM is in its memory: nothing is made of it as if that were not so.
        for verb in (["clone", "vm", "copy"], ["template", "vm"], ["create", "copy", "--from", "vm"]):
            self.assertIn("--discard-suspended", self.refused(75, *verb))
        self.assertFalse(self.host.home("copy").exists())
        self.refused(2, "tpm", "remove", "vm", "--yes")
        saved = self.host.folder / "vm.backup"
        said = self.ok("backup", "vm", saved)
        self.assertIn("its memory is not in it", said)
        self.assertIn("its snapshots are not in it", said)

        self.ok("rekey", "vm", "--provider", "second")
        self.assertEqual(set(self.epochs().values()), {1})
        self.assertIn("--all", self.refused(2, "rekey", "vm", "--deep"))
        self.ok("rekey", "vm", "--deep", "--all", limit=BOOT_LIMIT)
        epochs = self.epochs()
        self.assertEqual(set(epochs.values()), {2}, epochs)
        self.assertEqual(len([name for name in epochs if name.startswith("snapshot-")]), 3, epochs)
        rest = self.goes_on("resume", "vm")
        self.check_steps(before + rest, 1, STEPS)
        self.assertIn(SECRET, rest)

        # Of a VM that is off, its snapshots aside.
        self.assertIn("its snapshots are not copied", self.ok("clone", "vm", "copy", "--tpm", "copy"))
        self.assertEqual(self.host.json("snapshot", "list", "copy")["snapshots"], [])
        self.assertEqual([path.name for path in self.host.home("copy").iterdir()
                          if path.name.startswith(("snapshot", "saved-"))], [])
        self.assertIn(SECRET, self.run_in_guest("copy", UNSEAL))
        self.ok("template", "vm")
        self.assertIn("template", self.refused(2, "snapshot", "revert", "vm", "early", "--yes"))
        self.ok("create", "one", "--from", "vm", "--tpm", "copy")
        self.assertEqual(self.host.json("tpm", "show", "one")["ek"], self.host.json("tpm", "show", "vm")["ek"])
        self.ok("template", "vm", "--undo")

        # The snapshot's memory, too, is under the new keys, and whole.
        self.ok("snapshot", "revert", "vm", "early", "--yes")
        again = self.goes_on("resume", "vm")
        self.assertIn(SECRET, again)
        steps = self.steps(again)
        self.check_steps(again, steps[0][0], STEPS)

        # The backup is of the VM while it was suspended, and under the provider of then.
        self.ok("remove", "vm", "--yes")
        self.ok("restore", saved)
        self.assertEqual(self.host.json("show", "vm")["provider"]["name"], "local")
        self.assertFalse(self.host.json("snapshot", "list", "vm")["suspended"])
        self.assertIn(SECRET, self.run_in_guest("vm", UNSEAL))


def load_tests(loader, *_):
    # Without those that it inherits with the helpers.
    return loader.loadTestsFromName("Saved.test_secrets_outlive_deep_rekey_clone_and_template", sys.modules[__name__])


if __name__ == "__main__":
    unittest.main(verbosity=2)
