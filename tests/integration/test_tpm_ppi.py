"""Physical presence requests reach unmodified OVMF, which asks at the console and answers; the memory overwrite request wipes
RAM at the next reset."""

import re
import unittest
import uuid

from harness import CMDLINE, IMAGES, HostTest, Terminal

# OVMF's serial console is a PC ANSI terminal (UEFI 2.10, appendix B): it has Escape, which refuses, and no F12, which accepts.
# As a terminal of edk2's own type TtyTerm, which is what Linux' terminals are, it has both.
ESCAPE = b"\x1b"
F12 = b"\x1b[24~"
# PciRoot(0)/Pci(0x1F,0)/Serial(0)/Uart(115200,8,N,1)/VenMsg(...): UEFI 2.10, 10.3. OVMF adds its own PC ANSI instance
# behind all others where there is none, and the last one that is connected decides.
SERIAL = bytes.fromhex("02010c00d041030a00000000" "01010600001f" "02010c00d041010500000000"
                       "030e13000000000000c2010000000000080101" "030a1400")
PC_ANSI = uuid.UUID("e0c14753-f9be-11d2-9a0c-0090273fc14d")
TTY_TERM = uuid.UUID("7d916d80-5bb1-458c-a48f-e25fdd51ef94")
CONSOLE = (SERIAL + PC_ANSI.bytes_le + bytes.fromhex("7f010400")
           + SERIAL + TTY_TERM.bytes_le + bytes.fromhex("7fff0400"))
GLOBAL = "8BE4DF61-93CA-11D2-AA0D-00E098032B8C"
PROMPT = rb"coffer-demo# (\x1b\[6n)?$"
PATIENCE = 900


class Ppi(HostTest):
    def choose_terminal_type(self):
        """In OVMF's shell, as its setup would; the variables last."""
        self.terminal = Terminal(self.host, "run", "vm", "--accel", "soft")
        self.addCleanup(self.terminal.close)
        self.terminal.read_until(rb"Shell> ", PATIENCE)
        for name in ("ConIn", "ConOut", "ErrOut"):
            seen = len(self.terminal.output)
            self.terminal.type(f"setvar {name} -guid {GLOBAL} -nv -bs -rt ={CONSOLE.hex()}\r".encode())
            self.terminal.read_until(rb"(?s)^.{%d}.*Shell> " % seen, PATIENCE)
        self.terminal.type(b"reset -s\r")
        self.assertEqual(self.terminal.wait(PATIENCE), 0)

    def boot(self, kind, terminal_type=False):
        self.add_provider()
        self.create("vm", "--tpm", kind)
        if terminal_type:
            self.choose_terminal_type()
        self.terminal = Terminal(self.host, "run", "vm", "--accel", "soft", "--kernel", IMAGES / "vmlinuz", "--initrd",
                                 IMAGES / "initrd.img", "--cmdline", CMDLINE)
        self.addCleanup(self.terminal.close)
        self.terminal.read_until(PROMPT, PATIENCE)

    def shell(self, text, code=0):
        """What a command prints in the guest."""
        seen = len(self.terminal.output)
        # Marks that the shell puts together, so that the echo of what is typed is not taken for them.
        self.terminal.type(f"echo BEGIN-''OF-COMMAND; ({text}); echo END-''OF-COMMAND $?\r".encode())
        self.terminal.read_until(rb"(?s)^.{%d}.*END-OF-COMMAND \d+\r\n.*%s" % (seen, PROMPT), PATIENCE)
        out = self.terminal.output[seen:].decode(errors="replace").replace("\r", "")
        out, _, rest = out.partition("END-OF-COMMAND ")
        self.assertEqual(rest.split()[0], str(code), out)
        return out.partition("BEGIN-OF-COMMAND\n")[2].strip()

    def reboot(self, question=None, key=None):
        """Restarts the guest; where the firmware asks, answers."""
        seen = len(self.terminal.output)
        self.terminal.type(b"reboot -f\r")
        if question:
            self.terminal.read_until(rb"(?s)^.{%d}.*%s" % (seen, question), PATIENCE)
            seen = len(self.terminal.output)
            self.terminal.type(key)
        self.terminal.read_until(rb"(?s)^.{%d}.*coffer-demo: init.*%s" % (seen, PROMPT), PATIENCE)

    def request(self, text):
        self.shell(f"echo '{text}' > /sys/class/tpm/tpm0/ppi/request")
        self.assertEqual(self.shell("cat /sys/class/tpm/tpm0/ppi/request"), text)

    def response(self):
        return self.shell("cat /sys/class/tpm/tpm0/ppi/response")

    def end(self):
        self.terminal.type(b"poweroff -f\r")
        self.assertEqual(self.terminal.wait(), 0)


class Requests(Ppi):
    def test_a_request_is_asked_about_and_answered(self):
        self.boot("crb")
        self.assertEqual(self.shell("cat /sys/class/tpm/tpm0/ppi/version"), "1.3")
        self.assertEqual(self.shell("cat /sys/class/tpm/tpm0/ppi/transition_action"), "2: Reboot")
        operations = self.shell("cat /sys/class/tpm/tpm0/ppi/tcg_operations")
        for operation in ("5 3: User required", "23 3: User required"):
            self.assertIn(operation, operations)
        self.assertEqual(self.response(), "0: No Recent Request")
        self.shell("echo 200 > /sys/class/tpm/tpm0/ppi/request", code=1)  # not implemented by this firmware
        self.shell("echo kept | coffer-demo-seal")
        self.request("5")
        self.reboot(rb"clear.*F12", ESCAPE)
        self.assertEqual(self.response(), "5 0xFFFFFFF0: User Abort")
        self.assertEqual(self.shell("cat /sys/class/tpm/tpm0/ppi/request"), "0")
        self.assertIn("kept", self.shell("coffer-demo-unseal"))
        self.end()


    def accept(self, text, question):
        self.request(text)
        self.reboot(question, F12)
        self.assertEqual(self.shell("cat /sys/class/tpm/tpm0/ppi/request"), "0")
        self.assertEqual(self.response(), f"{text.split()[0]} 0: Success")

    def banks(self):
        return set(re.findall(r"pcr-(sha\d+)", self.shell("ls /sys/class/tpm/tpm0")))

    def test_what_is_accepted_is_carried_out(self):
        """Clear, clear and enable, banks, and all banks; after each the firmware has reset the machine, and the guest sees it."""
        self.boot("crb", terminal_type=True)
        self.assertEqual(self.banks(), {"sha1", "sha256", "sha384", "sha512"})
        for operation in ("5", "14", "22"):
            self.shell("echo kept | coffer-demo-seal")
            self.assertIn("kept", self.shell("coffer-demo-unseal"))
            self.accept(operation, rb"clear.*F12")
            self.assertNotIn("kept", self.shell("coffer-demo-unseal 2>&1; true"))
        self.accept("23 6", rb"PCR.*F12")
        self.assertEqual(self.banks(), {"sha256", "sha384"})
        self.assertNotEqual(self.shell("cat /sys/class/tpm/tpm0/pcr-sha384/0").strip("0"), "", "measured into")
        # LogAllDigests loses nothing, so nobody is asked: all banks that the TPM has.
        self.request("33")
        self.reboot()
        self.assertEqual(self.response(), "33 0: Success")
        self.assertEqual(self.banks(), {"sha1", "sha256", "sha384", "sha512"})
        self.end()


class MemoryOverwrite(HostTest):
    """Asked for in OVMF's own shell, which reaches all memory. Debian's OVMF has no MemoryOverwriteRequestControl variable:
    the request goes by the TPM device's _DSM, which writes the byte that is written here."""

    def shell(self, text, expect=rb""):
        seen = len(self.terminal.output)
        self.terminal.type(text.encode() + b"\r")
        self.terminal.read_until(rb"(?s)^.{%d}.*%s.*Shell> " % (seen, expect), PATIENCE)

    def reset(self):
        seen = len(self.terminal.output)
        self.terminal.type(b"reset\r")
        self.terminal.read_until(rb"(?s)^.{%d}.*Shell> " % seen, PATIENCE)

    def test_wipes_ram_at_the_next_reset(self):
        self.add_provider()
        self.create("vm", "--tpm", "crb")
        self.terminal = Terminal(self.host, "run", "vm", "--accel", "soft")
        self.addCleanup(self.terminal.close)
        self.terminal.read_until(rb"Shell> ", PATIENCE)
        for address in ("10000000", "1000FFFC"):
            self.shell(f"mm {address} C0FFEE42 -w 4 -MEM -n")
        self.reset()
        for address in ("10000000", "1000FFFC"):  # a reset alone leaves RAM as it is
            self.shell(f"mm {address} -w 4 -MEM -n", rb"0x[Cc]0[Ff][Ff][Ee][Ee]42")
        self.shell("mm FED4515A 1 -w 1 -MMIO -n")
        self.shell("mm FED4515A -w 1 -MMIO -n", rb"0x01")
        self.reset()
        for address in ("10000000", "1000FFFC"):
            self.shell(f"mm {address} -w 4 -MEM -n", rb"0x00000000")
        self.shell("mm FED4515A -w 1 -MMIO -n", rb"0x00")  # the request is taken back


if __name__ == "__main__":
    unittest.main(verbosity=2)
