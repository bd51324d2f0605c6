# shellcheck shell=bash
# What the machines are made of: QEMU, and the tools that pack the guests' file system.

QEMU=qemu-system-x86_64
# The first with an 82576 (igb).
QEMU_MAJOR_MIN=8
PACKAGES=(cpio kmod jq xz-utils zstd binutils dpdk iproute2 iputils-ping ethtool tcpdump procps util-linux)
BACKPORTS=/etc/apt/sources.list.d/holdfast-backports.list

qemu_version() { "$QEMU" --version 2>/dev/null | sed -nE 's/^QEMU emulator version ([0-9]+\.[0-9.]*).*/\1/p'; }

# Why the machines cannot be had, in a line; nothing when they can.
why_not() {
    local version
    version=$(qemu_version)
    if [[ $(uname -m) != x86_64 ]]; then
        echo "the guests are made of this machine's programs, and only x86-64 has an igb to emulate"
    elif [[ -z $version ]]; then
        echo "there is no $QEMU"
    elif ((${version%%.*} < QEMU_MAJOR_MIN)); then
        echo "QEMU $version has no igb: $QEMU_MAJOR_MIN.0 is the first"
    elif ! "$QEMU" -device help 2>/dev/null | grep -q '"igb"'; then
        echo "this QEMU was built without igb"
    fi
}

set_up() {
    if [[ -z $(why_not) ]] && have_packages; then
        say "setup: all is there"
        return 0
    fi
    have apt-get || die "$(why_not). This is no Debian: install QEMU $QEMU_MAJOR_MIN or later, and the like of: ${PACKAGES[*]}"
    [[ $EUID -eq 0 ]] || die "needs root to install packages: qemu-system-x86 ${PACKAGES[*]}. Run it with sudo."
    export DEBIAN_FRONTEND=noninteractive
    apt_get update
    [[ -z $(why_not) ]] || install_qemu
    have_packages || apt_get install --no-install-recommends --no-remove "${PACKAGES[@]}"
    [[ -z $(why_not) ]] || die "$(why_not)"
    say "setup: all is there"
}

have_packages() {
    local package
    for package in "${PACKAGES[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || return 1
    done
}

apt_get() { apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" >&2; }

# Debian 12 has QEMU 7.2, and a later one in its backports: of the mirror that apt knows already.
install_qemu() {
    local codename mirror release=()
    if (($(qemu_candidate) < QEMU_MAJOR_MIN)); then
        # shellcheck source=/dev/null
        codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")-backports
        if [[ -z $(mirror_of "$codename") ]]; then
            mirror=$(mirror_of "${codename%-backports}")
            [[ -n $mirror ]] || die "$(why_not), and apt names no mirror of this Debian to take a later one from"
            say "adding $codename of $mirror to apt's sources, for QEMU ($BACKPORTS)"
            printf '# by holdfast scripts/sriov-vm setup, for QEMU\ndeb %s %s main\n' "$mirror" "$codename" >"$BACKPORTS"
            apt_get update
        fi
        release=(--target-release "$codename")
    fi
    apt_get install --no-install-recommends --no-remove ${release[@]+"${release[@]}"} qemu-system-x86
}

# The major version that apt would install.
qemu_candidate() { apt-cache policy qemu-system-x86 | sed -nE 's/^ +Candidate: ([0-9]+:)?([0-9]+)\..*/\2/p'; }

# shellcheck disable=SC2016 # apt-get expands it
mirror_of() { apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' "Codename: $1" | head -n 1; }
