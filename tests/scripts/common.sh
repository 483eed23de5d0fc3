# Shared by ./demo and ./check: packages, configuration, build. Sourced by bash with -eu, in the project's top folder.

# What compiling, and the firmware that guests boot, need of Debian 12.
build_packages=(
    g++ meson ninja-build pkg-config acpica-tools
    libboost-dev libcli11-dev libfmt-dev libgmock-dev libgtest-dev libseccomp-dev libssl-dev libtpms-dev libtss2-dev
    libzstd-dev libzydis-dev nlohmann-json3-dev ovmf
)
# What tests compare guests and the software CPU with, and what unpacks the kernel for that; a KMIP server, and
# certificates for it; who uses a served TPM; file systems and networks of the tests' own.
test_packages=(btrfs-progs busybox-static e2fsprogs iproute2 lz4 openssl python3-cryptography python3-pykmip
    qemu-system-x86 qemu-utils swtpm tpm2-tools xfsprogs)
# What images/build-demo-guest needs on the host; the guest's own packages it fetches by itself.
image_packages=(apt binutils dosfstools mtools python3 tar zstd)

stage() { printf '\n== %s\n' "$*"; }
fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root or sudo: $*"
    fi
}

is_installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

# Installs those of the named packages that are missing, and says which. Also sees to it that apt has a package index,
# which the guest's packages are looked up in.
need_packages() {
    command -v apt-get >/dev/null || fail "this is no Debian system; install the packages listed in tests/scripts/common.sh"
    local missing=() package
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    if [ "${#missing[@]}" -gt 0 ] || ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
        echo "updating apt's package index"
        as_root apt-get -qq update </dev/null || fail "apt-get update failed"
    fi
    if [ "${#missing[@]}" -eq 0 ]; then
        echo "all packages that are needed are installed"
        return
    fi
    echo "installing: ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" \
        </dev/null >/dev/null || fail "these packages could not be installed: ${missing[*]}"
}

# A build folder that is there is used as it is.
configure() {
    local folder=$1 native=$2
    [ -f "$folder/build.ninja" ] || meson setup "$folder" --native-file "$native" </dev/null
}

# Compiles the named targets, or all.
compile() {
    local folder=$1
    shift
    ninja -C "$folder" "$@" </dev/null || fail "the build failed; its last lines are above"
}

build_demo_guest() { images/build-demo-guest --output build/images </dev/null; }
