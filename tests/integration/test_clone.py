"""Copies of VMs, templates, and TPMs that come and go: who can open what the guest sealed."""

import re
import shutil
import unittest

from harness import HostTest

SECRET = "sealed-before-the-copy"

# Seals to the owner's storage key. What comes out is what a guest has on its disk: no use without the same TPM.
SEAL = rf"""
set -e
cd /tmp
tpm2_createprimary -C o -G ecc -c primary.ctx > /dev/null
echo -n '{SECRET}' | tpm2_create -C primary.ctx -i- -u seal.pub -r seal.priv > /dev/null
echo "PUB $(base64 -w0 seal.pub)"; echo "PRIV $(base64 -w0 seal.priv)"
"""

UNSEAL = r"""
set -e
cd /tmp
echo {pub} | base64 -d > seal.pub; echo {priv} | base64 -d > seal.priv
tpm2_createprimary -C o -G ecc -c primary.ctx > /dev/null
if tpm2_load -C primary.ctx -u seal.pub -r seal.priv -c seal.ctx > /dev/null 2>&1; then
    echo "UNSEALED $(tpm2_unseal -c seal.ctx)"
else
    echo REFUSED
fi
"""


def blob(output):
    words = dict(line.split(" ", 1) for line in output.splitlines() if line.startswith(("PUB ", "PRIV ")))
    return {"pub": words["PUB"].strip(), "priv": words["PRIV"].strip()}


class Sealing(HostTest):
    def seal(self, name):
        return blob(self.run_in_guest(name, SEAL))

    def expect_unseals(self, name, sealed):
        self.assertIn(f"UNSEALED {SECRET}", self.run_in_guest(name, UNSEAL.format(**sealed)))

    def expect_refuses(self, name, sealed):
        out = self.run_in_guest(name, UNSEAL.format(**sealed))
        self.assertIn("REFUSED", out)
        self.assertNotIn(SECRET, out)

    def endorsement_keys(self, name):
        return self.host.json("tpm", "show", name)["ek"]


class Clone(Sealing):
    def test_copy_unseals_and_replace_does_not(self):
        self.add_provider()
        self.create("src", "--provider", "local")
        sealed = self.seal("src")
        done = self.host.coffer("clone", "src", "same", "--tpm", "copy")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("share", done.stderr, "that two VMs share secrets is said")
        self.assertEqual(self.ok("config", "get", "clone.tpm-policy").strip(), "copy")
        self.ok("config", "set", "clone.tpm-policy", "replace")
        done = self.host.coffer("clone", "src", "other")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("share", done.stderr)

        shown = {name: self.host.json("show", name) for name in ("src", "same", "other")}
        self.assertEqual(len({vm["uuid"] for vm in shown.values()}), 3)
        self.assertEqual(len({vm["key_id"] for vm in shown.values()}), 3, "each has a bundle key of its own")
        self.assertEqual(self.endorsement_keys("src"), self.endorsement_keys("same"))
        self.assertNotEqual(self.endorsement_keys("src"), self.endorsement_keys("other"))
        for key in self.endorsement_keys("src"):
            self.assertTrue(key["name"])

        self.expect_unseals("same", sealed)
        self.expect_refuses("other", sealed)
        # The copy goes on when the source is gone.
        self.ok("remove", "src", "--yes")
        self.expect_unseals("same", sealed)

    def test_new_tpm_has_certificates_of_its_own(self):
        self.add_provider()
        self.create("src", "--provider", "local")
        self.ok("clone", "src", "same", "--tpm", "copy")
        self.ok("clone", "src", "other", "--tpm", "replace")
        shown = {name: self.host.coffer("tpm", "cert", "show", name) for name in ("src", "same", "other")}
        # The platform certificate of a copied TPM is about the VM that was copied.
        self.assertEqual([shown[name].returncode for name in ("src", "same", "other")], [0, 1, 0])
        self.assertIn("another VM", shown["same"].stdout)
        serials = {name: re.findall(r"serial\s+([0-9A-Fa-f]+)", done.stdout) for name, done in shown.items()}
        self.assertGreaterEqual(len(serials["src"]), 3)
        self.assertEqual(serials["src"], serials["same"])
        self.assertFalse(set(serials["src"]) & set(serials["other"]))

    def test_disks_are_copied(self):
        self.add_provider()
        disk = self.host.folder / "data.img"
        with disk.open("wb") as file:
            file.truncate(64 << 20)
            file.seek(40 << 20)
            file.write(b"content far in" * 1000)
        self.create("src", "--provider", "local", "--disk", disk)
        self.ok("clone", "src", "dst", "--tpm", "replace")
        copy = self.host.folder / "dst-data.img"
        self.assertEqual(self.host.json("show", "dst")["config"]["disks"][0]["path"], str(copy))
        self.assertEqual(copy.read_bytes(), disk.read_bytes())
        self.assertEqual(copy.stat().st_mode & 0o777, 0o600)
        self.assertLess(copy.stat().st_blocks * 512, 1 << 20, "holes stay holes")
        # A name that is taken is refused before anything is made.
        (self.host.folder / "next-data.img").write_text("the user's")
        self.assertIn("next-data.img", self.refused(73, "clone", "src", "next"))
        self.assertEqual((self.host.folder / "next-data.img").read_text(), "the user's")
        self.refused(66, "show", "next")
        folder = self.host.folder / "elsewhere"
        folder.mkdir()
        self.ok("clone", "src", "next", "--disk-folder", folder)
        self.assertTrue((folder / "next-data.img").exists())
        self.refused(73, "clone", "src", "dst")
        self.refused(66, "clone", "nobody", "new")

    def test_encrypted_disks_get_keys_of_their_own(self):
        self.add_provider()
        content = b"content of the disk" * 1000 + bytes(8_000_000 - 19_000 + 512)
        plain = self.host.folder / "plain.img"
        plain.write_bytes(content)
        for name, options in (("src", ["--integrity"]), ("loose", [])):
            self.ok("create", name, "--provider", "local", "--encrypt-disks", "--disk", plain, *options)
            backup = self.host.folder / f"{name}.backup"
            image = (self.host.home(name) / "disk-0").read_bytes()
            self.ok("backup", name, backup, "--disks")
            self.ok("clone", name, f"{name}-clone", "--tpm", "replace")
            self.ok("restore", backup, "--name", f"{name}-beside", "--tpm", "replace")
            self.ok("remove", name, "--yes")
            self.ok("restore", backup)
            self.assertEqual((self.host.home(name) / "disk-0").read_bytes(), image)
            for vm in (name, f"{name}-clone", f"{name}-beside"):
                out = self.host.folder / f"{vm}.img"
                self.ok("disk", "export", vm, "0", out)
                self.assertEqual(out.read_bytes(), content, vm)
                self.assertFalse([path.name for path in self.host.home(vm).iterdir() if path.name.startswith(".")])
            images = {(self.host.home(vm) / "disk-0").read_bytes() for vm in (name, f"{name}-clone", f"{name}-beside")}
            self.assertEqual(len(images), 3)

    def test_running_source_is_refused(self):
        self.add_provider()
        self.create("src", "--provider", "local")
        running = self.host.start("tpm", "serve", "src", "--socket-dir", self.host.folder / "sockets")
        try:
            for _ in range(600):
                if (self.host.folder / "sockets" / "ctrl").exists():
                    break
                self.assertIsNone(running.poll())
                __import__("time").sleep(0.1)
            self.assertIn("power it off", self.refused(75, "clone", "src", "dst"))
            self.refused(75, "tpm", "remove", "src", "--yes")
            self.refused(75, "template", "src")
        finally:
            running.terminate()
            running.wait()
        self.refused(66, "show", "dst")


class Templates(Sealing):
    def test_golden_image_without_tpm_gets_one_at_deployment(self):
        self.add_provider()
        self.create("golden", "--tpm", "none", "--disk", self.copy_of_disk())
        self.ok("template", "golden")
        self.assertTrue(self.host.json("show", "golden")["config"]["template"])
        why = self.refused(2, "run", "golden", "--accel", "soft", "--timeout", "5")
        self.assertIn("create NAME --from golden", why)
        self.refused(2, "create", "one", "--from", "golden", "--tpm", "copy")
        for name in ("one", "two"):
            self.ok("create", name, "--from", "golden", "--tpm", "add", "--provider", "local")
        self.assertNotEqual(self.endorsement_keys("one"), self.endorsement_keys("two"))
        self.assertFalse(self.host.json("show", "one")["config"]["template"])
        self.assertTrue(self.host.json("show", "one")["encrypted"])
        # Each boots from its own copy of the template's disk.
        sealed = blob(self.run_from_disk("one", SEAL))
        self.assertIn(f"UNSEALED {SECRET}", self.run_from_disk("one", UNSEAL.format(**sealed)))
        self.assertIn("REFUSED", self.run_from_disk("two", UNSEAL.format(**sealed)))

    def test_copy_of_a_templates_tpm_unseals(self):
        self.add_provider()
        self.create("golden", "--provider", "local")
        sealed = self.seal("golden")
        self.refused(2, "create", "one", "--from", "golden")  # it is no template yet
        self.ok("template", "golden")
        self.ok("create", "one", "--from", "golden", "--tpm", "copy", "--memory", "768M")
        self.assertEqual(self.host.json("show", "one")["config"]["memory"], 768 << 20)
        self.expect_unseals("one", sealed)
        self.ok("template", "golden", "--undo")
        self.expect_unseals("golden", sealed)


class AddAndRemove(Sealing):
    def test_tpm_comes_and_goes(self):
        self.create("vm", "--tpm", "none")
        self.assertIn("provider add", self.refused(2, "tpm", "add", "vm"))
        self.add_provider()
        self.run_in_guest("vm", "test ! -e /dev/tpm0")
        self.ok("tpm", "add", "vm")
        self.assertTrue(self.host.json("show", "vm")["encrypted"])
        sealed = self.seal("vm")
        self.expect_unseals("vm", sealed)
        self.assertIn("--yes", self.refused(2, "tpm", "remove", "vm"))
        self.ok("tpm", "remove", "vm", "--yes", "--keep-encryption")
        self.assertTrue(self.host.json("show", "vm")["encrypted"])
        self.run_in_guest("vm", "test ! -e /dev/tpm0")
        self.ok("tpm", "add", "vm")
        self.expect_refuses("vm", sealed)

    def test_home_is_encrypted_and_decrypted(self):
        self.add_provider()
        self.create("vm", "--tpm", "none")
        before = shutil.copytree(self.host.home("vm"), self.host.folder / "before")
        self.ok("tpm", "add", "vm", "--tpm", "tis", "--pcr-banks", "sha256")
        config = self.host.json("show", "vm")["config"]
        self.assertEqual((config["tpm"], config["pcr_banks"]), ("tis", "sha256"))
        for path in self.host.home("vm").iterdir():
            self.assertNotIn(b"OVMF", path.read_bytes(), "the configuration's paths are hidden")
        encrypted = shutil.copytree(self.host.home("vm"), self.host.folder / "encrypted")
        self.ok("tpm", "remove", "vm", "--yes")
        shown = self.host.json("show", "vm")
        self.assertEqual((shown["state"], shown["encrypted"], shown["config"]["tpm"]), ("off", False, "none"))
        # The encrypted home of before cannot be put back.
        shutil.rmtree(self.host.home("vm"))
        shutil.copytree(encrypted, self.host.home("vm"))
        self.assertIn("rolled back", self.refused(65, "tpm", "show", "vm"))
        self.assertTrue(before.exists())
        # Encryption that was asked for stays.
        self.create("kept", "--encrypt", "--provider", "local")
        self.ok("tpm", "remove", "kept", "--yes")
        self.assertTrue(self.host.json("show", "kept")["encrypted"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
