# shellcheck shell=bash
# The lab's graph and its numbers: nodes, links, addresses, AS numbers, and the
# routes each node must have. It computes; it never touches the machine.
#
#   client ─ edge ─┬─ spine1 ─┬─ leaf1 ─ server1, server2
#                  └─ spine2 ─┴─ leaf2 ─ server3, server4

# Set by `lab up` (see options.sh), read back from the state directory later.
: "${SPINES:=2}" "${LEAVES:=2}" "${SERVERS:=4}" "${FAMILY:=4}" "${LOCATOR_FAMILY:=}"

ANYCAST4=192.168.0.1
ANYCAST6=2001:db8:192:168::1
CLIENT_NET4=20.1.1.0/24
CLIENT_NET6=2001:db8:20:1::/64

spines() { local i; for ((i = 1; i <= SPINES; i++)); do echo "spine$i"; done; }
leaves() { local i; for ((i = 1; i <= LEAVES; i++)); do echo "leaf$i"; done; }
servers() { local i; for ((i = 1; i <= SERVERS; i++)); do echo "server$i"; done; }
routers() { echo edge; spines; leaves; }
nodes() { echo client; routers; servers; }

# The trailing number of a node's name: spine2 -> 2, edge -> 1.
node_number() {
    local number=${1##*[a-z]}
    echo "${number:-1}"
}

# Servers fill the leaves in blocks of (nearly) equal size.
leaf_of() {
    local i
    i=$(node_number "$1")
    echo "leaf$(((i - 1) * LEAVES / SERVERS + 1))"
}

servers_of() {
    local server
    for server in $(servers); do
        [[ $(leaf_of "$server") != "$1" ]] || echo "$server"
    done
}

# Every link as "UPPER LOWER"; its name is UPPER-LOWER. The interface in a node
# bears the name of its peer.
links() {
    local spine leaf server
    echo "client edge"
    for spine in $(spines); do
        echo "edge $spine"
        for leaf in $(leaves); do echo "$spine $leaf"; done
    done
    for server in $(servers); do echo "$(leaf_of "$server") $server"; done
}

# Peers of a router or server that speak BGP with it.
bgp_peers() {
    local upper lower
    links | while read -r upper lower; do
        [[ $upper == client ]] && continue
        [[ $upper != "$1" ]] || echo "$lower"
        [[ $lower != "$1" ]] || echo "$upper"
    done
}

# Families of the service's addresses.
service_families() {
    case $FAMILY in
        4) echo 4 ;;
        6) echo 6 ;;
        both) echo 4 6 ;;
    esac
}

# Family of the locators.
locator_family() {
    local all
    all=$(service_families)
    echo "${LOCATOR_FAMILY:-${all%% *}}"
}

# Families that are routed.
families() {
    case $FAMILY$(locator_family) in
        44) echo 4 ;;
        66) echo 6 ;;
        *) echo 4 6 ;;
    esac
}

anycast() { if [[ $1 == 4 ]]; then echo "$ANYCAST4"; else echo "$ANYCAST6"; fi; }
client_net() { if [[ $1 == 4 ]]; then echo "$CLIENT_NET4"; else echo "$CLIENT_NET6"; fi; }
host_length() { if [[ $1 == 4 ]]; then echo 32; else echo 128; fi; }

# The address a node is known by. Servers: the locator. Routers: the source of
# their ICMP errors. IPv4 exists in every lab, for router ids.
loopback() { # FAMILY NODE
    local family=$1 node=$2 number
    number=$(node_number "$node")
    case $family:$node in
        4:server*) echo "10.0.0.$number" ;;
        4:edge) echo 10.255.0.1 ;;
        4:spine*) echo "10.255.1.$number" ;;
        4:leaf*) echo "10.255.2.$number" ;;
        6:server*) printf '2001:db8:10::%x\n' "$number" ;;
        6:edge) echo 2001:db8:255::1 ;;
        6:spine*) printf '2001:db8:255:1::%x\n' "$number" ;;
        6:leaf*) printf '2001:db8:255:2::%x\n' "$number" ;;
    esac
}

client_address() { if [[ $1 == 4 ]]; then echo 20.1.1.1; else echo 2001:db8:20:1::1; fi; }
edge_address() { if [[ $1 == 4 ]]; then echo 20.1.1.254; else echo 2001:db8:20:1::fe; fi; }

# RFC 7938, section 5.2.1: the spines share a number, so that a path which went
# down to a leaf and up again is refused (no valleys); leaves and servers have
# their own. Numbers from RFC 6996's 32-bit private range.
as_number() {
    local number
    number=$(node_number "$1")
    case $1 in
        edge) echo 4200000100 ;;
        spine*) echo 4200000200 ;;
        leaf*) echo $((4200000300 + number)) ;;
        server*) echo $((4200001000 + number)) ;;
    esac
}

# Which header fields a router hashes (net.ipv4.fib_multipath_hash_fields):
# 0x01 source, 0x02 destination, 0x04 protocol, 0x10 and 0x20 the ports. Each
# tier takes another set and each router another seed: with equal ones all
# routers would choose alike (polarisation). Kernels before 6.11 have no seed;
# there the sets alone tell the tiers apart.
hash_fields() {
    case $1 in
        edge) echo $((0x37)) ;;
        spine*) echo $((0x33)) ;;
        leaf*) echo $((0x35)) ;;
        *) echo $((0x37)) ;;
    esac
}

hash_seed() {
    local number
    number=$(node_number "$1")
    case $1 in
        edge) echo 1000003 ;;
        spine*) echo $((2000003 + 7919 * number)) ;;
        leaf*) echo $((3000017 + 104729 * number)) ;;
        *) echo 1 ;;
    esac
}

# --- what must be reachable -------------------------------------------------

# link_up A B: the link is not one that `lab fail` took down.
link_up() { [[ ! -e $LAB_DIR/failed/$1-$2 ]]; }

# Spines by which the edge and a leaf see each other.
spines_between_edge_and() {
    local spine count=0
    for spine in $(spines); do
        if link_up edge "$spine" && link_up "$spine" "$1"; then count=$((count + 1)); fi
    done
    echo $count
}

# Spines by which two leaves see each other.
spines_between_leaves() {
    local spine count=0
    for spine in $(spines); do
        if link_up "$spine" "$1" && link_up "$spine" "$2"; then count=$((count + 1)); fi
    done
    echo $count
}

# server_present SERVER: its processes run (see `stop_server`).
server_present() { [[ ! -e $LAB_DIR/absent/$1 ]]; }

# node_present NODE: the same, and always so for what is no server.
node_present() { [[ $1 != server* ]] || server_present "$1"; }

live_servers_of() {
    local server
    for server in $(servers_of "$1"); do
        if link_up "$1" "$server" && server_present "$server"; then echo "$server"; fi
    done
}

# Those that announce the service (see `lab withdraw`).
announcing_servers_of() {
    local server
    for server in $(live_servers_of "$1"); do
        if [[ ! -e $LAB_DIR/withdrawn/$server ]]; then echo "$server"; fi
    done
}

# expected_routes FAMILY NODE: lines "PREFIX NEXT_HOPS"; 0 means no route.
expected_routes() {
    local family=$1 node=$2
    case $node in
        edge) expected_at_edge "$family" ;;
        spine*) expected_at_spine "$family" "$node" ;;
        leaf*) expected_at_leaf "$family" "$node" ;;
        server*) expected_at_server "$family" "$node" ;;
    esac
}

expected_at_edge() {
    local family=$1 spine leaf server usable=0 count
    for spine in $(spines); do
        link_up edge "$spine" || continue
        for leaf in $(leaves); do
            if link_up "$spine" "$leaf" && [[ -n $(announcing_servers_of "$leaf") ]]; then
                usable=$((usable + 1))
                break
            fi
        done
    done
    echo "$(anycast "$family") $usable"
    for leaf in $(leaves); do
        count=$(spines_between_edge_and "$leaf")
        for server in $(live_servers_of "$leaf"); do
            echo "$(loopback "$family" "$server") $count"
        done
    done
}

expected_at_spine() {
    local family=$1 spine=$2 leaf server up usable=0
    for leaf in $(leaves); do
        up=0
        if link_up "$spine" "$leaf"; then up=1; fi
        for server in $(live_servers_of "$leaf"); do
            echo "$(loopback "$family" "$server") $up"
        done
        if ((up)) && [[ -n $(announcing_servers_of "$leaf") ]]; then usable=$((usable + 1)); fi
    done
    echo "$(anycast "$family") $usable"
    if link_up edge "$spine"; then echo "$(client_net "$family") 1"; fi
}

expected_at_leaf() {
    local family=$1 leaf=$2 other server count
    for server in $(live_servers_of "$leaf"); do
        echo "$(loopback "$family" "$server") 1"
    done
    count=$(announcing_servers_of "$leaf" | wc -l)
    # With no server of its own a leaf points at the others: not checked.
    if ((count)); then echo "$(anycast "$family") $count"; fi
    echo "$(client_net "$family") $(spines_between_edge_and "$leaf")"
    for other in $(leaves); do
        [[ $other != "$leaf" ]] || continue
        count=$(spines_between_leaves "$leaf" "$other")
        for server in $(live_servers_of "$other"); do
            echo "$(loopback "$family" "$server") $count"
        done
    done
}

expected_at_server() {
    local family=$1 server=$2 leaf up=0
    leaf=$(leaf_of "$server")
    if link_up "$leaf" "$server" && (($(spines_between_edge_and "$leaf") > 0)); then up=1; fi
    echo "$(client_net "$family") $up"
}
