"""Debian packages: which ones, fetched by apt-get and checked against apt's signed index, unpacked side by side."""

import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

# Metapackage that names the current kernel, and what the initramfs is made of.
KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
ROOTS = ["busybox-static", "tpm2-tools"]
# Taken without what they depend on.
ALONE = ["systemd-boot-efi"]


@dataclasses.dataclass(frozen=True)
class Package:
    name: str
    version: str
    file: str  # in the cache
    sha256: str


def run(*command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"build-demo-guest: {' '.join(command[:6])} ... failed:\n{done.stderr.strip()}\n"
                 "If packages are not found, run apt-get update as root.")
    return done.stdout


class Store:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder).absolute()
        (self.folder / "partial").mkdir(parents=True, exist_ok=True)

    def _closure(self, roots):
        """Names and versions of the roots and all they depend on, as apt would install them on an empty system."""
        status = self.folder / "no-packages"
        status.write_text("")
        plan = run("apt-get", "--simulate", "-o", f"Dir::State::status={status}", "-o", "Debug::NoLocking=1",
                   "--no-install-recommends", "install", *roots)
        return re.findall(r"^Inst (\S+) \((\S+) ", plan, re.M)

    def resolve(self):
        """The packages to use, with the checksums of apt's index; sorted by name."""
        kernels = re.findall(r"^  Depends: (linux-image-\S+)", run("apt-cache", "depends", KERNEL_METAPACKAGE), re.M)
        if len(kernels) != 1:
            sys.exit(f"build-demo-guest: {KERNEL_METAPACKAGE} depends on {kernels}, one kernel was expected")
        chosen = [f"{name}={version}" for name, version in self._closure(ROOTS)] + kernels + ALONE
        records = run("apt-cache", "show", "--no-all-versions", *chosen)
        found = {}
        for record in records.strip().split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", record, re.M))
            found[fields["Package"]] = Package(fields["Package"], fields["Version"],
                                               os.path.basename(fields["Filename"]), fields["SHA256"])
        return sorted(found.values(), key=lambda package: package.name)

    def _holds(self, package):
        path = self.folder / package.file
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256

    def fetch(self, packages):
        missing = [package for package in packages if not self._holds(package)]
        if not missing:
            return
        print(f"fetching {len(missing)} of {len(packages)} packages into {self.folder}", flush=True)
        partial = self.folder / "partial"
        # As root, apt would step down to a user who may not write here.
        sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        run("apt-get", "--quiet", *sandbox, "download", *(f"{p.name}={p.version}" for p in missing), cwd=partial)
        for path in partial.glob("*.deb"):
            # apt writes an epoch's colon as %3a; the index's file names have no epoch.
            path.rename(self.folder / re.sub(r"_\d+%3a", "_", path.name))
        for package in missing:
            if not self._holds(package):
                sys.exit(f"build-demo-guest: {package.file} is not what apt's index says it is (SHA-256); "
                         f"remove {self.folder} and try again")

    def unpack(self, packages):
        """All packages in one tree, with /bin, /lib, /lib64 and /sbin merged into /usr; made anew each time."""
        tree = self.folder / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "usr").mkdir(parents=True)
        for name in ("bin", "lib", "lib64", "sbin"):
            (tree / "usr" / name).mkdir()
            (tree / name).symlink_to(f"usr/{name}")
        for package in packages:
            # tar, unlike dpkg-deb -x, follows the merged folders' links.
            archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", self.folder / package.file],
                                       stdout=subprocess.PIPE)
            run("tar", "-x", "--keep-directory-symlink", "--no-same-owner", "--exclude=./usr/share/doc",
                "--exclude=./usr/share/locale", "-C", str(tree), stdin=archive.stdout)
            if archive.wait() != 0:
                sys.exit(f"build-demo-guest: {package.file} cannot be unpacked")
        return tree


def kernel_image(tree):
    images = list((tree / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        sys.exit(f"build-demo-guest: {len(images)} kernels in {tree}/boot, one was expected")
    return images[0]
