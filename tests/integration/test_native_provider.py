"""Native key providers over their life: rotation, backups that openssl reads, restoration on a second host."""

import os
import shutil
import subprocess
import time
import unittest

from harness import Host, HostTest, Terminal

PASSWORD = "Kennwort für Sicherungen"
NAG = "never backed up"
ROTATED = "not backed up since it was rotated"


class Secrets:
    """Descriptors that give a text once, for subprocess's pass_fds."""

    def __init__(self, **texts):
        self.options, self.fds = [], []
        for name, text in texts.items():
            read, write = os.pipe()
            os.write(write, text.encode())
            os.close(write)
            self.options += [f"--{name}-fd", read]
            self.fds.append(read)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for fd in self.fds:
            os.close(fd)


class Native(HostTest):
    def setUp(self):
        super().setUp()
        for name in ("code.fd", "vars.fd"):
            (self.host.folder / name).write_bytes(name.encode() * 8192)
        self.file = self.host.folder / "backup.p12"

    def create_small(self, name, *options, code=0):
        """A VM that is never run: its firmware is none."""
        done = self.host.coffer("create", name, "--memory", "64M", "--firmware", self.host.folder / "code.fd",
                                "--variables", self.host.folder / "vars.fd", *options)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout + done.stderr

    def with_secrets(self, *arguments, host=None, code=0, **texts):
        with Secrets(**texts) as secrets:
            done = (host or self.host).coffer(*arguments, *secrets.options, pass_fds=secrets.fds)
        self.assertEqual(done.returncode, code, f"coffer {arguments}:\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def backup(self, name="local", *options, code=0, password=PASSWORD):
        return self.with_secrets("provider", "backup", name, self.file, *options, code=code, password=password)

    def restore(self, host, *options, code=0, password=PASSWORD, **texts):
        return self.with_secrets("provider", "restore", self.file, *options, host=host, code=code, password=password,
                                 **texts)

    def second_host(self):
        host = Host()
        self.addCleanup(host.close)
        return host

    def key_version(self, name, host=None):
        return int((host or self.host).json("show", name)["key_id"].split("/")[0])

    def provider(self, name="local", host=None):
        return (host or self.host).json("provider", "show", name)


class Life(Native):
    def test_rotation_serves_old_homes_until_they_are_gone_and_prune_names_them(self):
        self.add_provider()
        self.create_small("old")
        self.assertIn("nothing was removed", self.ok("provider", "prune", "local"))
        self.assertIn("version 2", self.ok("provider", "rotate", "local"))
        self.create_small("new")
        self.assertEqual((self.key_version("old"), self.key_version("new")), (1, 2))
        self.assertEqual({vm["state"] for vm in self.host.json("list")}, {"off"})
        out = self.ok("provider", "prune", "local", "--yes")
        self.assertIn("version 1 stays: it is used by old", out)
        self.assertIn("nothing was removed", out)
        self.ok("remove", "old", "--yes")
        self.assertIn("used by the certificate authority", self.ok("provider", "prune", "local", "--yes"))
        self.ok("ca", "protect", "local")
        self.refused(2, "provider", "prune", "local")  # asks, and there is no terminal
        self.assertIn("removed version 1", self.ok("provider", "prune", "local", "--yes"))
        folder = self.host.root / "providers" / self.provider()["id"]
        self.assertEqual(sorted(path.name for path in folder.glob("kdk*")), ["kdk.2"])
        self.assertEqual(self.host.json("show", "new")["state"], "off")

    def test_prune_keeps_what_known_backups_of_homes_need(self):
        self.add_provider()
        self.create_small("vm")
        saved = self.host.folder / "vm.backup"
        self.ok("backup", "vm", saved)
        self.ok("provider", "rotate", "local")
        self.ok("rekey", "vm")
        self.assertEqual(self.key_version("vm"), 2)
        self.assertIn(f"version 1 stays: it is used by the backup {saved}",
                      self.ok("provider", "prune", "local", "--yes"))
        self.ok("remove", "vm", "--yes")
        self.ok("restore", saved)
        self.assertEqual(self.key_version("vm"), 1)
        self.ok("rekey", "vm")
        saved.unlink()
        self.ok("ca", "protect", "local")
        self.assertIn("removed version 1", self.ok("provider", "prune", "local", "--yes"))
        self.assertEqual(self.host.json("show", "vm")["state"], "off")

    def test_prune_keeps_everything_while_a_home_cannot_be_read(self):
        self.add_provider()
        self.create_small("vm")
        self.ok("provider", "rotate", "local")
        keys = self.host.home("vm") / "keys"
        keys.write_bytes(b"no keys file")
        self.assertIn("vm", self.refused(75, "provider", "prune", "local", "--yes"))

    def test_second_host_opens_a_copied_home(self):
        self.add_provider()
        self.create_small("one")
        self.ok("provider", "rotate", "local")
        self.create_small("two")
        self.backup()
        other = self.second_host()
        shutil.copytree(self.host.root / "vms", other.root / "vms")
        self.assertEqual({vm["state"] for vm in other.json("list")}, {"locked"})
        self.assertIn("restored", self.restore(other))
        self.assertEqual({vm["state"] for vm in other.json("list")}, {"off"})
        self.assertEqual(self.provider(host=other)["id"], self.provider()["id"])
        self.assertEqual(self.provider(host=other)["vms"], ["one", "two"])
        # A later rotation goes the same way.
        self.ok("provider", "rotate", "local")
        self.backup("local", "--overwrite")
        self.assertIn("restored version 3", self.restore(other))
        self.assertIn("has all keys", self.restore(other))
        self.assertIn("password is wrong", self.restore(other, password="wrong", code=77))

    def test_restored_under_another_name_and_a_passphrase(self):
        self.add_provider()
        self.create_small("vm")
        self.backup()
        other = self.second_host()
        shutil.copytree(self.host.root / "vms", other.root / "vms")
        self.restore(other, "--name", "from the first host", passphrase="correct horse")
        self.assertEqual(other.json("show", "vm")["state"], "locked")
        shown = self.with_secrets("show", "vm", "--json", host=other, passphrase="correct horse")
        self.assertIn('"state": "off"', shown)
        self.restore(other, code=77, passphrase="wrong")
        self.assertIn("has all keys", self.restore(other, passphrase="correct horse"))

    def test_openssl_reads_the_backup(self):
        self.add_provider("Schlüssel")
        self.ok("provider", "rotate", "Schlüssel")
        self.backup("Schlüssel")
        password = self.host.folder / "password"
        password.write_text(PASSWORD)
        done = subprocess.run(["openssl", "pkcs12", "-in", self.file, "-info", "-nodes", "-passin",
                               f"file:{password}"], capture_output=True, text=True, errors="replace", check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        text = done.stdout + done.stderr
        self.assertEqual(text.count("Secret bag"), 2)
        self.assertIn("MAC: sha256, Iteration 600000", text)
        self.assertIn("PBES2, PBKDF2, AES-256-CBC, Iteration 600000, PRF hmacWithSHA256", text)
        identifier = self.provider("Schlüssel")["id"].replace("-", " ")
        folder = self.host.root / "providers" / self.provider("Schlüssel")["id"]
        digits = "".join(character for character in text.lower() if character in "0123456789abcdef")
        self.assertIn(identifier.replace(" ", ""), digits)
        for version in (1, 2):
            kdk = (folder / f"kdk.{version}").read_bytes()[80:112]
            self.assertIn(kdk.hex(), digits)
        password.write_text("wrong")
        done = subprocess.run(["openssl", "pkcs12", "-in", self.file, "-info", "-nodes", "-passin",
                               f"file:{password}"], capture_output=True, check=False)
        self.assertNotEqual(done.returncode, 0)

    def test_backups_are_private_and_overwrite_nothing_unasked(self):
        self.add_provider()
        self.backup()
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)
        before = self.file.read_bytes()
        self.assertIn("--overwrite", self.backup(code=73))
        self.assertEqual(self.file.read_bytes(), before)
        self.backup("local", "--overwrite")
        self.assertNotEqual(self.file.read_bytes(), before)
        self.backup("local", "--overwrite", password="", code=2)
        self.backup("local", "--overwrite", password="\n", code=2)
        self.assertEqual([path.name for path in self.host.folder.glob("*p12*")], ["backup.p12"])
        self.assertIn("--password-fd", self.refused(77, "provider", "backup", "local", self.host.folder / "x.p12"))

    def test_providers_of_other_kinds_are_refused(self):
        for verb in ("rotate", "prune", "set"):
            options = ("--require-backup", "on") if verb == "set" else ()
            self.refused(66, "provider", verb, "nobody", *options)
        self.restore(self.host, code=66)

    def test_password_is_asked_twice_on_the_terminal(self):
        self.add_provider()
        for second, code in ((b"another", 2), (b"the password", 0)):
            terminal = Terminal(self.host, "provider", "backup", "local", self.file)
            terminal.read_until(rb"New password of the backup: ")
            terminal.type(b"the password\r")
            terminal.read_until(rb"The same .* again: ")
            terminal.type(second + b"\r")
            self.assertEqual(terminal.wait(), code)
            self.assertNotIn(b"the password\r", terminal.output)
            terminal.close()
            self.assertEqual(self.file.exists(), code == 0)
        other = self.second_host()
        terminal = Terminal(other, "provider", "restore", self.file, "--ask-passphrase")
        terminal.read_until(rb"Password of the backup: ")
        terminal.type(b"the password\r")
        for prompt in (rb"New passphrase: ", rb"The same .* again: "):
            terminal.read_until(prompt)
            terminal.type(b"correct horse\r")
        self.assertEqual(terminal.wait(), 0)
        terminal.close()
        self.assertTrue(self.provider(host=other)["passphrase"])

    def test_added_under_a_passphrase_by_the_keeper(self):
        self.with_secrets("provider", "add", "native", "local", passphrase="correct horse")
        self.with_secrets("provider", "rotate", "local", passphrase="wrong", code=77)
        self.with_secrets("provider", "rotate", "local", passphrase="correct horse")
        self.assertEqual(self.provider()["key_version"], 2)
        self.with_secrets("provider", "backup", "local", self.file, passphrase="correct horse", password="p")
        self.with_secrets("provider", "add", "native", "other", passphrase="", code=2)
        self.assertEqual(len(self.host.json("provider", "list")), 1)


class Reminders(Native):
    def reminded(self, *arguments):
        return self.host.coffer(*arguments).stderr

    def test_list_and_run_say_once_a_day_that_there_is_no_backup(self):
        self.assertIn(NAG, self.ok("provider", "add", "native", "local"))
        self.create_small("vm")
        self.assertIn(NAG, self.ok("provider", "list"))
        self.assertIn(NAG, self.ok("provider", "show", "local"))
        self.assertIn(NAG, self.reminded("list"))
        self.assertNotIn(NAG, self.reminded("list"))
        run = ("run", "vm", "--accel", "soft", "--timeout", "1")
        self.assertNotIn(NAG, self.reminded(*run))
        stamp, = (self.host.folder / "state").rglob(".backup-reminder.*")
        stamp.write_text(f"{int(time.time()) - 25 * 3600}\n")
        self.assertIn(NAG, self.reminded(*run))
        self.assertNotIn(NAG, self.reminded("list"))
        for text in ("", "x", "99999999999999999999", f"{int(time.time()) + 3600}"):
            stamp.write_text(text)
            self.assertIn(NAG, self.reminded("list", "--json"))
        stamp.unlink()
        self.backup()
        self.assertNotIn(NAG, self.reminded("list"))
        self.assertNotIn(NAG, self.ok("provider", "list"))
        self.assertEqual(self.provider()["backed_up_version"], 1)
        self.assertAlmostEqual(self.provider()["backed_up"], time.time(), delta=300)
        self.assertIn(ROTATED, self.ok("provider", "rotate", "local"))
        self.assertIn(ROTATED, self.ok("provider", "list"))
        self.assertIn(ROTATED, self.reminded("list"))

    def test_a_backup_can_be_required(self):
        self.ok("provider", "add", "native", "local", "--require-backup")
        self.assertIn("provider backup", self.create_small("vm", code=77))
        self.assertFalse(self.host.home("vm").exists())
        self.backup()
        self.create_small("vm")
        self.ok("provider", "rotate", "local")
        self.create_small("late", code=77)
        self.assertEqual(self.host.json("show", "vm")["state"], "off")
        self.assertTrue(self.provider()["require_backup"])
        self.ok("provider", "set", "local", "--require-backup", "off")
        self.create_small("late")
        self.ok("provider", "set", "local", "--require-backup", "on")
        self.create_small("later", code=77)


if __name__ == "__main__":
    unittest.main(verbosity=2)
