# shellcheck shell=bash
# Addresses of the guests, and the router's routes.

SERVERS=(server1 server2)
# Of a cable: as large as the largest case needs it.
CABLE_MTU=9000
ANYCAST4=192.168.0.1 ANYCAST6=2001:db8:192:168::1
CLIENT4=20.1.1.1 CLIENT6=2001:db8:20:1::1
SERVE_PORT=9000

number_of() { echo "${1##*[a-z]}"; }
pf_mac() { printf '02:00:00:00:%02x:00' "$(number_of "$1")"; }
vf_mac() { printf '02:00:00:00:%02x:1%d' "$(number_of "$1")" "$2"; }
router_mac() { printf '02:00:00:00:%02x:fe' "$(number_of "$1")"; }

locator() { echo "10.0.0.$(number_of "$1")"; }
locator6() { echo "2001:db8:10::$(number_of "$1")"; }
# On a server's cable: of its kernel, of the appliance when it has some of its own, and of the router.
server4() { echo "10.1.$(number_of "$1").2"; }
server6() { echo "2001:db8:1:$(number_of "$1")::2"; }
appliance4() { echo "10.1.$(number_of "$1").3"; }
appliance6() { echo "2001:db8:1:$(number_of "$1")::3"; }
router4() { echo "10.1.$(number_of "$1").1"; }
router6() { echo "2001:db8:1:$(number_of "$1")::1"; }

# The router's commands at its start.
router_setup() {
    local server
    cat <<END
set -e
sysctl -q net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip netns add client
ip link add client type veth peer name router netns client
ip -n client link set lo up
ip link set client mtu $CABLE_MTU up
ip -n client link set router mtu $CABLE_MTU up
ip addr add 20.1.1.254/24 dev client
ip addr add 2001:db8:20:1::fe/64 dev client nodad
ip -n client addr add $CLIENT4/24 dev router
ip -n client addr add $CLIENT6/64 dev router nodad
ip -n client route add default via 20.1.1.254
ip -n client route add default via 2001:db8:20:1::fe
END
    for server in "${SERVERS[@]}"; do
        cat <<END
for link in /sys/class/net/eth*; do
    [[ \$(cat \$link/address) != $(router_mac "$server") ]] || ip link set \${link##*/} name $server
done
ip link set $server up
ip addr add $(router4 "$server")/24 dev $server
ip addr add $(router6 "$server")/64 dev $server nodad
END
    done
}

# Where the router sends what is for service and locator: with a host port through the NIC's switch to
# the appliance's own addresses, else to the kernel's.
next_hop4() { if [[ $HOST_PORT == switch ]]; then appliance4 "$1"; else server4 "$1"; fi; }
next_hop6() { if [[ $HOST_PORT == switch ]]; then appliance6 "$1"; else server6 "$1"; fi; }

route() { # SERVER ADDRESS4 ADDRESS6
    in_machine router 10 "ip route replace $2 via $(next_hop4 "$1") && ip route replace $3 via $(next_hop6 "$1")"
}

# The router's side of what has changed at the servers.
follow_host_port() {
    local server
    for server in "${SERVERS[@]}"; do
        in_machine router 10 "ip link set $server mtu $(mtu_of "$HOST_PORT" "$FABRIC_MTU")"
        route "$server" "$(locator "$server")" "$(locator6 "$server")"
    done
}

# send_service_to SERVER: the router's next hop for the service, from now on.
send_service_to() { route "$1" "$ANYCAST4" "$ANYCAST6"; }
