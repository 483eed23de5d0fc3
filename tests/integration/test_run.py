"""coffer run without a guest system: refusals, exit codes, locks and the terminal, with OVMF alone."""

import os
import signal
import subprocess
import termios
import time
import unittest

from harness import BOOT_LIMIT, HostTest, Terminal, have_kvm


class Run(HostTest):
    def test_a_tpm_wants_a_provider(self):
        why = self.refused(2, "create", "vm", "--tpm", "crb")
        self.assertIn("coffer provider add native", why)
        self.assertFalse(self.host.home("vm").exists())

    def test_a_missing_vm_is_named(self):
        self.assertIn("nosuch", self.refused(66, "run", "nosuch"))

    def test_timeout_ends_the_run_with_124(self):
        self.create("vm", "--tpm", "none")
        self.refused(124, "run", "vm", "--accel", "soft", "--timeout", "2", "--serial", self.host.folder / "serial")
        self.assertEqual(self.host.json("show", "vm")["state"], "off")

    def test_firmware_prints_on_the_serial_port(self):
        self.create("vm", "--tpm", "none")
        serial = self.host.folder / "serial"
        machine = self.host.start("run", "vm", "--accel", "soft", "--serial", serial, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + BOOT_LIMIT
            while time.monotonic() < deadline and not (serial.exists() and b"BdsDxe" in serial.read_bytes()):
                self.assertIsNone(machine.poll(), machine.stderr.read() if machine.poll() is not None else "")
                time.sleep(0.2)
            self.assertIn(b"BdsDxe", serial.read_bytes())
        finally:
            machine.terminate()
            machine.wait(30)
            machine.stderr.close()

    def test_more_cpus_than_the_backend_has_are_refused(self):
        self.create("vm", "--tpm", "none", "--cpus", "4")
        self.assertIn("soft", self.refused(69, "run", "vm", "--accel", "soft"))

    def test_what_is_no_kernel_is_refused(self):
        self.create("vm", "--tpm", "none")
        junk = self.host.folder / "junk"
        junk.write_bytes(b"x" * 5000)
        self.assertIn("junk", self.refused(1, "run", "vm", "--accel", "soft", "--kernel", junk))

    def test_verbose_counts(self):
        self.create("vm", "--tpm", "none")
        done = self.host.coffer("run", "vm", "--accel", "soft", "--timeout", "2", "--verbose", "--serial",
                                self.host.folder / "serial")
        self.assertEqual(done.returncode, 124)
        self.assertRegex(done.stderr, r"completed instructions: \d+")
        self.assertIn("soft", done.stderr)

    def test_auto_says_what_it_took_and_why(self):
        self.create("vm", "--tpm", "none")
        done = self.host.coffer("run", "vm", "--timeout", "1", "--verbose", "--serial", self.host.folder / "serial")
        self.assertEqual(done.returncode, 124)
        self.assertRegex(done.stderr, r"(soft|kvm).*because|because.*(soft|kvm)")

    @unittest.skipUnless(have_kvm(), "there is no usable /dev/kvm")
    def test_kvm_gets_past_the_firmwares_fpu_setup(self):
        self.create("vm", "--tpm", "none")
        done = self.host.coffer("run", "vm", "--accel", "kvm", "--verbose", "--timeout", "30", "--serial",
                                self.host.folder / "serial", limit=90)
        self.assertEqual(done.returncode, 124, done.stderr)
        self.assertRegex(done.stderr, r"completed instructions: [1-9]")


class Locks(HostTest):
    def setUp(self):
        super().setUp()
        self.create("vm", "--tpm", "none")
        self.machine = self.host.start("run", "vm", "--accel", "soft", "--serial", self.host.folder / "serial")
        deadline = time.monotonic() + 30
        while self.host.json("show", "vm")["state"] != "running" and time.monotonic() < deadline:
            time.sleep(0.1)

    def tearDown(self):
        self.machine.kill()
        self.machine.wait()

    def test_a_second_run_is_refused_and_a_killed_one_recovered(self):
        self.assertEqual(self.host.json("show", "vm")["state"], "running")
        self.assertIn("vm", self.refused(75, "run", "vm", "--accel", "soft", "--timeout", "1"))
        self.machine.send_signal(signal.SIGKILL)
        self.machine.wait()
        self.assertEqual(self.host.json("show", "vm")["state"], "off")
        self.refused(124, "run", "vm", "--accel", "soft", "--timeout", "1", "--serial", self.host.folder / "serial")

    def test_a_running_vm_is_not_removed(self):
        self.refused(75, "remove", "vm", "--yes")
        self.assertTrue(self.host.home("vm").exists())


class OnATerminal(HostTest):
    def test_ctrl_a_x_quits_and_restores_the_terminal(self):
        self.create("vm", "--tpm", "none")
        terminal = Terminal(self.host, "run", "vm", "--accel", "soft")
        self.addCleanup(terminal.close)
        before = termios.tcgetattr(terminal.fd)
        deadline = time.monotonic() + 30
        while termios.tcgetattr(terminal.fd)[3] & termios.ICANON and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse(termios.tcgetattr(terminal.fd)[3] & termios.ICANON, "the terminal is raw")
        terminal.read_until(b"BdsDxe|UEFI")
        terminal.type(b"\x01h")
        terminal.read_until(b"Ctrl-A x")
        terminal.type(b"\x01x")
        self.assertEqual(terminal.wait(), 0)
        self.assertEqual(termios.tcgetattr(terminal.fd)[3], before[3] | termios.ICANON | termios.ECHO)

    def test_a_crash_leaves_the_terminal_usable(self):
        self.create("vm", "--tpm", "none")
        terminal = Terminal(self.host, "run", "vm", "--accel", "soft")
        self.addCleanup(terminal.close)
        deadline = time.monotonic() + 30
        while termios.tcgetattr(terminal.fd)[3] & termios.ICANON and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(terminal.pid, signal.SIGABRT)
        self.assertEqual(terminal.wait(), -signal.SIGABRT)
        self.assertTrue(termios.tcgetattr(terminal.fd)[3] & termios.ICANON)


if __name__ == "__main__":
    unittest.main(verbosity=2)
