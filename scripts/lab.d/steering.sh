# shellcheck shell=bash
# Sends a kind of packet to a chosen server: routes by firewall mark on every
# router, in front of ECMP. What it does happens in real networks by chance; a
# scenario needs it now.

STEERING_TABLE=100 # and the server's number: routing table and mark

# Routes to each server by itself, taken from those that BGP has found. When one
# fails, its packets go by ECMP again.
make_steering_routes() {
    local family node server
    for node in $(routers); do
        for server in $(servers); do
            server_present "$server" || continue
            for family in $(families); do steering_route "$family" "$node" "$server"; done
        done
    done
}

steering_route() { # FAMILY NODE SERVER
    local family=$1 node=$2 server=$3 next number gateway table
    number=$(node_number "$server")
    table=$((STEERING_TABLE + number))
    case $node in
        edge) next=spine$((number % SPINES + 1)) ;;
        spine*) next=$(leaf_of "$server") ;;
        *)
            [[ $(leaf_of "$server") == "$node" ]] || return 0
            next=$server
            ;;
    esac
    gateway=$(ip -n "$(ns "$node")" "-$family" -json route show "$(anycast "$family")" |
        jq -r --arg dev "$next" '[.[] | (.nexthops // [.])[] | select(.dev == $dev) | .gateway // .via.host][0] // empty')
    # No route by this one now: a failed link, or nobody announces behind it.
    [[ -n $gateway ]] || return 0
    local via=(via "$gateway")
    [[ $gateway != *:* || $family == 6 ]] || via=(via inet6 "$gateway")
    ip -n "$(ns "$node")" "-$family" route replace "$(anycast "$family")" "${via[@]}" dev "$next" onlink table "$table"
    if ! ip -n "$(ns "$node")" "-$family" rule show | grep -q "fwmark 0x$(printf %x "$table") "; then
        ip -n "$(ns "$node")" "-$family" rule add fwmark "$table" lookup "$table" priority "$table"
    fi
}

# steer [MATCH SERVER]...: from now on packets to the service that match go to that
# server; later ones win. Matches: all, syn (a client's first segment), icmp
# (errors), or an expression of nft. Without any: as ECMP says.
steer() {
    local rules='' family address
    while (($#)); do
        for family in $(service_families); do
            if [[ $family == 4 ]]; then address="ip daddr"; else address="ip6 daddr"; fi
            rules+="$address $(anycast "$family") $(steering_match "$family" "$1")"
            rules+=" meta mark set $((STEERING_TABLE + $(node_number "$2")))"$'\n'
        done
        shift 2
    done
    local node
    for node in $(routers); do
        in_node "$node" nft -f - <<END_OF_RULES
table inet steering {}
delete table inet steering
table inet steering {
chain prerouting {
type filter hook prerouting priority mangle; policy accept;
$rules
}
}
END_OF_RULES
    done
}

steering_match() { # FAMILY MATCH
    case $1:$2 in
        *:all) ;;
        # What is behind a later fragment's header are no ports and flags.
        4:syn) echo "ip frag-off & 0x1fff == 0 tcp flags & (syn | ack) == syn" ;;
        6:syn) echo "tcp flags & (syn | ack) == syn" ;;
        4:icmp) echo "icmp type { destination-unreachable, time-exceeded }" ;;
        6:icmp) echo "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded }" ;;
        *) echo "$2" ;;
    esac
}

# filter NODE NAME RULES: a table of its own in a node, with chains as given; with
# no rules it is removed.
filter() {
    {
        printf 'table inet %s {}\ndelete table inet %s\n' "$2" "$2"
        [[ -z ${3:-} ]] || printf 'table inet %s {\n%s\n}\n' "$2" "$3"
    } | in_node "$1" nft -f -
}
