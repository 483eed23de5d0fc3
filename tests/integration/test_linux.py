"""An unmodified Debian kernel under unmodified OVMF: boot, console, agent, ACPI, disks, reboot, power-off."""

import hashlib
import re
import subprocess
import time
import unittest

from harness import BOOT_LIMIT, CMDLINE, IMAGES, HostTest, Terminal


class Linux(HostTest):
    def setUp(self):
        super().setUp()
        self.create("vm", "--tpm", "none")

    def test_commands_output_and_exit_code(self):
        done = self.host.coffer("run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                IMAGES / "initrd.img", "--cmdline", CMDLINE, "--exec",
                                "echo to-stdout; echo to-stderr >&2; exit 7", "--timeout", BOOT_LIMIT,
                                limit=BOOT_LIMIT + 60)
        self.assertEqual(done.returncode, 7, done.stderr)
        self.assertEqual(done.stdout, "to-stdout\n")
        self.assertIn("to-stderr", done.stderr)

    def test_kernel_log_has_no_complaint_about_the_machine(self):
        log = self.run_in_guest("vm", "dmesg")
        self.assertIn("Linux version", log)
        complaints = [line for line in log.splitlines()
                      if re.search(r"ACPI (BIOS )?(Error|Exception|Warning)|\[Firmware (Bug|Warn)|firmware bug|"
                                   r"Call Trace|WARNING:|BUG:|Unstable clock|Clocksource .* skewed|lockup", line, re.I)]
        self.assertEqual(complaints, [])

    def test_acpi_tables_compile_again(self):
        dump = self.run_in_guest("vm", "for t in /sys/firmware/acpi/tables/[A-Z]*; do [ -f $t ] && "
                                       "{ echo \"== ${t##*/}\"; base64 $t; }; done")
        folder = self.host.folder / "acpi"
        folder.mkdir()
        import base64
        names = []
        for part in dump.split("== ")[1:]:
            name, _, body = part.partition("\n")
            (folder / f"{name.lower()}.dat").write_bytes(base64.b64decode(body))
            names.append(name.lower())
        self.assertIn("dsdt", names)
        self.assertIn("apic", names)
        self.assertIn("mcfg", names)
        for name in names:
            taken = subprocess.run(["iasl", "-d", f"{name}.dat"], cwd=folder, capture_output=True, text=True)
            self.assertEqual(taken.returncode, 0, f"{name}: {taken.stdout}{taken.stderr}")
            again = subprocess.run(["iasl", "-p", f"again-{name}", f"{name}.dsl"], cwd=folder, capture_output=True,
                                   text=True)
            self.assertEqual(again.returncode, 0, f"{name}: {again.stdout}{again.stderr}")
            self.assertNotRegex(again.stdout, r"[1-9]\d* Errors")

    def test_disks_hold_what_is_written(self):
        disk = self.host.folder / "data.img"
        disk.write_bytes(b"\0" * (16 << 20))
        self.create("with-disk", "--tpm", "none", "--disk", disk)
        self.run_in_guest("with-disk", "set -e; seq 1 200000 > /tmp/data; dd if=/tmp/data of=/dev/nvme0n1 bs=4096 "
                                       "conv=sync,fsync 2>/dev/null")
        data = "".join(f"{n}\n" for n in range(1, 200001)).encode()
        self.assertEqual(disk.read_bytes()[: len(data)], data)
        digest = self.run_in_guest("with-disk", f"head -c {len(data)} /dev/nvme0n1 | sha256sum")
        self.assertEqual(digest.split()[0], hashlib.sha256(data).hexdigest())

    def test_random_numbers_come_from_the_host(self):
        self.assertIn("virtio_rng", self.run_in_guest("vm", "cat /sys/class/misc/hw_random/rng_available"))

    def test_soak_agrees_with_the_host(self):
        command = ("set -e; seq 1 300000 > /tmp/a; sha256sum /tmp/a; md5sum /tmp/a; gzip -9 -c /tmp/a > /tmp/a.gz; "
                   "gunzip -c /tmp/a.gz | sha256sum; sort -r /tmp/a | sha512sum")
        in_guest = self.run_in_guest("vm", command).split()
        here = subprocess.run(["busybox", "sh", "-c", command.replace("/tmp/a", str(self.host.folder / "a"))],
                              capture_output=True, text=True, check=True).stdout.split()
        digests = [word for word in in_guest if re.fullmatch("[0-9a-f]{32,}", word)]
        self.assertEqual(digests, [word for word in here if re.fullmatch("[0-9a-f]{32,}", word)])
        self.assertEqual(len(digests), 4)


class SecureBoot(HostTest):
    def test_an_unsigned_system_is_refused(self):
        self.create("vm", "--tpm", "none", "--secure-boot", "--disk", self.copy_of_disk())
        serial = self.host.folder / "serial"
        machine = self.host.start("run", "vm", "--accel", "soft", "--serial", serial)
        try:
            deadline = time.monotonic() + BOOT_LIMIT
            while time.monotonic() < deadline and not (
                    serial.exists() and b"No bootable option" in serial.read_bytes()):
                self.assertIsNone(machine.poll())
                time.sleep(0.2)
        finally:
            machine.terminate()
            machine.wait(30)
        printed = serial.read_bytes()
        self.assertRegex(printed, rb"failed to (load|start) Boot0001.*(Access Denied|Security Violation)")
        self.assertNotIn(b"coffer-demo: init", printed)


class Console(HostTest):
    def test_shell_reboot_and_power_off(self):
        self.create("vm", "--tpm", "none")
        terminal = Terminal(self.host, "run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                            IMAGES / "initrd.img", "--cmdline", CMDLINE)
        self.addCleanup(terminal.close)
        terminal.read_until(b"coffer-demo: init")
        terminal.read_until(rb"[#$] (\x1b\[6n)?$")
        terminal.type(b"echo $((6 * 7))-answer\r")
        terminal.read_until(b"42-answer")
        terminal.type(b"reboot -f\r")
        seen = len(terminal.output)
        terminal.read_until(rb"(?s)^.{%d}.*coffer-demo: init.*[#$] (\x1b\[6n)?$" % seen)
        terminal.type(b"poweroff -f\r")
        self.assertEqual(terminal.wait(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
