# shellcheck shell=bash
# Namespaces, links, addresses and kernel settings of the lab. It starts no
# process and speaks no routing protocol.

ns() { echo "$LAB_PREFIX$1"; }
in_node() { local node=$1; shift; ip netns exec "$(ns "$node")" "$@"; }
node_exists() { [[ -e /run/netns/$(ns "$1") ]]; }

some_node_exists() {
    local node
    for node in $(nodes); do
        if node_exists "$node"; then return 0; fi
    done
    return 1
}

# The interface by which a server's kernel reaches the network.
host_interface() {
    if [[ $MODE == holdfast ]]; then echo host0; else leaf_of "$1"; fi
}

# Reads "KEY VALUE" lines and writes them below /proc/sys in a node. A key that
# this kernel lacks is skipped when it is marked with a leading "?".
set_sysctls() {
    # shellcheck disable=SC2016  # expanded by the inner shell
    in_node "$1" bash -c '
        while read -r key value; do
            path=/proc/sys/${key#\?}
            if [[ $key == \?* && ! -e $path ]]; then continue; fi
            printf "%s\n" "$value" >"$path" || exit 1
        done'
}

node_sysctls() {
    local node=$1 scope
    for scope in all default; do
        cat <<END
net/ipv4/conf/$scope/rp_filter 0
net/ipv4/conf/$scope/ignore_routes_with_linkdown 1
net/ipv4/conf/$scope/accept_redirects 0
net/ipv4/conf/$scope/send_redirects 0
net/ipv6/conf/$scope/disable_ipv6 0
net/ipv6/conf/$scope/accept_dad 0
net/ipv6/conf/$scope/accept_ra 0
net/ipv6/conf/$scope/accept_redirects 0
net/ipv6/conf/$scope/addr_gen_mode 0
net/ipv6/conf/$scope/keep_addr_on_down 1
END
    done
    # No duplicate-address detection and no random wait before the first
    # neighbour and router messages: links here are point to point.
    # The links are made later, and a kernel (6.1) refuses "all" for what a link down does to its routes.
    cat <<END
net/ipv6/conf/default/ignore_routes_with_linkdown 1
net/ipv6/conf/default/dad_transmits 0
net/ipv6/conf/default/router_solicitation_delay 0
END
    case $node in edge | spine* | leaf*) router_sysctls "$node" ;; esac
}

router_sysctls() {
    cat <<END
net/ipv4/ip_forward 1
net/ipv6/conf/all/forwarding 1
net/ipv6/conf/default/forwarding 1
net/ipv4/fib_multipath_hash_policy 3
net/ipv4/fib_multipath_hash_fields $(hash_fields "$1")
?net/ipv4/fib_multipath_hash_seed $(hash_seed "$1")
net/ipv6/fib_multipath_hash_policy 3
net/ipv6/fib_multipath_hash_fields $(hash_fields "$1")
END
}

make_nodes() {
    local node family
    for node in $(nodes); do
        ip netns add "$(ns "$node")"
        node_sysctls "$node" | set_sysctls "$node"
        ip -n "$(ns "$node")" link set lo up
        case $node in
            client) continue ;;
            server*)
                for family in $(families); do
                    add_address "$node" lo "$(anycast "$family")/$(host_length "$family")"
                done
                ;;
        esac
        for family in $(families); do
            add_address "$node" lo "$(loopback "$family" "$node")/$(host_length "$family")"
        done
    done
}

add_address() { # NODE INTERFACE ADDRESS/LENGTH
    local nodad=()
    [[ $3 != *:* ]] || nodad=(nodad)
    ip -n "$(ns "$1")" address add "$3" dev "$2" "${nodad[@]}"
}

make_links() {
    local upper lower
    while read -r upper lower; do make_link "$upper" "$lower"; done < <(links)
    number_client_link
}

make_link() { # UPPER LOWER
    if [[ -n $(uplink_of "$2") ]]; then
        take_interface "$1" "$2"
        return
    fi
    ip link add "$2" netns "$(ns "$1")" type veth peer name "$1" netns "$(ns "$2")"
    prepare_interface "$1" "$2"
    prepare_interface "$2" "$1"
}

# A veth leaves checksums and segmentation to hardware that is not there, and
# AF_XDP hands out frames as they are: so all of it is done in software, at once.
prepare_interface() { # NODE INTERFACE
    local node=$1 interface=$2
    in_node "$node" ethtool -K "$interface" \
        tx off rx off sg off tso off gso off gro off >/dev/null 2>&1 ||
        die "ethtool cannot turn the offloads of $interface in $node off"
    if [[ $node == server* && $MODE == holdfast ]]; then
        mute_uplink "$node" "$interface"
    fi
    ip -n "$(ns "$node")" link set "$interface" mtu "$(interface_mtu "$node" "$interface")" up
}

# The end that the appliance owns: the kernel must not speak on it.
mute_uplink() {
    echo "net/ipv6/conf/$2/disable_ipv6 1" | set_sysctls "$1"
    ip -n "$(ns "$1")" link set "$2" promisc on arp off
}

# The fabric carries tunnelled packets and needs room for the outer header; the
# hosts keep to the client's MTU.
interface_mtu() { # NODE INTERFACE
    case $1:$2:$MODE in
        client:* | edge:client:* | server*:plain) echo "$HOST_MTU" ;;
        *) echo "$FABRIC_MTU" ;;
    esac
}

number_client_link() {
    local family length
    for family in $(families); do
        length=$(client_net "$family")
        length=${length##*/}
        add_address client edge "$(client_address "$family")/$length"
        add_address edge client "$(edge_address "$family")/$length"
        ip -n "$(ns client)" "-$family" route add default via "$(edge_address "$family")"
    done
}

# A port of the server's kernel for what it sends to clients: holdfastd then sees
# only what comes in. Made when the leaf's and the server's own links are there.
make_reply_links() {
    local server leaf family mac address
    for server in $(servers); do
        leaf=$(leaf_of "$server")
        ip link add "$server-out" netns "$(ns "$leaf")" type veth peer name replies netns "$(ns "$server")"
        prepare_interface "$leaf" "$server-out"
        in_node "$server" ethtool -K replies tx off rx off sg off tso off gso off gro off >/dev/null 2>&1
        ip -n "$(ns "$server")" link set replies mtu "$HOST_MTU" up
        mac=$(ip -n "$(ns "$leaf")" -json link show "$server-out" | jq -r '.[0].address')
        for family in $(families); do
            # Any address does on a link between two.
            if [[ $family == 4 ]]; then address=169.254.0.1; else address=fe80::1; fi
            ip -n "$(ns "$server")" neigh replace "$address" lladdr "$mac" dev replies nud permanent
            ip -n "$(ns "$server")" "-$family" route add "$(client_net "$family")" \
                via "$address" dev replies onlink metric 5
        done
    done
}

remove_nodes() {
    local path name
    for path in /run/netns/"$LAB_PREFIX"*; do
        [[ -e $path ]] || continue
        name=${path##*/}
        # Another prefix may begin like this one: only names that a lab gives.
        [[ ${name#"$LAB_PREFIX"} =~ ^(client|edge|spine[0-9]+|leaf[0-9]+|server[0-9]+)$ ]] || continue
        ip netns delete "$name" || warn "namespace $name could not be removed"
    done
}
