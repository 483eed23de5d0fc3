"""A real KMIP server, PyKMIP, started on loopback with mutual TLS: every verb that needs a key, at every version."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import unittest

from harness import HostTest

SERVER = "/usr/bin/pykmip-server"
PYTHON = "/usr/bin/python3"  # Debian's own, which has PyKMIP's modules
OPERATIONS = os.environ.get("COFFER_KMIP_OPERATIONS", "build/tests/integration/kmip_operations")
START_LIMIT = 60
VERSIONS = ("1.1", "1.2", "1.3", "1.4", "2.0")


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


class Authority:
    def __init__(self, folder):
        self.folder = folder
        self.certificate = folder / "ca.pem"
        self.key = folder / "ca.key"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", "/CN=test authority", "-keyout", self.key, "-out", self.certificate)

    def issue(self, name, usage):
        key, request, certificate, extensions = (self.folder / f"{name}.{suffix}" for suffix in
                                                 ("key", "csr", "pem", "ext"))
        extensions.write_text(f"extendedKeyUsage={usage}\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", key, "-out", request)
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial",
                "-days", "2", "-extfile", extensions, "-out", certificate)
        return certificate, key


class PyKmip:
    """One server with its own database, in a process group of its own: it has children that outlive it."""

    def __init__(self, folder, authority, name, database=None):
        self.folder = folder / name
        self.folder.mkdir()
        (self.folder / "policy").mkdir()
        certificate, key = authority.issue(name, "serverAuth")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (self.folder / "server.conf").write_text(
            f"[server]\nhostname=127.0.0.1\nport={self.port}\ncertificate_path={certificate}\nkey_path={key}\n"
            f"ca_path={authority.certificate}\nauth_suite=TLS1.2\nenable_tls_client_auth=True\n"
            f"policy_path={self.folder / 'policy'}\ndatabase_path={database or self.folder / 'database'}\nlogging_level=INFO\n")
        self.process = None

    @property
    def endpoint(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        with open(self.folder / "output", "ab") as output:
            self.process = subprocess.Popen(
                [PYTHON, SERVER, "-f", self.folder / "server.conf", "-l", self.folder / "log"], cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"the KMIP server does not start: {(self.folder / 'output').read_text()}")

    def kill(self):
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


@unittest.skipUnless(os.access(SERVER, os.X_OK), "needs the package python3-pykmip")
class KmipTest(HostTest):
    def setUp(self):
        super().setUp()
        self.authority = Authority(self.host.folder)
        self.client = self.authority.issue("client", "clientAuth")
        self.server = self.new_server("server-1")
        for name in ("code.fd", "vars.fd"):
            (self.host.folder / name).write_bytes(name.encode() * 8192)

    def new_server(self, name, **options):
        server = PyKmip(self.host.folder, self.authority, name, **options)
        self.addCleanup(server.kill)
        server.start()
        return server

    def add(self, name, *options, servers=None):
        endpoints = [word for server in servers or [self.server] for word in ("--endpoint", server.endpoint)]
        return self.ok("provider", "add", "kmip", name, *endpoints, "--ca", self.authority.certificate, "--cert",
                       self.client[0], "--key", self.client[1], *options)

    def create_under(self, name, provider):
        return self.ok("create", name, "--provider", provider, "--memory", "64M", "--firmware",
                       self.host.folder / "code.fd", "--variables", self.host.folder / "vars.fd")

    def state(self, name):
        return self.host.json("show", name)

    def steps(self, provider):
        """The steps of a test that succeeds, by their names."""
        done = self.host.coffer("provider", "test", provider, "--json")
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{done.stderr}")
        return {step["step"]: step for step in json.loads(done.stdout)}


class Kmip(KmipTest):
    def test_every_version_makes_and_opens_homes(self):
        for version in VERSIONS:
            provider = f"kms {version}"
            with self.subTest(version):
                self.add(provider, "--version", version)
                steps = self.steps(provider)
                self.assertEqual(steps["versions"]["text"], f"KMIP {version}")
                self.assertEqual(steps["destroy"]["ok"], True)
                self.create_under(f"vm-{version}", provider)
                shown = self.state(f"vm-{version}")
                self.assertEqual(shown["state"], "off", shown)
                self.assertEqual(shown["provider"]["name"], provider)

    def test_every_operation_at_every_version(self):
        for version in VERSIONS:
            with self.subTest(version):
                self.add(f"kms {version}", "--version", version)
                folder = self.host.root / "providers" / self.host.json("provider", "show", f"kms {version}")["id"]
                done = subprocess.run([OPERATIONS, folder], capture_output=True, text=True, timeout=120, check=False)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertIn(f"speaks {version}", done.stdout)
                self.assertEqual("ok Decrypt" in done.stdout, version in ("1.4", "2.0"))

    def test_negotiation_finds_the_best_and_the_test_names_its_steps(self):
        self.add("kms")
        steps = self.steps("kms")
        self.assertEqual(list(steps), ["connect", "TLS", "versions", "query", "create", "get", "destroy"])
        self.assertEqual(steps["versions"]["text"], "KMIP 2.0")
        self.assertIn("TLSv1.2", steps["TLS"]["text"])
        self.assertTrue(all(step["milliseconds"] >= 0 for step in steps.values()))
        self.assertIn(" ms ", self.ok("provider", "test", "kms"))

    def test_wrapping_at_the_server_never_fetches_the_key(self):
        for version in ("1.4", "2.0"):
            self.add(f"kms {version}", "--wrap-at-server", "--version", version)
            self.create_under(f"vm-{version}", f"kms {version}")
            self.assertEqual(self.state(f"vm-{version}")["state"], "off")
            self.assertIn("encrypt and decrypt", self.steps(f"kms {version}"))
        log = (self.server.folder / "log").read_text()
        self.assertIn("Processing operation: Decrypt", log)
        self.assertNotIn("Processing operation: Get\n", log)
        self.refused(2, "provider", "add", "kmip", "old", "--endpoint", "a:1", "--ca", self.authority.certificate,
                     "--cert", self.client[0], "--key", self.client[1], "--wrap-at-server", "--version", "1.3")

    def test_home_is_locked_while_the_server_is_gone_and_opens_when_it_is_back(self):
        self.add("kms")
        self.create_under("vm", "kms")
        self.server.kill()
        shown = self.state("vm")
        self.assertEqual(shown["state"], "locked")
        self.assertIn(self.server.endpoint, shown["reason"])
        why = self.refused(77, "run", "vm", "--accel", "soft", "--timeout", "1")
        self.assertIn("refused", why)
        self.assertIn(self.server.endpoint, self.refused(77, "unlock", "vm"))
        failed = self.host.coffer("provider", "test", "kms")
        self.assertEqual(failed.returncode, 77)
        self.assertIn("failed", failed.stdout)
        self.server.start()
        self.assertEqual(self.state("vm")["state"], "off")
        self.ok("unlock", "vm")

    def test_homes_move_between_native_provider_and_server(self):
        self.add("kms")
        self.add_provider()
        self.create_under("vm", "local")
        for provider in ("kms", "kms", "local", "kms"):
            self.ok("rekey", "vm", "--provider", provider)
            shown = self.host.json("show", "vm")
            self.assertEqual((shown["state"], shown["provider"]["name"]), ("off", provider))
        self.ok("rekey", "vm", "--deep")
        self.ok("unlock", "vm")
        # The server's answer is needed for a new key, and without it nothing changes.
        self.server.kill()
        before = (self.host.home("vm") / "keys").read_bytes()
        self.refused(77, "rekey", "vm", "--provider", "local")
        self.assertEqual((self.host.home("vm") / "keys").read_bytes(), before)

    def test_cluster_goes_on_with_the_next_server(self):
        gone = self.new_server("server-2")
        self.add("cluster", servers=[gone, self.server])
        self.assertIn(gone.endpoint, self.steps("cluster")["connect"]["text"])
        gone.kill()
        self.assertIn(self.server.endpoint, self.steps("cluster")["connect"]["text"])
        self.create_under("vm", "cluster")
        self.assertEqual(self.state("vm")["state"], "off")

    def test_another_clients_key_is_refused(self):
        self.add("kms")
        self.create_under("vm", "kms")
        stranger = self.authority.issue("stranger", "clientAuth")
        # The same provider by its id, with another client's identity.
        self.client = stranger
        self.add("other")
        ids = {info["name"]: info["id"] for info in self.host.json("provider", "list")}
        providers = self.host.root / "providers"
        for file in ("kmip", "client.key"):
            (providers / ids["kms"] / file).write_bytes((providers / ids["other"] / file).read_bytes())
        self.assertEqual(self.state("vm")["state"], "locked")

    def test_names_are_checked_and_looked_up_outside_of_the_sandbox(self):
        self.ok("provider", "add", "kmip", "by name", "--endpoint", f"localhost:{self.server.port}", "--ca",
                self.authority.certificate, "--cert", self.client[0], "--key", self.client[1])
        self.assertTrue(self.steps("by name")["destroy"]["ok"])
        self.ok("provider", "add", "kmip", "no name", "--endpoint", "no-such-host.invalid:1", "--ca",
                self.authority.certificate, "--cert", self.client[0], "--key", self.client[1])
        failed = self.host.coffer("provider", "test", "no name")
        self.assertEqual(failed.returncode, 77)
        self.assertIn("no-such-host.invalid", failed.stdout)

    def test_provider_in_use_is_not_removed(self):
        self.add("kms")
        self.add("unused")
        self.ok("provider", "default", "kms")
        self.ok("create", "vm", "--memory", "64M", "--firmware", self.host.folder / "code.fd", "--variables",
                self.host.folder / "vars.fd")
        shown = self.host.json("provider", "show", "kms")
        self.assertEqual(shown["vms"], ["vm"])
        self.assertTrue(shown["default"])
        self.assertEqual(shown["kmip"]["endpoints"], [self.server.endpoint])
        self.assertIn("vm", self.refused(75, "provider", "remove", "kms", "--yes"))
        self.refused(2, "provider", "remove", "unused")
        self.ok("provider", "remove", "unused", "--yes")
        self.ok("remove", "vm", "--yes")
        # The first VM's provider protects the authority that signs for TPMs.
        self.refused(75, "provider", "remove", "kms", "--yes")
        self.ok("provider", "add", "native", "other")
        self.ok("ca", "protect", "other")
        self.ok("provider", "remove", "kms", "--yes")
        self.assertEqual([provider["name"] for provider in self.host.json("provider", "list")], ["other"])

    def test_client_key_is_kept_private_and_no_key_is_on_this_disk(self):
        self.add("kms")
        self.create_under("vm", "kms")
        for path in (self.host.root / "providers").rglob("*"):
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
        database = (self.server.folder / "database").read_bytes()
        self.assertGreater(len(database), 0)
        out = self.ok("show", "vm")
        self.assertNotIn("no passphrase", out)


class Change(KmipTest):
    """Homes that go from one provider to another. Their firmware is none: the VM runs, and its guest does nothing."""

    def setUp(self):
        super().setUp()
        self.other = self.new_server("server-2")
        self.add("kms")
        self.add("another kms", servers=[self.other])
        self.add("wrapping kms", "--wrap-at-server")
        self.add_provider("local")

    def wait_until_running(self, name):
        deadline = time.monotonic() + START_LIMIT
        while self.state(name)["state"] != "running":
            self.assertLess(time.monotonic(), deadline, "the VM does not start")
            time.sleep(0.2)

    def move(self, state):
        for provider in ("kms", "another kms", "wrapping kms", "local", "kms", "local"):
            self.ok("rekey", "vm", "--provider", provider)
            shown = self.state("vm")
            self.assertEqual((shown["provider"]["name"], shown["state"]), (provider, state))

    def test_from_native_to_servers_and_back_while_off(self):
        self.create_under("vm", "local")
        self.move("off")
        self.server.kill()
        self.other.kill()
        self.assertEqual(self.state("vm")["state"], "off")

    def test_from_native_to_servers_and_back_while_running(self):
        self.create_under("vm", "local")
        running = self.host.start("run", "vm", "--accel", "soft", "--timeout", START_LIMIT * 10)
        self.addCleanup(running.wait)
        self.addCleanup(running.kill)
        self.wait_until_running("vm")
        self.move("running")
        self.ok("rekey", "vm", "--provider", "another kms")
        self.server.kill()
        self.other.kill()
        self.assertEqual(self.state("vm")["state"], "running")
        why = self.refused(77, "rekey", "vm", "--provider", "kms")
        self.assertIn(self.server.endpoint, why)
        self.assertIsNone(running.poll(), "it runs without its server")
        self.ok("stop", "vm", "--force")
        running.wait()
        shown = self.state("vm")
        self.assertEqual(shown["state"], "locked")
        self.assertIn(self.other.endpoint, shown["reason"])
        self.other.start()
        self.assertEqual(self.state("vm")["state"], "off")


class Cutter:
    """Stands before a server, and kills it when a client has sent its n-th request, before there is an answer."""

    def __init__(self, server):
        self.server, self.requests, self.kill_at = server, 0, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, kill_at):
        self.requests, self.kill_at = 0, kill_at

    def close(self):
        self.listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.server.port))
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
                threading.Thread(target=self._to_client, args=(server, client), daemon=True).start()

    def _to_server(self, client, server):
        with contextlib.suppress(OSError), client, server:
            while head := client.recv(5, socket.MSG_WAITALL):
                if len(head) < 5:
                    return
                body = client.recv(int.from_bytes(head[3:5], "big"), socket.MSG_WAITALL)
                if head[0] == 23:  # application data (RFC 5246 section 6.2.1): a request, which fits one record
                    self.requests += 1
                    if self.requests == self.kill_at:
                        self.server.kill()
                        return
                server.sendall(head + body)

    @staticmethod
    def _to_client(server, client):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


class Cluster(KmipTest):
    """Two servers with one database, as a cluster has."""

    def setUp(self):
        super().setUp()
        self.first = self.new_server("first", database=self.server.folder / "database")
        self.cutter = Cutter(self.first)
        self.addCleanup(self.cutter.close)

    def test_a_server_that_dies_in_mid_operation_costs_nothing(self):
        for version in VERSIONS:
            provider = f"cluster {version}"
            self.add(provider, "--version", version, servers=[self.cutter, self.server])
            self.cutter.arm(None)
            self.create_under(f"whole-{version}", provider)
            to_create = self.cutter.requests
            self.cutter.arm(None)
            self.assertEqual(self.state(f"whole-{version}")["state"], "off")
            to_open = self.cutter.requests
            self.assertGreaterEqual(to_create, 3)
            self.assertGreaterEqual(to_open, 1)
            # Every request in turn at the newest version, one of them at the others.
            for at in range(1, to_create + 1) if version == VERSIONS[-1] else [to_create // 2 + 1]:
                with self.subTest(version=version, create=at):
                    self.cutter.arm(at)
                    self.create_under(f"cut-{version}-{at}", provider)
                    self.assertIsNone(self.first.process, "it was killed")
                    self.assertEqual(self.state(f"cut-{version}-{at}")["state"], "off")
                    self.first.start()
            for at in range(1, to_open + 1) if version == VERSIONS[-1] else [to_open]:
                with self.subTest(version=version, open=at):
                    self.cutter.arm(at)
                    self.assertEqual(self.state(f"whole-{version}")["state"], "off")
                    self.assertIsNone(self.first.process, "it was killed")
                    self.first.start()


if __name__ == "__main__":
    unittest.main(verbosity=2)
