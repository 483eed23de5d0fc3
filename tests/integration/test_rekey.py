"""New keys for a home, off and while its guest uses its TPM; old copies; locked VMs."""

import os
import re
import shutil
import signal
import subprocess
import time
import unittest

from harness import BOOT_LIMIT, CMDLINE, IMAGES, HostTest, Terminal

SEAL = r"""
set -e
cd /tmp
tpm2_startauthsession -S session; tpm2_policypcr -S session -l sha256:0,1,2,3,4,5,7 -L policy > /dev/null
tpm2_flushcontext session
tpm2_createprimary -C o -G ecc -c primary.ctx > /dev/null
echo -n 'the-sealed-secret' | tpm2_create -C primary.ctx -L policy -i- -u seal.pub -r seal.priv > /dev/null
tpm2_load -C primary.ctx -u seal.pub -r seal.priv -c seal.ctx > /dev/null
tpm2_evictcontrol -C o -c seal.ctx 0x81000100 > /dev/null
tpm2_nvdefine 0x1500002 -C o -s 8 -a 'ownerread|ownerwrite|nt=counter' > /dev/null
tpm2_nvincrement 0x1500002 -C o
"""
UNSEAL = "tpm2_unseal -c 0x81000100 -p pcr:sha256:0,1,2,3,4,5,7"
COUNT = "tpm2_nvread 0x1500002 -C o | od -An -tx1 | tr -d ' \\n'"
# Each line is printed after its increment was answered, and so is durable by then.
LOOP = rf"""
{UNSEAL}; echo
while true; do
    tpm2_nvincrement 0x1500002 -C o && echo "tick $({COUNT})" || echo failed
done
"""


def with_passphrase(text):
    """A descriptor that gives the passphrase, and what subprocess has to know of it."""
    read, write = os.pipe()
    os.write(write, text.encode() + b"\n")
    os.close(write)
    return read


class Keys(HostTest):
    """Without a guest."""

    def setUp(self):
        super().setUp()
        self.add_provider()

    def files(self, name="vm"):
        return {path.name: path.read_bytes() for path in self.host.home(name).iterdir() if path.name != "lock"}

    def started(self, name="vm", *options):
        """Starts the VM and stops it again at once: whether its home is one that runs."""
        done = self.host.coffer("run", name, "--accel", "soft", "--timeout", "0.2", *options)
        self.assertEqual(done.returncode, 124, done.stderr)
        return done.stderr

    def events(self, name="vm"):
        return [event["kind"] for event in self.host.json("show", name)["history"]]

    def with_secret(self, secret, *arguments, code=0):
        read = with_passphrase(secret)
        try:
            done = self.host.coffer(*arguments, "--passphrase-fd", read, pass_fds=[read])
        finally:
            os.close(read)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def test_shallow_rekey_and_change_of_provider(self):
        self.add_provider("other")
        self.create("vm", "--provider", "local")
        before, files = self.host.json("show", "vm"), self.files()
        out = self.ok("rekey", "vm")
        self.assertIn(before["key_id"], out, "which key still opens old copies")
        after = self.host.json("show", "vm")
        self.assertNotEqual(after["key_id"], before["key_id"])
        self.assertEqual(after["provider"]["name"], "local")
        self.assertEqual({name for name, content in self.files().items() if content != files.get(name)}, {"keys"})
        self.started()
        self.ok("rekey", "vm", "--provider", "other")
        self.assertEqual(self.host.json("show", "vm")["provider"]["name"], "other")
        self.assertEqual(self.events(), ["created", "rekeyed", "provider changed"])
        self.assertIn("provider changed", self.ok("show", "vm"))
        # Nothing of it needs the first provider any more, once the authority that signs for TPMs does not.
        self.ok("ca", "protect", "other")
        self.ok("provider", "remove", "local", "--yes")
        self.started()

    def test_between_a_provider_with_a_passphrase_and_one_without(self):
        self.with_secret("first secret", "provider", "add", "native", "guarded")
        self.create("vm", "--provider", "local")
        read = with_passphrase("first secret")
        self.ok("rekey", "vm", "--provider", "guarded", "--new-passphrase-fd", read, pass_fds=[read])
        os.close(read)
        self.assertEqual(self.host.json("show", "vm")["state"], "locked")
        why = self.with_secret("wrong secret", "rekey", "vm", "--provider", "local", code=77)
        self.assertIn("passphrase is wrong", why)
        self.with_secret("first secret", "rekey", "vm", "--provider", "local")
        self.assertEqual(self.host.json("show", "vm")["state"], "off")
        self.started()

    def test_failing_rekey_leaves_the_home_as_it_is(self):
        self.create("vm", "--provider", "local")
        self.with_secret("secret", "provider", "add", "native", "guarded")
        files = self.files()
        self.refused(66, "rekey", "vm", "--provider", "nobody")
        self.refused(66, "rekey", "none")
        self.refused(2, "rekey", "vm", "--all")
        read = with_passphrase("wrong")
        self.refused(77, "rekey", "vm", "--provider", "guarded", "--new-passphrase-fd", read, pass_fds=[read])
        os.close(read)
        self.assertEqual(self.files(), files)
        self.create("plain", "--tpm", "none")
        self.refused(2, "rekey", "plain")

    def test_deep_rekey_rewrites_every_file(self):
        self.create("vm", "--provider", "local")
        files, before = self.files(), self.host.json("show", "vm")
        out = self.ok("rekey", "vm", "--deep")
        self.assertIn("not erased", out)
        self.assertIn(before["key_id"], out)
        for name, content in self.files().items():
            self.assertNotEqual(content, files[name], name)
            if name != "keys":
                self.assertEqual(int.from_bytes(content[40:44], "little"), 2, f"epoch of {name}")
        self.assertEqual(self.events(), ["created", "deep rekey"])
        self.started()
        # A file of before is not taken for one of now.
        (self.host.home("vm") / "tpm").write_bytes(files["tpm"])
        self.assertIn("tpm", self.refused(65, "run", "vm", "--accel", "soft", "--timeout", "1"))

    def test_deep_rekey_shows_how_far_it_is_on_a_terminal(self):
        self.create("vm", "--provider", "local")
        terminal = Terminal(self.host, "rekey", "vm", "--deep")
        self.addCleanup(terminal.close)
        terminal.read_until(rb"rekeying 'vm' \[.*%.*deep-rekeyed VM", limit=60)
        self.assertEqual(terminal.wait(), 0)
        self.assertNotIn("%", self.host.coffer("rekey", "vm", "--deep").stderr)

    def test_deep_rekey_killed_at_any_time_is_finished_later(self):
        self.create("vm", "--provider", "local")
        delay = 0.0
        killed = 0
        for _ in range(40):
            verb = self.host.start("rekey", "vm", "--deep", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(delay)
            verb.kill()
            if verb.wait() == 0:
                break
            killed += 1
            delay += 0.02
            self.assertIn("in order", self.ok("unlock", "vm"))
        self.assertGreater(killed, 1)
        self.ok("rekey", "vm", "--deep")
        epochs = {int.from_bytes(content[40:44], "little") for name, content in self.files().items() if name != "keys"}
        self.assertEqual(len(epochs), 1)
        self.assertEqual([name for name in os.listdir(self.host.home("vm")) if name.endswith(".tmp")], [])
        self.started()

    def test_rollback_is_accepted_by_its_owner_alone(self):
        self.create("vm", "--provider", "local")
        old = self.host.folder / "old"
        shutil.copytree(self.host.home("vm"), old)
        self.ok("rekey", "vm")  # a later state
        newest = self.host.folder / "newest"
        shutil.copytree(self.host.home("vm"), newest)
        self.refused(2, "run", "vm", "--accel", "soft", "--timeout", "1", "--accept-rollback")
        shutil.rmtree(self.host.home("vm"))
        shutil.copytree(old, self.host.home("vm"))
        self.assertEqual(self.host.json("show", "vm")["state"], "locked")
        files = self.files()
        for verb in (["run", "vm", "--accel", "soft", "--timeout", "1"], ["unlock", "vm"], ["rekey", "vm"],
                     ["tpm", "show", "vm"]):
            why = self.refused(65, *verb)
            self.assertIn("--accept-rollback", why)
        self.assertEqual(self.files(), files)
        self.assertIn("old copy", self.started("vm", "--accept-rollback"))
        self.assertEqual(self.events()[-1], "rollback accepted")
        self.started()
        # What was the newest copy is an old one now.
        shutil.rmtree(self.host.home("vm"))
        shutil.copytree(newest, self.host.home("vm"))
        self.refused(65, "run", "vm", "--accel", "soft", "--timeout", "1")

    def test_locked_vms_say_why_and_are_left_alone(self):
        self.with_secret("the secret", "provider", "add", "native", "guarded")
        # The first VM's provider protects the authority that signs for the TPMs of all.
        self.create("damaged", "--provider", "local")
        self.create("orphan", "--provider", "local")
        self.with_secret("the secret", "create", "vm", "--memory", "512M", "--provider", "guarded")
        tpm = self.host.home("damaged") / "tpm"
        tpm.write_bytes(tpm.read_bytes()[:-1] + b"!")

        def reason(name):
            listed = {vm["name"]: vm for vm in self.host.json("list")}
            return listed[name]["state"], listed[name].get("reason", "")

        # A passphrase that is needed, wrong, right.
        state, why = reason("vm")
        self.assertEqual(state, "locked")
        self.assertIn("passphrase", why)
        self.refused(77, "unlock", "vm")
        self.assertIn("stays locked", self.with_secret("another secret", "unlock", "vm", code=77))
        self.assertIn("in order", self.with_secret("the secret", "unlock", "vm"))

        # Damage: show looks at what it needs, unlock at everything.
        why = self.refused(65, "unlock", "damaged")
        self.assertIn("tpm", why)

        # No provider, for any of them.
        shutil.move(self.host.root / "providers", self.host.folder / "elsewhere")
        for name in ("vm", "orphan"):
            state, why = reason(name)
            self.assertEqual(state, "locked", name)
            self.assertIn("provider", why)
            self.assertIn("stays locked", self.refused(77, "unlock", name))
        files, damaged = self.files("orphan"), self.files("damaged")
        for verb in (["run", "orphan", "--accel", "soft", "--timeout", "1"], ["tpm", "show", "orphan"],
                     ["tpm", "pcrs", "orphan"], ["tpm", "clear", "orphan", "--yes"], ["rekey", "orphan"],
                     ["rekey", "orphan", "--deep"], ["clone", "orphan", "copy"], ["template", "orphan"],
                     ["backup", "orphan", self.host.folder / "backup"], ["tpm", "remove", "orphan", "--yes"]):
            self.refused(77, *verb)
        self.assertFalse((self.host.folder / "backup").exists())
        self.assertFalse(self.host.home("copy").exists())
        self.assertEqual(self.files("orphan"), files)
        shutil.move(self.host.folder / "elsewhere", self.host.root / "providers")
        self.assertIn("in order", self.ok("unlock", "orphan"))
        for verb in (["run", "damaged", "--accel", "soft", "--timeout", "1"], ["tpm", "show", "damaged"],
                     ["rekey", "damaged"], ["rekey", "damaged", "--deep"]):
            self.refused(65, *verb)
        self.assertEqual(self.files("damaged"), damaged)
        self.ok("remove", "damaged", "--yes")
        self.refused(66, "unlock", "damaged")


class Guest(HostTest):
    """A secret that is sealed once, and unsealed after every change of keys."""

    def setUp(self):
        super().setUp()
        self.add_provider()
        self.add_provider("second")
        self.create("vm", "--tpm", "crb", "--provider", "local")
        self.run_in_guest("vm", SEAL)

    def unseals(self, *options):
        out = self.run_in_guest("vm", f"{UNSEAL}; echo; echo count $({COUNT})", *options)
        self.assertIn("the-sealed-secret", out)
        return int(re.search(r"count ([0-9a-f]{16})", out)[1], 16)

    def ticks(self, log):
        return [int(match, 16) for match in re.findall(rb"tick ([0-9a-f]{16})", log.read_bytes())]

    def wait_for_ticks(self, guest, log, more):
        wanted, deadline = len(self.ticks(log)) + more, time.monotonic() + BOOT_LIMIT
        while len(self.ticks(log)) < wanted:
            self.assertIsNone(guest.poll(), f"the VM ended: {log.read_bytes()[-2000:]}")
            self.assertLess(time.monotonic(), deadline, f"the guest's TPM stands still: {log.read_bytes()[-2000:]}")
            time.sleep(0.2)

    def test_unseals_after_every_rekey(self):
        old = self.host.folder / "old"
        shutil.copytree(self.host.home("vm"), old)
        self.ok("rekey", "vm")
        log = self.host.folder / "guest.log"
        with log.open("wb") as out:
            guest = self.host.start("run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                    IMAGES / "initrd.img", "--cmdline", CMDLINE, "--exec", LOOP, stdout=out,
                                    stderr=subprocess.STDOUT)
        self.addCleanup(guest.kill)
        self.wait_for_ticks(guest, log, 2)
        first = self.host.json("show", "vm")
        self.assertEqual(first["state"], "running")
        self.assertIn("it ran on", self.ok("rekey", "vm"))
        self.wait_for_ticks(guest, log, 2)
        self.refused(75, "rekey", "vm", "--deep")
        self.ok("rekey", "vm", "--provider", "second")
        self.wait_for_ticks(guest, log, 2)
        now = self.host.json("show", "vm")
        self.assertEqual((now["provider"]["name"], now["state"]), ("second", "running"))
        guest.send_signal(signal.SIGTERM)
        guest.wait(60)
        self.assertIn(b"the-sealed-secret", log.read_bytes(), "unsealed after a rekey while off")
        self.assertNotIn(b"failed", log.read_bytes())
        ticks = self.ticks(log)
        self.assertEqual(ticks, list(range(ticks[0], ticks[0] + len(ticks))), "no step is lost or made twice")

        self.assertGreaterEqual(self.unseals(), ticks[-1], "what was answered is kept")
        self.ok("rekey", "vm", "--provider", "local")
        self.unseals()
        self.ok("rekey", "vm", "--deep")
        self.unseals()
        kinds = [event["kind"] for event in self.host.json("show", "vm")["history"]]
        self.assertEqual(kinds, ["created", "rekeyed", "rekeyed", "provider changed", "provider changed", "deep rekey"])

        # The copy from before all of that opens with the key that it was under, and is as old as it is.
        shutil.rmtree(self.host.home("vm"))
        shutil.copytree(old, self.host.home("vm"))
        self.refused(65, "unlock", "vm")
        self.assertLess(self.unseals("--accept-rollback"), ticks[0])
        self.ok("unlock", "vm")
        self.assertEqual(self.host.json("show", "vm")["history"][-1]["kind"], "rollback accepted")


if __name__ == "__main__":
    unittest.main(verbosity=2)
