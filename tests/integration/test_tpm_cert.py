"""Certificates of TPMs and the authority that signs them, as openssl and Debian's tpm2-tools see them."""

import base64
import os
import random
import re
import subprocess
import unittest

from harness import HostTest

PASSPHRASE = "a passphrase of this test"
KEYS = {"rsa2048": "rsa", "ecc-p256": "ecc", "ecc-p384": "ecc384"}  # and what tpm2_createek calls them


def run(*arguments, **options):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=120, **options)
    if done.returncode != 0:
        raise AssertionError(f"{arguments}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


class CertTest(HostTest):
    def setUp(self):
        super().setUp()
        self.add_provider()
        self.create("vm")

    def path(self, name):
        return self.host.folder / name

    def export(self, which, name="vm"):
        target = self.path(f"{name}-{which}.pem")
        self.ok("tpm", "cert", "export", name, "--which", which, "--pem", target)
        return target

    def authorities(self):
        self.ok("ca", "export", "--root", "--file", self.path("root.pem"))
        self.ok("ca", "export", "--file", self.path("chain.pem"))
        return self.path("root.pem"), self.path("chain.pem")

    def verify(self, certificate, root, chain):
        return run("openssl", "verify", "-x509_strict", "-CAfile", root, "-untrusted", chain, certificate)


class Certificates(CertTest):
    def test_openssl_accepts_them(self):
        root, chain = self.authorities()
        shown = self.host.json("tpm", "cert", "show", "vm")
        self.assertEqual([c["name"] for c in shown["certificates"]], [*KEYS, "platform"])
        self.assertTrue(all(c["good"] for c in shown["certificates"]), shown)
        for which in KEYS:
            pem = self.export(which)
            self.assertIn(": OK", self.verify(pem, root, chain))
            text = run("openssl", "x509", "-in", pem, "-noout", "-text")
            self.assertIn("2.23.133.8.1", text)
            self.assertIn("Key Encipherment" if which == "rsa2048" else "Key Agreement", text)
            self.assertRegex(text, r"Not After : Dec 31 23:59:59 9999")
        # The chain that lies in the TPM is the authority's.
        self.assertEqual(self.export("chain").read_text(), chain.read_text())

    def test_tools_find_them_and_make_the_same_keys(self):
        root, chain = self.authorities()
        port = random.randrange(20000, 60000, 2)
        server = self.host.start("tpm", "serve", "vm", "--tcp", port, stdout=subprocess.PIPE, text=True)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        server.stdout.readline()
        env = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={port}"}
        run("tpm2_startup", "-c", env=env)
        run("tpm2_getekcertificate", "-o", self.path("rsa.der"), "-o", self.path("ecc.der"), env=env)
        for name in ("rsa", "ecc"):
            pem = self.path(f"{name}.pem")
            run("openssl", "x509", "-inform", "DER", "-in", self.path(f"{name}.der"), "-out", pem)
            self.assertIn(": OK", self.verify(pem, root, chain))
        run("tpm2_nvread", "0x1c00016", "-o", self.path("p384.der"), env=env)
        run("openssl", "x509", "-inform", "DER", "-in", self.path("p384.der"), "-out", self.path("ecc384.pem"))
        for name in KEYS.values():
            run("tpm2_createek", "-c", self.path("ek.ctx"), "-G", name, "-u", self.path("ek.pub"), "-f", "pem", env=env)
            run("tpm2_flushcontext", "-t", env=env)
            certified = run("openssl", "x509", "-in", self.path(f"{name}.pem"), "-noout", "-pubkey")
            self.assertEqual(certified, self.path("ek.pub").read_text(), name)
        handles = run("tpm2_getcap", "handles-persistent", env=env)
        self.assertEqual(re.findall(r"0x\w+", handles), ["0x81010001", "0x81010002", "0x81010016"])

    def test_the_platform_certificate_is_an_attribute_certificate_for_this_vm(self):
        root, chain = self.authorities()
        der = self.path("platform.der")
        self.ok("tpm", "cert", "export", "vm", "--which", "platform", "--der", der)
        tree = run("openssl", "asn1parse", "-inform", "DER", "-in", der)
        for part in ("2.23.133.8.2", "2.23.133.2.25", "X509v3 Subject Alternative Name", "Certificate Policies"):
            self.assertIn(part, tree)
        self.assertIn(self.host.json("show", "vm")["uuid"].encode(), der.read_bytes())
        serial = run("openssl", "x509", "-in", self.export("rsa2048"), "-noout", "-serial").strip().split("=")[1]
        self.assertIn(serial, tree, "the holder is the certificate of the RSA key")
        # The signature, by openssl alone: the signed part is the first element, the signature the last.
        offsets = [(int(m[1]), int(m[2]), int(m[3]), int(m[4])) for m in
                   re.finditer(r"^ *(\d+):d=(\d+) +hl=(\d+) +l= *(\d+)", tree, re.M)]
        data = der.read_bytes()
        top = [(at, head, size) for at, depth, head, size in offsets if depth == 1]
        at, head, size = top[0]
        self.path("signed").write_bytes(data[at:at + head + size])
        at, head, size = top[2]
        self.path("signature").write_bytes(data[at + head + 1:at + head + size])
        run("openssl", "x509", "-in", chain, "-noout", "-pubkey", "-out", self.path("authority.pub"))
        run("openssl", "dgst", "-sha384", "-verify", self.path("authority.pub"), "-signature", self.path("signature"),
            self.path("signed"))

    def test_in_a_guest(self):
        root, chain = self.authorities()
        out = self.run_in_guest("vm", "cd /tmp && tpm2_getekcertificate -o rsa.der -o ecc.der && base64 rsa.der && "
                                      "echo NEXT && base64 ecc.der && echo NEXT && tpm2_createek -c ek.ctx -G rsa "
                                      "-u ek.pub -f pem > /dev/null && cat ek.pub")
        rsa, ecc, key = out.split("NEXT\n")
        for name, text in (("rsa", rsa), ("ecc", ecc)):
            self.path(f"{name}.der").write_bytes(base64.b64decode(text))
            run("openssl", "x509", "-inform", "DER", "-in", self.path(f"{name}.der"), "-out", self.path(f"{name}.pem"))
            self.assertIn(": OK", self.verify(self.path(f"{name}.pem"), root, chain))
        self.assertEqual(run("openssl", "x509", "-in", self.path("rsa.pem"), "-noout", "-pubkey"), key)


class Authority(CertTest):
    def make_authority(self):
        """A root and an authority below it, by openssl."""
        self.path("ext").write_text("basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
                                    "subjectKeyIdentifier=hash\n")
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-days", "3650",
            "-subj", "/O=Example/CN=Example root", "-addext", "keyUsage=critical,keyCertSign", "-keyout", self.path("own-root.key"), "-out", self.path("own-root.pem"))

    def sign(self, request, out):
        run("openssl", "x509", "-req", "-in", request, "-CA", self.path("own-root.pem"), "-CAkey",
            self.path("own-root.key"), "-set_serial", "77", "-days", "365", "-extfile", self.path("ext"), "-out", out)
        chain = self.path("own-chain.pem")
        chain.write_text(out.read_text() + self.path("own-root.pem").read_text())
        return chain

    def expect_signed_by_own_root(self, name):
        pem = self.export("ecc-p256", name)
        self.assertIn(": OK", self.verify(pem, self.path("own-root.pem"), self.path("own-chain.pem")))

    def test_vms_of_a_host_share_it(self):
        self.create("second")
        root, chain = self.authorities()
        for name in ("vm", "second"):
            self.assertIn(": OK", self.verify(self.export("rsa2048", name), root, chain))
        shown = self.host.json("ca", "show")
        self.assertEqual((shown["origin"], shown["provider"]["name"], len(shown["chain"])), ("own", "local", 2))

    def test_a_request_for_an_outside_authority_and_its_answer(self):
        self.make_authority()
        self.ok("ca", "csr", "--file", self.path("request.pem"))
        run("openssl", "req", "-in", self.path("request.pem"), "-noout", "-verify")
        chain = self.sign(self.path("request.pem"), self.path("answer.pem"))
        self.ok("ca", "import", "--chain", chain)
        self.assertEqual(self.host.json("ca", "show")["origin"], "imported")
        old = self.export("ecc-p256").read_text()
        key = run("openssl", "x509", "-in", self.path("vm-ecc-p256.pem"), "-noout", "-pubkey")
        self.refused(2, "tpm", "cert", "replace", "vm")
        self.ok("tpm", "cert", "replace", "vm", "--yes")
        self.assertNotEqual(self.export("ecc-p256").read_text(), old)
        self.assertEqual(run("openssl", "x509", "-in", self.path("vm-ecc-p256.pem"), "-noout", "-pubkey"), key)
        self.expect_signed_by_own_root("vm")
        self.create("later")
        self.expect_signed_by_own_root("later")
        self.assertTrue(all(c["good"] for c in self.host.json("tpm", "cert", "show", "later")["certificates"]))

    def test_an_authority_of_ones_own(self):
        self.make_authority()
        run("openssl", "req", "-new", "-newkey", "rsa:3072", "-nodes", "-subj", "/CN=Example TPMs", "-keyout",
            self.path("own.key"), "-out", self.path("own.csr"))
        chain = self.sign(self.path("own.csr"), self.path("own.pem"))
        before = self.host.json("ca", "show")
        # What is not whole is refused, and changes nothing.
        self.refused(2, "ca", "import", "--chain", chain)  # the key here is another
        self.refused(2, "ca", "import", "--chain", self.path("own.pem"), "--key", self.path("own.key"))  # no root
        self.refused(2, "ca", "import", "--chain", self.path("own-root.pem"), "--key", self.path("own.key"))
        self.refused(2, "ca", "import", "--chain", self.path("own.key"), "--key", self.path("own.key"))
        self.refused(66, "ca", "import", "--chain", chain, "--key", self.path("nowhere"))
        self.assertEqual(self.host.json("ca", "show"), before)
        self.ok("ca", "import", "--chain", chain, "--key", self.path("own.key"))
        self.ok("tpm", "cert", "replace", "vm", "--yes")
        self.expect_signed_by_own_root("vm")
        secret = "".join(self.path("own.key").read_text().split("\n")[1:3])
        for file in self.host.root.rglob("*"):
            if file.is_file():
                self.assertNotIn(base64.b64decode(secret + "=" * (-len(secret) % 4))[32:64], file.read_bytes(), file)

    def test_its_provider_keeps_it_and_can_be_changed(self):
        self.ok("provider", "add", "native", "other", "--passphrase-fd", "0", stdin=None, input=PASSPHRASE + "\n")
        self.ok("remove", "vm", "--yes")
        self.assertIn("certificate authority", self.refused(75, "provider", "remove", "local", "--yes"))
        before = self.host.json("ca", "show")["chain"]
        self.ok("ca", "protect", "other", "--passphrase-fd", "0", stdin=None, input=PASSPHRASE + "\n")
        self.assertEqual(self.host.json("ca", "show")["chain"], before)
        self.assertEqual(self.host.json("ca", "show")["provider"]["name"], "other")
        # A wrong passphrase: no TPM is made without its certificates, and no VM either.
        message = self.refused(77, "create", "locked-out", "--provider", "local", "--passphrase-fd", "0", stdin=None,
                               input="wrong\n")
        self.assertIn("certificate authority", message)
        self.refused(66, "show", "locked-out")
        self.ok("create", "now", "--provider", "local", "--passphrase-fd", "0", stdin=None, input=PASSPHRASE + "\n")
        self.ok("remove", "now", "--yes")
        self.ok("provider", "remove", "local", "--yes")

    def test_a_changed_file_is_refused(self):
        file = self.host.root / "ca" / "authority"
        intact = file.read_bytes()
        changed = bytearray(intact)
        changed[-20] ^= 1
        file.write_bytes(changed)
        self.assertIn(str(file), self.refused(65, "create", "next"))
        self.refused(65, "tpm", "cert", "replace", "vm", "--yes")
        self.refused(66, "show", "next")
        file.write_bytes(intact)
        self.create("next")


class NoAuthority(HostTest):
    def test_there_is_none_before_the_first_tpm(self):
        self.add_provider()
        self.create("plain", "--tpm", "none")
        for verb in (("show",), ("export",), ("csr",)):
            self.assertIn("no certificate authority", self.refused(66, "ca", *verb))
        self.assertFalse((self.host.root / "ca").exists())
        self.refused(2, "tpm", "cert", "show", "plain")


if __name__ == "__main__":
    unittest.main(verbosity=2)
