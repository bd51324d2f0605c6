# shellcheck shell=bash
# The guests' kernel and file system. The kernel and its modules come from a Debian package that is
# unpacked and not installed, everything else are this machine's own programs with their libraries, so
# that the guests run what was built here. What is Debian's is kept and made anew when it has changed.

KERNEL_PACKAGE=linux-image-amd64
# With modprobe's dependencies. The PF's driver and vfio-pci are for the guest to find and to load.
MODULES=(virtio_pci virtio_console virtio_net igb igbvf vfio-pci vfio_iommu_type1 tun veth vhost_net inet_diag tcp_diag
    9p 9pnet_virtio overlay 8021q)
PROGRAMS=(
    bash sh cat chmod chown cp cut date df dirname basename env head id kill ln ls mkdir mkfifo mknod mktemp mv nproc
    od paste printf readlink realpath rm rmdir sed seq sleep sort stat stty sync tac tail tee timeout touch tr true false
    uname uniq wc base64 sha256sum grep find xargs awk ps free sysctl
    mount umount chroot setsid dmesg flock taskset lscpu login agetty
    ip ss ping ethtool tcpdump modprobe lsmod insmod depmod
)
# Drivers that holdfastd has use for in a guest. EAL loads all that lie there.
PMDS=(bus_pci bus_vdev mempool_ring net_e1000 net_tap net_virtio net_ring)

# --- the kernel ------------------------------------------------------------------------

kernel_package() { apt-cache depends "$KERNEL_PACKAGE" | awk '/^ +Depends:/ { print $2; exit }'; }
kernel_version() { apt-cache policy "$1" | awk '/^ +Candidate:/ { print $2 }'; }

# The kernel, and the modules that the guests need.
make_kernel() {
    local package version key
    package=$(kernel_package)
    [[ -n $package ]] || die "apt knows no $KERNEL_PACKAGE (apt-get update?)"
    key="$package $(kernel_version "$package") ${MODULES[*]}"
    [[ $key != "$(cat "$IMAGE_DIR/kernel.key" 2>/dev/null)" ]] || return 0
    rm -rf "$IMAGE_DIR"/{kernel.key,kernel,modules,download}
    mkdir -p "$IMAGE_DIR"/{kernel,modules,download}
    say "fetching $package"
    # As root, apt would rather fetch as another user, who may not write here.
    (cd "$IMAGE_DIR/download" && apt-get -q -o APT::Sandbox::User= download "$package" >apt.log 2>&1) ||
        die "apt-get download $package: $(tail -n 1 "$IMAGE_DIR/download/apt.log")"
    dpkg-deb --fsys-tarfile "$IMAGE_DIR"/download/*.deb | tar -x -C "$IMAGE_DIR/kernel" --exclude='*/doc/*'
    unpack_kernel "$IMAGE_DIR"/kernel/boot/vmlinuz-* "$IMAGE_DIR/vmlinux"
    version=$(basename "$IMAGE_DIR"/kernel/lib/modules/*)
    copy_modules "$version"
    rm -rf "$IMAGE_DIR"/{kernel,download}
    printf '%s\n' "$key" >"$IMAGE_DIR/kernel.key"
}

copy_modules() { # VERSION
    local module file folder=lib/modules/$1
    depmod -b "$IMAGE_DIR/kernel" "$1"
    mkdir -p "$IMAGE_DIR/modules/$folder"
    for module in "${MODULES[@]}"; do
        modprobe -d "$IMAGE_DIR/kernel" -S "$1" --show-depends "$module" || die "the kernel $1 has no module $module"
    done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r file; do
        install -D -m 0644 "$file" "$IMAGE_DIR/modules${file#"$IMAGE_DIR/kernel"}"
    done
    cp "$IMAGE_DIR/kernel/$folder"/modules.{order,builtin,builtin.modinfo} "$IMAGE_DIR/modules/$folder"
    depmod -b "$IMAGE_DIR/modules" "$1"
}

# The kernel within a bzImage, so that no emulated processor has to unpack it: where it is says the
# header (Documentation/x86/boot.rst: setup_sects, payload_offset, payload_length).
unpack_kernel() { # BZIMAGE VMLINUX
    local sectors offset length magic unpack
    sectors=$(number_at "$1" 497 1)
    offset=$(((sectors + 1) * 512 + $(number_at "$1" 584 4)))
    length=$(number_at "$1" 588 4)
    magic=$(od -An -tx1 -j "$offset" -N 4 "$1" | tr -d ' ')
    case $magic in
        fd377a58) unpack=(xz -dc --single-stream) ;;
        28b52ffd) unpack=(zstd -dcq) ;;
        1f8b*) unpack=(gzip -dc) ;;
        *) die "$1 is packed in a way unknown here ($magic)" ;;
    esac
    # The payload's last four bytes are its length, which is none of the packer's.
    dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip="$offset" count=$((length - 4)) status=none |
        "${unpack[@]}" >"$2" || die "cannot unpack $1"
}

number_at() { od -An -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# --- the file system ---------------------------------------------------------------------

# put FILE: it, what its links lead to, and the libraries it needs, at the same places.
put() {
    local path=$1 directory library link
    # /bin, /lib and so on are links to their like in /usr.
    directory=$(readlink -f "${path%/*}")
    path=$directory/${path##*/}
    [[ ! -e $TREE$path && ! -L $TREE$path ]] || return 0
    mkdir -p "$TREE$directory"
    cp -a "$path" "$TREE$path"
    if [[ -L $path ]]; then
        link=$(readlink "$path")
        [[ $link == /* ]] || link=$directory/$link
        put "$link"
        return 0
    fi
    while read -r library; do put "$library"; done < <(libraries "$path")
}

libraries() { ldd "$1" 2>/dev/null | grep -oE '(^|[[:space:]])/[^ ]+' || true; }

# put_program NAME: also where it is a link of the alternatives system.
put_program() {
    local path target
    path=$(PATH=$PATH:/usr/sbin:/sbin type -P "$1") || die "missing: $1. scripts/sriov-vm setup installs it."
    target=$(readlink -f "$path")
    put "$target"
    path=$(readlink -f "${path%/*}")/$1
    [[ -e $TREE$path || -L $TREE$path ]] || ln -s "$target" "$TREE$path"
}

make_tree() {
    local directory name
    rm -rf "$TREE"
    mkdir -p "$TREE"/{dev,proc,sys,run,tmp,root,etc,var/lib,usr/bin,usr/sbin,usr/lib,usr/lib64}
    for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$TREE/$directory"; done
    ln -s ../run "$TREE/var/run"
}

pack() { # TREE CPIO
    (cd "$1" && find . -mindepth 1 | sort | cpio --quiet -o -H newc -R 0:0) >"$2.new"
    mv "$2.new" "$2"
}

# Debian's part: kernel, modules, programs, DPDK. Made anew when a package here has changed.
make_base() {
    local key name pmd pmds libraries
    make_kernel
    key=$(cat "$IMAGE_DIR/kernel.key" "$MACHINE_SCRIPTS/image.sh" <(dpkg-query -W) | sha256sum)
    if [[ $key == "$(cat "$IMAGE_DIR/base.key" 2>/dev/null)" && -s $IMAGE_DIR/base.cpio ]]; then return 0; fi
    say "packing the guests' file system"
    rm -f "$IMAGE_DIR/base.key"
    TREE=$IMAGE_DIR/tree
    make_tree
    for name in "${PROGRAMS[@]}"; do put_program "$name"; done
    pmds=$(echo /usr/lib/*/dpdk/pmds-*)
    [[ -d $pmds ]] || die "DPDK's drivers are not where Debian has them (/usr/lib/*/dpdk/pmds-*)"
    libraries=${pmds%/dpdk/*}
    # Links as Debian has them: of two copies each would register its driver.
    for pmd in "${PMDS[@]}"; do
        for name in {"$pmds","$libraries"}/librte_"$pmd".so.*; do put "$name"; done
    done
    # Loaded when a thread is cancelled.
    put "$libraries/libgcc_s.so.1"
    cp -r "$IMAGE_DIR/modules/lib/modules" "$TREE/usr/lib/"
    pack "$TREE" "$IMAGE_DIR/base.cpio"
    rm -rf "$TREE"
    printf '%s\n' "$key" >"$IMAGE_DIR/base.key"
}

# Our part, at the places that the package has: a few megabytes, packed at every start.
make_ours() {
    local name
    TREE=$IMAGE_DIR/tree
    make_tree
    mkdir -p "$TREE/usr/lib/holdfast/lib"
    for name in holdfastd holdfastctl session-load session-serve; do
        [[ -x $BIN_DIR/$name ]] || die "there is no $BIN_DIR/$name: cargo build --release -p holdfast -p holdfast-bench"
        strip -o "$TREE/usr/bin/$name" "$BIN_DIR/$name"
        while read -r name; do put "$name"; done < <(libraries "$BIN_DIR/$name")
    done
    cp "$SCRIPTS/sriov" "$SCRIPTS/hugepages" "$TREE/usr/lib/holdfast/"
    cp "$SCRIPTS/lib/common.sh" "$SCRIPTS/lib/host.sh" "$TREE/usr/lib/holdfast/lib/"
    cp "$MACHINE_SCRIPTS/guest/init" "$TREE/init"
    printf 'root:x:0:0:root:/root:/bin/bash\n' >"$TREE/etc/passwd"
    printf 'root:x:0:\nholdfast:x:900:\n' >"$TREE/etc/group"
    pack "$TREE" "$IMAGE_DIR/ours.cpio"
    rm -rf "$TREE"
    cat "$IMAGE_DIR/base.cpio" "$IMAGE_DIR/ours.cpio" >"$IMAGE_DIR/initrd.cpio"
}

make_image() {
    make_base
    make_ours
}
