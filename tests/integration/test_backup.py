"""Backups: made while the VM is off or runs, looked into without keys, restored where the home was lost or beside it."""

import json
import shutil
import signal
import subprocess
import unittest

from harness import BOOT_LIMIT, CMDLINE, IMAGES, Host
from test_clone import SEAL, SECRET, Sealing, blob


class Backup(Sealing):
    def second_host(self, provider=True):
        other = Host()
        self.addCleanup(other.close)
        if provider:
            other.root.mkdir(parents=True)
            shutil.copytree(self.host.root / "providers", other.root / "providers")
        return other

    def on(self, host, *arguments):
        done = host.coffer(*arguments)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr}")
        return done

    def expect_unseals_on(self, host, name, sealed):
        original, self.host = self.host, host
        try:
            self.expect_unseals(name, sealed)
        finally:
            self.host = original

    def test_made_while_off_and_restored_elsewhere(self):
        self.add_provider()
        self.create("vm", "--provider", "local")
        sealed = self.seal("vm")
        file = self.host.folder / "vm.backup"
        self.ok("backup", "vm", file)
        self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        self.refused(73, "backup", "vm", file)
        other = self.second_host()
        self.on(other, "restore", file)
        self.assertEqual(other.json("show", "vm")["uuid"], self.host.json("show", "vm")["uuid"])
        self.expect_unseals_on(other, "vm", sealed)

        # In place of a lost home, and beside the original.
        self.refused(73, "restore", file)
        done = self.on(self.host, "restore", file, "--name", "copy", "--tpm", "replace")
        self.assertNotEqual(self.host.json("show", "vm")["uuid"], self.host.json("show", "copy")["uuid"])
        self.assertNotEqual(self.endorsement_keys("vm"), self.endorsement_keys("copy"))
        shutil.rmtree(self.host.home("vm"))
        done = self.on(self.host, "restore", file)
        self.assertIn("restored VM 'vm'", done.stdout)
        self.expect_unseals("vm", sealed)

    def test_made_while_running(self):
        self.add_provider()
        self.create("vm", "--provider", "local")
        running = self.host.start(
            "run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd", IMAGES / "initrd.img",
            "--cmdline", CMDLINE, "--timeout", BOOT_LIMIT + 120, "--exec", SEAL + "\necho SEALED; sleep 600",
            stdout=subprocess.PIPE, text=True)
        try:
            lines = []
            for line in running.stdout:
                lines.append(line)
                if line.startswith("SEALED"):
                    break
            sealed = blob("".join(lines))
            file = self.host.folder / "vm.backup"
            self.assertIn("--disks", self.refused(75, "backup", "vm", self.host.folder / "no.backup", "--disks"))
            self.ok("backup", "vm", file)
            self.assertIsNone(running.poll(), "the VM runs on")
        finally:
            running.send_signal(signal.SIGTERM)
            running.stdout.close()
            running.wait()
        other = self.second_host()
        self.on(other, "restore", file)
        self.expect_unseals_on(other, "vm", sealed)

    def test_says_what_it_holds_and_which_key_it_needs(self):
        self.add_provider()
        disk = self.host.folder / "data.img"
        disk.write_bytes(b"a-planted-secret-on-the-disk" * 1000 + bytes(4_000_000 - 28_000 + 256))
        self.create("vm", "--provider", "local", "--disk", disk)
        file = self.host.folder / "vm.backup"
        self.ok("backup", "vm", file, "--disks")
        home = self.host.json("show", "vm")
        shown = json.loads(self.ok("backup", "--inspect", file, "--json"))
        self.assertEqual((shown["name"], shown["uuid"], shown["key_id"]), ("vm", home["uuid"], home["key_id"]))
        self.assertEqual(shown["provider"], {"id": home["provider"]["id"], "name": "local", "kind": "native"})
        self.assertEqual(shown["size"], file.stat().st_size)
        parts = {part["name"]: part["size"] for part in shown["parts"]}
        self.assertEqual(parts["disk-0"], disk.stat().st_size)
        self.assertGreaterEqual(set(parts), {"keys", "config", "nvram", "tpm"})
        text = self.ok("backup", "--inspect", file)
        for word in ("local", home["key_id"], "disk-0"):
            self.assertIn(word, text)
        content = file.read_bytes()
        for secret in (b"a-planted-secret", b"data.img", b"OVMF", b"M\0i\0c\0r\0o\0s\0o\0f\0t"):
            self.assertNotIn(secret, content)

        # Without the provider: which one, and which key.
        other = self.second_host(provider=False)
        done = other.coffer("restore", file)
        self.assertEqual(done.returncode, 77, done.stderr)
        for word in ("local", home["provider"]["id"], "native", home["key_id"]):
            self.assertIn(word, done.stderr)
        self.assertFalse((other.root / "vms").exists() and list((other.root / "vms").iterdir()))

        # Disks come back: to their place, which is taken here, or to another folder.
        other = self.second_host()
        done = other.coffer("restore", file)
        self.assertEqual(done.returncode, 73, done.stderr)
        folder = other.folder / "disks"
        folder.mkdir()
        self.on(other, "restore", file, "--disk-folder", folder)
        self.assertEqual((folder / "data.img").read_bytes(), disk.read_bytes())
        self.assertEqual(other.json("show", "vm")["config"]["disks"][0]["path"], str(folder / "data.img"))
        self.on(other, "restore", file, "--name", "beside", "--disk-folder", folder)
        self.assertEqual((folder / "beside-data.img").read_bytes(), disk.read_bytes())

    def test_changed_and_cut_backups_are_refused_with_65(self):
        self.add_provider()
        self.create("vm", "--provider", "local")
        file = self.host.folder / "vm.backup"
        self.ok("backup", "vm", file)
        original = file.read_bytes()
        other = self.second_host()

        def refused(content):
            file.write_bytes(content)
            done = other.coffer("restore", file)
            self.assertEqual(done.returncode, 65, done.stderr)
            self.assertIn(str(file), done.stderr)
            self.assertEqual(other.json("list"), [])

        for at in (0, 70, 33000, len(original) // 2, len(original) - 1):
            changed = bytearray(original)
            changed[at] ^= 1
            refused(bytes(changed))
        refused(original[:-1])
        refused(original + b"\0")
        refused(b"")
        file.write_bytes(original)
        self.on(other, "restore", file)

    def test_older_backup_is_a_rollback_that_is_said(self):
        self.add_provider()
        self.create("vm", "--provider", "local")
        file = self.host.folder / "vm.backup"
        self.ok("backup", "vm", file)
        self.ok("tpm", "clear", "vm", "--yes")
        lost = shutil.copytree(self.host.home("vm"), self.host.folder / "lost")
        shutil.rmtree(self.host.home("vm"))
        done = self.host.coffer("restore", file)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("older than what this host has seen", done.stderr)
        self.ok("tpm", "show", "vm")
        # The lost home, found again, does not come back in its place.
        shutil.rmtree(self.host.home("vm"))
        shutil.copytree(lost, self.host.home("vm"))
        self.assertIn("rolled back", self.refused(65, "tpm", "show", "vm"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
