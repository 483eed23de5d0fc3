"""Two hosts with a network between them that fails: a pair of virtual links between two network namespaces."""

import ctypes
import os
import signal
import subprocess
import unittest

from harness import BOOT_LIMIT, expected_pcrs
from test_migrate import MigrationTest, Proxy

ADDRESSES = ("10.231.77.1", "10.231.77.2")
LOOP = """set -e; n=0; while :; do n=$((n+1)); tpm2_pcrextend 16:sha256=$(printf %064x $n)
echo step $n $(tpm2_pcrread sha256:16 | tail -1 | tr -d ' '); sleep 0.3; done"""


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


class Network:
    """What there is to see of one end: its namespace, its link and its address."""

    def __init__(self, number):
        self.name = f"coffer-{os.getpid()}-{number}"
        self.link = f"cof{os.getpid() % 100000}-{number}"
        self.address = ADDRESSES[number]

    def set_link(self, state):
        subprocess.run(["ip", "-n", self.name, "link", "set", self.link, state], check=True)

    def enter(self):
        """The calling thread makes sockets there from now on."""
        clone_newnet = 0x40000000
        with open(f"/run/netns/{self.name}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), clone_newnet) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def sent(self):
        """Bytes that left by the link."""
        done = subprocess.run(["ip", "netns", "exec", self.name, "cat", f"/sys/class/net/{self.link}/statistics/tx_bytes"],
                              capture_output=True, text=True, check=True)
        return int(done.stdout)


class CutLink(MigrationTest):
    def setUp(self):
        self.networks = (Network(0), Network(1))
        here, there = self.networks
        for network in self.networks:
            made = ip("netns", "add", network.name)
            if made.returncode != 0:
                self.skipTest(f"this machine makes no network namespaces: {made.stderr.strip()}")
            self.addCleanup(ip, "netns", "del", network.name)
        made = ip("link", "add", here.link, "netns", here.name, "type", "veth", "peer", "name", there.link, "netns",
                  there.name)
        if made.returncode != 0:
            self.skipTest(f"this machine makes no pair of links: {made.stderr.strip()}")
        for network in self.networks:
            for done in (ip("-n", network.name, "address", "add", f"{network.address}/24", "dev", network.link),
                         ip("-n", network.name, "link", "set", network.link, "up"),
                         ip("-n", network.name, "link", "set", "lo", "up")):
                self.assertEqual(done.returncode, 0, done.stderr)
        super().setUp()
        for host, network in zip((self.host, self.there), self.networks):
            host.prefix = ["ip", "netns", "exec", network.name]

    def create_vm(self):
        self.create("vm")

    def start_migrating(self, place):
        with open(self.host.folder / "migrating.err", "wb") as errors:
            process = self.host.start("migrate", "vm", "--to", place, stdout=subprocess.DEVNULL, stderr=errors)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def test_the_link_fails_while_memory_is_sent_and_before_the_last_word(self):
        here, there = self.networks
        _, arrived, place = self.listen(self.there, "--verbose", address=there.address)
        process, output = self.start_guest(LOOP)
        self.wait_for(output, "^step 2 ", process=process)

        # In the middle of memory. Nobody hears that the other end is gone: it is silent, and given up in the end.
        before = here.sent()
        migrating = self.start_migrating(place)
        self.wait_until(lambda: here.sent() > before + (4 << 20))
        there.set_link("down")
        steps = len(self.steps(output.read_text()))
        self.assertEqual(migrating.wait(BOOT_LIMIT), 74, (self.host.folder / "migrating.err").read_text())
        self.assertEqual(self.host.json("show", "vm")["state"], "running")
        self.assertGreater(len(self.steps(output.read_text())), steps, "the guest ran meanwhile")
        there.set_link("up")
        vms = self.there.root / "vms"
        self.wait_until(lambda: not vms.exists() or not any(vms.iterdir()))

        # When this host has let go, and before the other one hears it.
        proxy = Proxy(place, cut_at_bare_message=(True, 1), stall=True, in_network=here.enter,
                      on_cut=lambda: there.set_link("down"))
        self.addCleanup(proxy.close)
        migrating = self.start_migrating(proxy.place)
        self.wait_for(self.host.folder / "migrating.err", "has not confirmed")
        self.assertEqual(proxy.cuts, 1)
        self.assertEqual(self.host.json("show", "vm")["state"], "handed-over")
        migrating.send_signal(signal.SIGINT)
        self.assertEqual(migrating.wait(60), 75)
        # It cannot be settled while the link is down, and is when it is up again.
        self.refused(74, "migrate", "--resolve", "vm", "--to", place, limit=BOOT_LIMIT)
        self.assertEqual(self.host.json("show", "vm")["state"], "handed-over")
        there.set_link("up")
        self.assertIn("runs on host", self.ok("migrate", "--resolve", "vm", "--to", place, limit=BOOT_LIMIT))
        self.assertEqual(self.there.json("show", "vm")["state"], "running")
        process.wait(60)

        self.wait_for(arrived, r"(?:^step .*\s+){3}")
        steps = self.steps(output.read_text()) + self.steps(arrived.read_text())
        self.assertEqual([n for n, _ in steps], list(range(1, len(steps) + 1)))
        pcrs = expected_pcrs(len(steps))
        for n, pcr in steps:
            self.assertEqual(pcr, pcrs[n - 1], f"PCR 16 after step {n}")


del MigrationTest  # what is imported for its helpers is no test of this file

if __name__ == "__main__":
    unittest.main()
