"""A VM's home after a real guest used it: nothing readable, nothing changeable."""

import shutil
import unittest

from harness import HostTest

SECRET = "a-secret-that-the-guest-wrote"
VARIABLE = "CofferProbe-7c436110-ab2a-4bbb-a880-fe41995c9f82"


class Home(HostTest):
    def setUp(self):
        super().setUp()
        self.add_provider()
        self.create("vm", "--tpm", "crb", "--provider", "local")
        self.run_in_guest("vm", rf"""
            set -e
            printf '\007\000\000\000{SECRET}' > /sys/firmware/efi/efivars/{VARIABLE}
            tpm2_nvdefine 0x1500001 -C o -s 29 -a 'ownerread|ownerwrite' > /dev/null
            echo -n '{SECRET}' | tpm2_nvwrite 0x1500001 -C o -i-""")

    def test_variables_last_and_nothing_is_in_the_clear(self):
        self.assertIn(SECRET, self.run_in_guest("vm", f"tail -c +5 /sys/firmware/efi/efivars/{VARIABLE}"))
        name = VARIABLE.split("-")[0]
        looked_at = 0
        for path in [*self.host.home("vm").rglob("*"), *(self.host.folder / "state").rglob("*")]:
            if not path.is_file():
                continue
            content = path.read_bytes()
            looked_at += len(content)
            for text in (SECRET, name):
                self.assertNotIn(text.encode(), content, path)
                self.assertNotIn(text.encode("utf-16-le"), content, path)
        self.assertGreater(looked_at, 0x84000)

    def test_one_changed_byte_is_refused_with_65(self):
        files = [path for path in self.host.home("vm").iterdir() if path.is_file() and path.stat().st_size > 64]
        self.assertGreaterEqual(len(files), 4)
        for path in files:
            original = path.read_bytes()
            changed = bytearray(original)
            changed[len(changed) // 2] ^= 1
            path.write_bytes(changed)
            why = self.refused(65, "run", "vm", "--accel", "soft", "--timeout", "1")
            self.assertIn(path.name, why)
            self.assertEqual(path.read_bytes(), changed, "nothing is overwritten")
            path.write_bytes(original)

    def test_without_the_provider_it_is_locked(self):
        shutil.move(self.host.root / "providers", self.host.folder / "elsewhere")
        self.assertEqual(self.host.json("show", "vm")["state"], "locked")
        self.assertEqual(self.host.json("list")[0]["state"], "locked")
        self.refused(77, "run", "vm", "--accel", "soft", "--timeout", "1")


if __name__ == "__main__":
    unittest.main(verbosity=2)
