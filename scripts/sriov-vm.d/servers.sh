# shellcheck shell=bash disable=SC2016 # a guest expands what is in single quotes
# A server's software: set up in the guest by the scripts and commands that the guide's chapter on
# deployment has, daemons and services.

# Of this run alone.
CLUSTER_KEY=$(od -An -v -tx1 -N 32 /dev/urandom | tr -d ' \n')
VF_ADDRESS=0000:01:10.0
HUGE_PAGES_MIB=224
# Of the jumbo case: of the fabric, and of the hosts, so that a tunnel fits.
FABRIC_MTU=9000 HOST_MTU=8900
CONFIG=/etc/holdfast/holdfast.toml
DAEMON_LOG=/run/holdfastd.log

# on_servers FUNCTION ARGUMENT...: with each server's name first, at the same time. What it says is kept.
on_servers() {
    local server jobs=() failed=0
    for server in "${SERVERS[@]}"; do
        "$1" "$server" "${@:2}" >>"$LOG_DIR/$server-deployment.log" 2>&1 &
        jobs+=($!)
    done
    for server in "${jobs[@]}"; do wait "$server" || failed=1; done
    ((!failed)) || die "failed: $* (see $LOG_DIR/*-deployment.log)"
}

# deploy NAME: what is done once for a server, in the order of the guide. Prints what each step said.
deploy() {
    in_machine "$1" 60 "$(
        cat <<END
set -e -o pipefail
set -x
# The PF has no part in it: it answers for no address of the host port's.
sysctl -q net.ipv4.conf.eth0.arp_ignore=1 net.ipv6.conf.eth0.disable_ipv6=1
ip link set eth0 up
/usr/lib/holdfast/hugepages reserve $HUGE_PAGES_MIB
/usr/lib/holdfast/sriov create eth0 --vfs 2 --mac $(vf_mac "$1" 0)
/usr/lib/holdfast/sriov bind eth0 0
/usr/lib/holdfast/sriov bind eth0 1 --driver kernel
/usr/lib/holdfast/sriov status eth0
mkdir -p -m 0750 /etc/holdfast
(umask 077 && printf '%s\n' $CLUSTER_KEY >/etc/holdfast/cluster.key)
ip addr add $(locator "$1")/32 dev lo
ip addr add $(locator6 "$1")/128 dev lo
ip addr add $ANYCAST4/32 dev lo
ip addr add $ANYCAST6/128 dev lo
setsid session-serve --listen $ANYCAST4:$SERVE_PORT --listen [$ANYCAST6]:$SERVE_PORT --name $1 >/run/session-serve.log 2>&1 &
END
    )"
}

configuration() { # NAME HOST_PORT
    cat <<END
[node]
locator = "$(locator "$1")"

[dpdk]
huge_pages = "on"
memory_mib = 128

[uplink]
device = "$VF_ADDRESS"
promiscuous = false
mtu = $(mtu_of "$2" "$FABRIC_MTU")

[host_port]
$(host_port_keys "$@")

[workers]
cores = [1]

[[service]]
address = "$ANYCAST4"
ports = [$SERVE_PORT]

[[service]]
address = "$ANYCAST6"
ports = [$SERVE_PORT]

[sessions]
capacity = 10_000
half_open_max = 1_000

# Emulated processors: a look-up takes its time.
[parking]
grace = "150ms"

[dht]
records_max = 100_000
bootstrap = ["$(locator server1):7000"]

[cluster]
members = ["10.0.0.0/24"]
key_file = "/etc/holdfast/cluster.key"
END
}

mtu_of() { if [[ $1 == jumbo ]]; then echo "$2"; else echo 1500; fi; } # HOST_PORT JUMBO_MTU

# The NIC's switch gives the VF what is for its own address, and nothing else: the kernel's interface
# has it as well, or the kernel is behind another VF.
host_port_keys() { # NAME HOST_PORT
    case $2 in
        tap)
            printf 'device = "tap:host0"\n'
            printf 'mac = "%s"\n' "$(vf_mac "$1" 0)"
            ;;
        jumbo)
            printf 'device = "vhost:host0"\n'
            printf 'mac = "%s"\n' "$(vf_mac "$1" 0)"
            ;;
        switch)
            printf 'device = "switch"\n'
            printf 'mac = "%s"\n' "$(vf_mac "$1" 1)"
            printf 'next_hops = ["%s", "%s"]\n' "$(appliance4 "$1")" "$(appliance6 "$1")"
            ;;
    esac
}

# start_daemon NAME HOST_PORT: as the units do, and waits until it is ready.
start_daemon() {
    in_machine "$1" 90 "$(
        cat <<END
set -e
cat >$CONFIG <<'CONFIGURATION'
$(configuration "$@")
CONFIGURATION
holdfastd check $CONFIG
# It finds what a guest has no need of, as a synchronised clock.
holdfastctl doctor || true
cat >/run/keep-running <<'LOOP'
# In systemd's place (Restart=always, RestartSec=100ms).
while [[ ! -e /run/holdfastd.stop ]]; do
    holdfastd run $CONFIG >>$DAEMON_LOG 2>&1 &
    echo \$! >/run/holdfastd.pid
    wait \$!
    echo "holdfastd ended with exit code \$?" >>$DAEMON_LOG
    sleep 0.1
done
rm -f /run/holdfastd.pid
LOOP
[[ $2 != jumbo ]] || modprobe vhost_net
ip link set eth0 mtu $(mtu_of "$2" "$FABRIC_MTU")
rm -f /run/holdfastd.stop
setsid bash /run/keep-running >/dev/null 2>&1 &
for ((tries = 0; tries < 150; tries++)); do
    ! holdfastctl show version || break
    sleep 0.2
done 2>/run/not-yet
holdfastctl show version || { tail -n 5 $DAEMON_LOG; exit 1; }
$(host_interface "$@")
END
    )"
}

# What was on the NIC goes to the interface that the kernel uses now.
host_interface() { # NAME HOST_PORT
    local interface=host0
    [[ $2 != switch ]] || interface='$(ls /sys/class/net/eth0/device/virtfn1/net)'
    cat <<END
interface=$interface
sysctl -q net.ipv4.conf.\$interface.rp_filter=0
ip link set \$interface mtu $(mtu_of "$2" "$HOST_MTU") up
ip addr replace $(server4 "$1")/24 dev \$interface
ip addr replace $(server6 "$1")/64 dev \$interface nodad
ip route replace default via $(router4 "$1") dev \$interface
ip route replace default via $(router6 "$1") dev \$interface
END
}

# stop_daemon NAME: and takes its interface away. The kernel's VF goes down: it would answer for the
# addresses of the next host port.
stop_daemon() {
    in_machine "$1" 30 '
        touch /run/holdfastd.stop
        [[ ! -e /run/holdfastd.pid ]] || kill $(cat /run/holdfastd.pid) || true
        while [[ -e /run/holdfastd.pid ]]; do sleep 0.1; done
        for interface in host0 $(ls /sys/class/net/eth0/device/virtfn1/net); do
            [[ ! -e /sys/class/net/$interface ]] || { ip addr flush dev $interface && ip link set $interface down; }
        done
        [[ ! -e /sys/class/net/host0 ]] || ip link delete host0'
}
