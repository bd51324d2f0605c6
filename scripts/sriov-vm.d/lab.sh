# shellcheck shell=bash
# The lab (scripts/lab) in a machine, with uplinks by PCI address, each cabled to another NIC; that of
# server2 is in a VLAN that its physical function puts it in:
#
#   server1 ─ VF 0 ─ igb ══ virtio ─ leaf1
#   server2 ─ VF 0 ─ igb ══ virtio ─ VLAN 102 ─ leaf2
#
# It runs the machine's own programs outside: their file system is the guest's, read-only.

LAB_MTU=1600
LAB_VLAN=102

lab_arguments() {
    local server number
    printf '%s\n' -m 2048
    for server in "${SERVERS[@]}"; do
        number=$(number_of "$server")
        printf '%s\n' -netdev "$(cable "$server" "$server.end" "leaf$number.end")" \
            -device "pcie-root-port,id=slot$number,slot=$number,chassis=$number" \
            -device "igb,bus=slot$number,netdev=$server,mac=$(pf_mac "$server")" \
            -netdev "$(cable "leaf$number" "leaf$number.end" "$server.end")" \
            -device "virtio-net-pci,netdev=leaf$number,mac=$(router_mac "$server"),romfile=,host_mtu=$LAB_MTU"
    done
    printf '%s\n' -fsdev local,id=host,path=/,security_model=none,readonly=on -device virtio-9p-pci,fsdev=host,mount_tag=host
}

# The file system outside, with room for what is written.
lab_files() {
    cat <<'END'
set -e
modprobe -a 9p 9pnet_virtio overlay
mkdir -p /lower /upper /host /run/lock
mount -t 9p -o ro,trans=virtio,cache=loose,msize=262144 host /lower
mount -t tmpfs -o mode=0755 tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /host
mkdir -p /host/lib/modules
mount --bind /usr/lib/modules /host/lib/modules
for directory in dev proc sys run; do mount --rbind /$directory /host/$directory; done
mount -t tmpfs -o mode=1777 tmpfs /host/tmp
mount -t tmpfs tmpfs /host/var/log
END
}

# in_lab SECONDS COMMAND: among the programs outside.
in_lab() { in_machine lab "$1" "exec chroot /host bash -c $(printf %q "cd $(printf %q "$REPOSITORY"); $2")"; }

lab_uplinks() {
    cat <<END
set -e -o pipefail
interface() { ip -json link | jq -er --arg mac "\$1" '.[] | select(.address == \$mac).ifname'; }
pf1=\$(interface $(pf_mac server1)) pf2=\$(interface $(pf_mac server2))
leaf1=\$(interface $(router_mac server1)) leaf2=\$(interface $(router_mac server2))
for pf in \$pf1 \$pf2; do
    sysctl -q net.ipv6.conf.\$pf.disable_ipv6=1
    ip link set \$pf mtu $LAB_MTU up
done
ip link set \$leaf2 up
ip link add link \$leaf2 name \$leaf2.$LAB_VLAN type vlan id $LAB_VLAN
scripts/hugepages reserve 448
scripts/sriov create \$pf1 --mac $(vf_mac server1 0)
scripts/sriov create \$pf2 --mac $(vf_mac server2 0) --vlan $LAB_VLAN
scripts/sriov bind \$pf1 0
scripts/sriov bind \$pf2 0
scripts/sriov status \$pf2
vf() { basename "\$(readlink /sys/class/net/\$1/device/virtfn0)"; }
scripts/lab up --mode holdfast --servers 2 --bin-dir '$BIN_DIR' --uplink "server1=\$(vf \$pf1),\$leaf1" \
    --uplink "server2=\$(vf \$pf2),\$leaf2.$LAB_VLAN"
END
}

lab_down() {
    cat <<END
set -e -o pipefail
scripts/lab status
for server in server1 server2; do
    grep -h 'ports: uplink' /run/holdfast-lab/\$server/holdfastd.log
    '$BIN_DIR/holdfastctl' --socket /run/holdfast-lab/\$server/holdfastd.sock --json show stats |
        jq -c '[.ports[] | select(.role == "uplink") | .driver], [.totals | .host_reflected, .uplink_received, .passed]'
done
scripts/lab down
ip -brief link
END
}

command_lab() {
    local start uplinks
    MACHINES=(lab)
    start=$(now_us)
    need_machines
    trap 'keep_logs; clean_up' EXIT
    trap 'exit 130' INT TERM
    start_machine lab
    wait_for_machine lab
    in_machine lab 30 "$(lab_files)" || die "the machine cannot use the file system outside"
    say "a machine with $(accelerator) after $(seconds_since "$start") s"
    in_lab 120 "$(lab_uplinks)" || die "the lab does not come up: see above"
    in_lab 60 "$(lab_down)" | tee "$LOG_DIR/lab.txt" || die "the lab does not go down: see above"
    uplinks=$(grep -cxF '["net_e1000_igb_vf"]' "$LOG_DIR/lab.txt") || true
    ((uplinks == 2)) || die "$uplinks of 2 servers have a virtual function for an uplink"
    say "the lab came up by PCI addresses, and went, after $(seconds_since "$start") s"
}
