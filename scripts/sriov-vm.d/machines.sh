# shellcheck shell=bash
# Starts the guests, speaks with them, and ends them.
#
#   server1 ─ igb ═══╗                          a cable is a pair of unix sockets: one frame is
#                    ╠═ router ─ client         one datagram, from QEMU to QEMU
#   server2 ─ igb ═══╝
#
# Router and client are one guest, the client in a network namespace of its own: a router must be
# a real one, with ARP and ND, and its next hop for the service can be changed.

BOOT_SECONDS_MAX=300
# Times are those of a machine that has nothing else to do; one that has takes a multiple.
PATIENCE=4
MACHINES=(server1 server2 router)

machine_dir() { echo "$RUN_DIR/$1"; }

# By doing it: /dev/kvm can be there, and open, on a machine without virtualization.
accelerator() {
    if [[ -n ${HOLDFAST_VM_ACCELERATOR:-} ]]; then
        [[ $HOLDFAST_VM_ACCELERATOR =~ ^(kvm|tcg)$ ]] || die "HOLDFAST_VM_ACCELERATOR=$HOLDFAST_VM_ACCELERATOR: expected kvm or tcg"
        echo "$HOLDFAST_VM_ACCELERATOR"
    elif [[ -w /dev/kvm ]] && grep -qEw 'svm|vmx' /proc/cpuinfo &&
        timeout 20 "$QEMU" -accel kvm -machine none -nodefaults -display none -monitor stdio <<<quit >/dev/null 2>&1; then
        echo kvm
    else
        echo tcg
    fi
}

# common_arguments NAME: QEMU's arguments for any guest, a line each. The IOMMU and the processor that
# DPDK of Debian needs (SSE 4.2).
common_arguments() {
    local dir accelerator append="console=ttyS0 quiet panic=-1 intel_iommu=on iommu=pt mitigations=off tsc=reliable no_timer_check net.ifnames=0"
    dir=$(machine_dir "$1")
    accelerator=$(accelerator)
    if [[ $accelerator == kvm ]]; then
        printf '%s\n' -accel kvm -cpu host -machine q35,kernel-irqchip=split
    else
        printf '%s\n' -accel tcg,thread=multi -cpu Nehalem -machine q35
    fi
    printf '%s\n' -name "$1" -nodefaults -no-user-config -display none -no-reboot -smp 2 \
        -device intel-iommu,intremap=on -pidfile "$dir/qemu.pid" \
        -kernel "$IMAGE_DIR/vmlinux" -initrd "$IMAGE_DIR/initrd.cpio" -append "$append holdfast.name=$1 ${2:-}"
}

# One end of a cable.
cable() { # ID OWN OTHER
    printf 'dgram,id=%s,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s' "$@"
}

server_arguments() { # NAME
    printf '%s\n' -m 768 -netdev "$(cable uplink "$1.end" "router-$1.end")" \
        -device pcie-root-port,id=slot1,slot=1,chassis=1 -device "igb,bus=slot1,netdev=uplink,mac=$(pf_mac "$1")"
}

router_arguments() {
    local server
    printf '%s\n' -m 512
    for server in "${SERVERS[@]}"; do
        printf '%s\n' -netdev "$(cable "$server" "router-$server.end" "$server.end")" \
            -device "virtio-net-pci,netdev=$server,mac=$(router_mac "$server"),romfile=,host_mtu=$CABLE_MTU"
    done
}

# machine_arguments NAME [KERNEL_PARAMETER]: all but where its console and its monitor are.
machine_arguments() {
    common_arguments "$@"
    case $1 in
        server*) server_arguments "$1" ;;
        router) router_arguments ;;
        lab) lab_arguments ;;
    esac
}

start_machine() { # NAME
    local dir channel arguments
    dir=$(machine_dir "$1")
    mkdir -p "$dir"
    for channel in agent monitor; do mkfifo "$dir/$channel.in" "$dir/$channel.out"; done
    mapfile -t arguments < <(machine_arguments "$1")
    arguments+=(-serial "file:$dir/serial.log" -chardev "pipe,id=monitor,path=$dir/monitor" -mon "chardev=monitor,mode=readline"
        -chardev "pipe,id=agent,path=$dir/agent" -device virtio-serial-pci -device "virtserialport,chardev=agent")
    # With relative names: a socket's is 107 bytes long at most. A guest ends with this script, however
    # that ends.
    (cd "$RUN_DIR" && exec setpriv --pdeathsig KILL "$QEMU" "${arguments[@]}" </dev/null >"$dir/qemu.log" 2>&1 {LOCK}>&-) &
}

# In the foreground, with its console here.
run_machine_with_shell() { # NAME
    local arguments
    mkdir -p "$(machine_dir "$1")"
    mapfile -t arguments < <(machine_arguments "$1" holdfast.shell=yes)
    (cd "$RUN_DIR" && "$QEMU" "${arguments[@]}" -serial mon:stdio {LOCK}>&-)
}

# The pid of a guest that runs; a pid that was given to another process is not ours.
machine_pid() { # NAME
    local pid
    pid=$(cat "$(machine_dir "$1")/qemu.pid" 2>/dev/null) || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "-pidfile $(machine_dir "$1")/qemu.pid" || return 1
    echo "$pid"
}

machine_runs() { machine_pid "$1" >/dev/null; }

serial_log() { cat "$(machine_dir "$1")/serial.log" 2>/dev/null || true; }

is_ready() { machine_runs "$1" && serial_log "$1" | grep -q 'ready after'; }

wait_for_machine() { # NAME
    local deadline=$((SECONDS + BOOT_SECONDS_MAX)) dir
    dir=$(machine_dir "$1")
    until is_ready "$1"; do
        if ! jobs -rp | grep -q . || serial_log "$1" | grep -q 'Kernel panic'; then
            die "$1 does not start: $(tail -n 3 "$dir/qemu.log") $(serial_log "$1" | tail -n 5)"
        fi
        ((SECONDS < deadline)) || die "$1 is not ready after $BOOT_SECONDS_MAX s: $(serial_log "$1" | tail -n 5)"
        sleep 0.2
    done
}

# in_machine NAME SECONDS COMMAND: runs it there by bash, prints what it says, and has its exit code.
in_machine() {
    local name=$1 seconds=$(($2 * PATIENCE)) dir id answer status text to from deadline
    dir=$(machine_dir "$name")
    id=$(now_us)
    exec {to}<>"$dir/agent.in" {from}<>"$dir/agent.out"
    printf '%s %d %s\n' "$id" "$seconds" "$(base64 -w0 <<<"$3")" >&"$to"
    deadline=$((SECONDS + seconds + 10))
    while ((SECONDS < deadline)); do
        read -r -t 2 answer status text <&"$from" || {
            machine_runs "$name" || break
            continue
        }
        # What came too late for the one who asked before is not ours.
        [[ $answer == "$id" ]] || continue
        exec {to}>&- {from}>&-
        [[ -z $text ]] || base64 -d <<<"$text"
        return "$status"
    done
    exec {to}>&- {from}>&-
    say "$name does not answer: $3"
    return 124
}

# tell_monitor NAME COMMAND: of QEMU's own, for what is outside of the guest.
tell_monitor() {
    printf '%s\n' "$2" >"$(machine_dir "$1")/monitor.in"
}

end_machines() {
    local name pid tries
    for name in "${MACHINES[@]}"; do
        if pid=$(machine_pid "$name"); then kill "$pid" 2>/dev/null || true; fi
    done
    for name in "${MACHINES[@]}"; do
        for ((tries = 0; tries < 50; tries++)); do
            pid=$(machine_pid "$name") || break
            sleep 0.1
        done
        if pid=$(machine_pid "$name"); then kill -9 "$pid" 2>/dev/null || true; fi
    done
}
