"""Snapshots of a guest that booted by OVMF from its encrypted disks, under a provider with a passphrase: taken and gone back
to while it runs, with everything that has to come back together."""

import os
import re
import subprocess
import time
import unittest

from harness import BOOT_LIMIT, HostTest, expected_pcrs

SECRET = "correct horse"
STEPS = 40
SIZE = 64 << 20

# A secret is sealed to PCR 7; then steps are counted in a PCR and on the data disk, as fast as the guest can.
LOOP = (
    "echo -n sealed-secret | coffer-demo-seal || exit 4; "
    "disk=$(for d in /sys/block/nvme*; do [ $(cat $d/size) = " f"{SIZE // 512}" " ] && basename $d; done); "
    "n=0; while [ ! -e /tmp/end ]; do n=$((n+1)); tpm2_pcrextend 16:sha256=$(printf %064x $n) || exit 5; "
    "printf 'on disk %08d' $n | dd of=/dev/$disk conv=notrunc,fsync 2>/dev/null || exit 6; "
    "echo step $n $(tpm2_pcrread sha256:16 | tail -1 | tr -d ' ') $(date +%s); "
    f"if [ $n -ge {STEPS} ]; then touch /tmp/end; fi; sleep 0.5; done; "
    "echo read $(dd if=/dev/$disk bs=16 count=1 iflag=direct 2>/dev/null || head -c 16 /dev/$disk); "
    "echo unsealed $(coffer-demo-unseal); echo DONE; sleep 1000")


class FullBoot(HostTest):
    def secret(self, *arguments, code=0, limit=60, **options):
        done = self.wait_secret(*arguments, limit=limit, **options)
        self.assertEqual(done.returncode, code, f"coffer {arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout + done.stderr

    def wait_secret(self, *arguments, limit, **options):
        read = self.pipe()
        try:
            return self.host.coffer(*arguments, "--passphrase-fd", read, pass_fds=[read], limit=limit, **options)
        finally:
            os.close(read)

    def pipe(self):
        read, write = os.pipe()
        os.write(write, SECRET.encode() + b"\n")
        os.close(write)
        return read

    def start(self, output, *arguments):
        read = self.pipe()
        with open(output, "wb") as file:
            process = self.host.start(*arguments, "--passphrase-fd", str(read), pass_fds=[read], stdout=file,
                                      stderr=subprocess.PIPE, text=True)
        os.close(read)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def wait_for(self, output, pattern, process, limit=2 * BOOT_LIMIT):
        deadline = time.monotonic() + limit
        while not re.search(pattern, output.read_text(errors="replace")):
            if process.poll() is not None:
                self.fail(process.stderr.read() + output.read_text(errors="replace")[-3000:])
            self.assertLess(time.monotonic(), deadline, output.read_text(errors="replace")[-3000:])
            time.sleep(0.1)

    def steps(self, text):
        return [(int(n), pcr.split("0x")[-1].lower(), int(when))
                for n, pcr, when in re.findall(r"^step (\d+) (\S+) (\d+)$", text, re.M)]

    def layers(self):
        return [disk["layers"] for disk in self.shown()["config"]["disks"]]

    def shown(self):
        import json
        return json.loads(self.secret("show", "vm", "--json"))

    def test_all_of_it_comes_back_together(self):
        self.secret("provider", "add", "native", "guarded")
        disk = self.copy_of_disk()
        self.secret("create", "vm", "--memory", "512M", "--disk", disk, "--disk", f"new:{SIZE >> 20}M", "--encrypt-disks",
                    "--integrity", limit=300)
        output = self.host.folder / "output"
        process = self.start(output, "run", "vm", "--accel", "soft", "--exec", LOOP, "--timeout", str(6 * BOOT_LIMIT))
        self.wait_for(output, r"step 2 ", process)
        said = self.ok("snapshot", "take", "vm", "early", "--compress", limit=BOOT_LIMIT)
        self.assertRegex(said, r"stood still for \d+ ms")
        at_snapshot = self.steps(output.read_text())[-1][0]
        taken_at = time.time()
        image = next(self.host.home("vm").glob("snapshot-*.machine"))
        self.assertLess(image.stat().st_size, 200 << 20, "compressed")
        # It goes on, and its disks go on with it.
        self.wait_for(output, rf"step {at_snapshot + 3} ", process)

        # Gone back to while it runs.
        told = self.secret("snapshot", "revert", "vm", "early", "--yes", limit=BOOT_LIMIT)
        self.assertIn("history", told)
        self.assertNotEqual(process.wait(60), 0)
        self.assertEqual([e["kind"] for e in self.shown()["history"]][-1], "reverted")
        self.assertEqual(self.shown()["config"]["disks"][1]["protection"], "authenticated")
        time.sleep(3)
        resumed_at = time.time()
        again = self.host.folder / "again"
        process = self.start(again, "resume", "vm", "--timeout", str(6 * BOOT_LIMIT))
        self.wait_for(again, "DONE", process)
        text = again.read_text()
        steps = self.steps(text)
        self.assertIn(steps[0][0], (at_snapshot, at_snapshot + 1), "goes on where it was")
        self.assertEqual([n for n, _, _ in steps], list(range(steps[0][0], STEPS + 1)), "no step is lost or repeated")
        pcrs = expected_pcrs(STEPS)
        for n, pcr, _ in steps:
            self.assertEqual(pcr, pcrs[n - 1], f"PCR 16 after step {n}")
        for _, _, when in steps[2:]:
            self.assertGreaterEqual(when, int(resumed_at) - 2, f"the clock went forward; the snapshot is of {taken_at}")
            self.assertLessEqual(when, time.time() + 2)
        self.assertIn(f"read on disk {STEPS:08d}", text)
        self.assertIn("unsealed sealed-secret", text)

        # What firmware, loader and kernel measured before the snapshot is still what the TPM says.
        log = self.host.json("tpm", "eventlog", "vm")
        self.assertNotIn("problem", log)
        for bank, values in log["pcrs"].items():
            self.assertTrue({0, 4, 7} <= {v["pcr"] for v in values}, bank)
            for value in values:
                self.assertIn(value["verdict"], ("same", "not in the log"), f"{bank} PCR {value['pcr']}")
            self.assertEqual({v["verdict"] for v in values if v["pcr"] < 8}, {"same"}, bank)

        # The uppermost layer is merged while the guest runs.
        self.ok("snapshot", "delete", "vm", "early", "--yes", limit=BOOT_LIMIT)
        self.ok("stop", "vm", "--force")
        process.wait(60)
        self.assertEqual(self.layers(), [0, 0])
        self.assertEqual([p.name for p in self.host.home("vm").iterdir()
                          if p.name.startswith(("snapshot-", "saved-", "overlay-"))], [])
        exported = self.host.folder / "exported"
        self.secret("disk", "export", "vm", "1", exported, limit=300)
        self.assertEqual(exported.read_bytes()[:16], b"on disk %08d" % STEPS)
        self.secret("disk", "check", "vm", "0", limit=300)


if __name__ == "__main__":
    unittest.main(verbosity=2)
