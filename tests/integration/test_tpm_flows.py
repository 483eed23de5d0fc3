"""tpm2-tools' common flows, the same script three ways: in a guest over CRB, in a guest over TIS, and from the host through
`coffer tpm serve`."""

import os
import pathlib
import random
import re
import subprocess
import unittest

from harness import CMDLINE, IMAGES, HostTest

SCRIPT = (pathlib.Path(__file__).parent / "tpm2_flows.sh").read_text()
PATIENCE = 900


class Flows(HostTest):
    def keys(self):
        """Keys that no TPM has made, as PEM by file name."""
        made = {"rsa.pem": ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
                "ecc.pem": ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]}
        return {name: subprocess.run(["openssl", "genpkey", "-algorithm", *how], check=True, text=True,
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
                for name, how in made.items()}

    def script(self):
        files = "".join(f"cat > /tmp/outside/{name} <<'END'\n{pem}END\n" for name, pem in self.keys().items())
        return f"mkdir -p /tmp/outside\n{files}OUTSIDE=/tmp/outside\n{SCRIPT}"

    def check(self, out):
        print(out)
        flows = re.findall(r"^(PASS|FAIL) (\w+)$", out, re.M)
        self.assertGreaterEqual(len(flows), 32)
        for result, name in flows:
            with self.subTest(name):
                self.assertEqual(result, "PASS", out)
        self.assertIn(f"FLOWS {len(flows)}/{len(flows)}", out)

    def in_guest(self, kind):
        self.add_provider()
        self.create("vm", "--tpm", kind)
        done = self.host.coffer("run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                IMAGES / "initrd.img", "--cmdline", CMDLINE, "--exec", self.script(), "--timeout",
                                PATIENCE, limit=PATIENCE + 60)
        self.check(done.stdout)
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])

    def test_in_the_guest_over_crb(self):
        self.in_guest("crb")

    def test_in_the_guest_over_tis(self):
        self.in_guest("tis")

    def test_over_the_socket(self):
        self.add_provider()
        self.create("vm")
        folder = self.host.folder / "outside"
        folder.mkdir()
        for name, pem in self.keys().items():
            (folder / name).write_text(pem)
        port = random.randrange(20000, 60000, 2)
        server = self.host.start("tpm", "serve", "vm", "--tcp", str(port), stdout=subprocess.PIPE, text=True)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)
        self.assertIn("serving", server.stdout.readline())
        environment = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={port}", "OUTSIDE": str(folder),
                       "TMPDIR": str(self.host.folder)}
        done = subprocess.run(["sh", "-c", "tpm2_startup -c\n" + SCRIPT], env=environment, timeout=PATIENCE,
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.check(done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
