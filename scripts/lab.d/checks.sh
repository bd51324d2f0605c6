# shellcheck shell=bash
# Is the lab as it should be? Routes, BGP sessions, answers, processes. It only
# looks.

# next_hops FAMILY NODE: lines "PREFIX COUNT" of the routes in the kernel.
next_hops() {
    ip -n "$(ns "$2")" "-$1" -json route show 2>/dev/null | jq -r '
        def alive: (.flags // []) | (contains(["dead"]) or contains(["linkdown"])) | not;
        group_by(.dst)[]
        | [.[0].dst, ([.[] | if .nexthops then .nexthops[] else . end | select(alive)] | length)]
        | "\(.[0]) \(.[1])"'
}

# The first route that is not as expected, in words; nothing when all are.
route_fault() {
    local family node fault
    for family in $(families); do
        for node in $(routers) $(servers); do
            node_present "$node" || continue
            fault=$(awk -v node="$node" '
                NR == FNR { have[$1] = $2; next }
                have[$1] + 0 != $2 {
                    printf "%s: %s has %d of %d next hops\n", node, $1, have[$1], $2
                    exit
                }' <(next_hops "$family" "$node") <(expected_routes "$family" "$node"))
            if [[ -n $fault ]]; then
                echo "$fault"
                return 0
            fi
        done
    done
}

# bgp_sessions NODE: "ESTABLISHED CONFIGURED"
bgp_sessions() {
    vtysh_in "$1" 'show bgp summary json' | jq -rs '
        (first // {}) | [.[] | objects | .peers // {} | to_entries[]]
        | group_by(.key) | map(all(.value.state == "Established"))
        | "\(map(select(.)) | length) \(length)"' 2>/dev/null || echo "0 0"
}

# Sessions that should stand: those over links not taken down by `lab fail`.
bgp_sessions_expected() {
    local upper lower count=0
    while read -r upper lower; do
        if [[ $upper == client ]] || ! node_present "$lower"; then continue; fi
        if [[ $upper == "$1" || $lower == "$1" ]] && link_up "$upper" "$lower"; then
            count=$((count + 1))
        fi
    done < <(links)
    echo $count
}

bgp_fault() {
    local node got expected _
    for node in $(routers) $(servers); do
        node_present "$node" || continue
        read -r got _ < <(bgp_sessions "$node")
        expected=$(bgp_sessions_expected "$node")
        if ((got != expected)); then
            echo "$node: $got of $expected BGP sessions established"
            return 0
        fi
    done
}

url_host() { if [[ $1 == *:* ]]; then echo "[$1]"; else echo "$1"; fi; }

server_answers() { # FAMILY SERVER
    local answer
    answer=$(in_node client curl -sS --max-time 2 \
        "http://$(url_host "$(loopback "$1" "$2")"):$HEALTH_PORT/" 2>/dev/null) && [[ $answer == "$2" ]]
}

anycast_answers() { # FAMILY
    in_node client curl -sS --max-time 2 -o /dev/null \
        "http://$(url_host "$(anycast "$1")"):$SERVICE_PORT/" 2>/dev/null
}

answer_fault() {
    local family server
    for family in $(families); do
        for server in $(servers); do
            # A server whose only link was taken down cannot answer.
            if ! link_up "$(leaf_of "$server")" "$server" || ! server_present "$server"; then continue; fi
            if ! server_answers "$family" "$server"; then
                echo "$server does not answer at $(loopback "$family" "$server"):$HEALTH_PORT"
                return 0
            fi
        done
        if ! anycast_answers "$family"; then
            echo "nothing answers at $(anycast "$family"):$SERVICE_PORT"
            return 0
        fi
    done
}

# In holdfast mode every server must know all others. With a server cut off by
# `lab fail` nobody can: then it is not asked.
dht_fault() {
    local server leaf known present=0
    [[ $MODE == holdfast ]] || return 0
    for server in $(servers); do
        server_present "$server" || continue
        present=$((present + 1))
        leaf=$(leaf_of "$server")
        link_up "$leaf" "$server" && (($(spines_between_edge_and "$leaf") > 0)) || return 0
    done
    for server in $(servers); do
        server_present "$server" || continue
        known=$("$HOLDFASTCTL" --socket "$(node_dir "$server")/holdfastd.sock" --json show peers 2>/dev/null |
            jq '[.peers[] | select(.state == "alive")] | length' 2>/dev/null) || known=0
        if ((${known:-0} != present - 1)); then
            echo "$server: holdfastd knows ${known:-0} of $((present - 1)) other servers"
            return 0
        fi
    done
}

# wait_until_sound SECONDS: until routes, sessions and servers are all right.
wait_until_sound() {
    local start check fault
    start=$(now_us)
    for check in route_fault bgp_fault answer_fault dht_fault; do
        until fault=$($check) && [[ -z $fault ]]; do
            if (($(now_us) - start > $1 * 1000000)); then
                say "not sound after $1 s: ${fault:-$check could not look}"
                return 1
            fi
            sleep 0.05
        done
        case $check in
            route_fault) say "  routes are complete after $(seconds_since "$start") s" ;;
            bgp_fault) say "  BGP sessions stand after $(seconds_since "$start") s" ;;
            answer_fault) say "  every server answers after $(seconds_since "$start") s" ;;
            dht_fault) if [[ $MODE == holdfast ]]; then say "  the DHT is whole after $(seconds_since "$start") s"; fi ;;
        esac
    done
}

# --- status -------------------------------------------------------------------

# What a node must run.
daemons_of() {
    case $1 in
        client) ;;
        server*)
            echo zebra bgpd nginx
            [[ $MODE != holdfast ]] || echo holdfastd
            ;;
        *) echo zebra bgpd ;;
    esac
}

print_status() {
    local node faults=0
    printf 'mode %s, family %s, %s\n\n' "$MODE" "$FAMILY" "$LAB_DIR"
    printf '%-10s %-9s %-30s %s\n' NODE BGP DAEMONS "NEXT HOPS TO $(anycast "$(first_family)")"
    for node in $(nodes); do
        print_node_status "$node" || faults=1
    done
    printf '\n%-16s %s\n' LINK STATE
    print_link_status || faults=1
    return $faults
}

first_family() { local all; all=$(service_families); echo "${all%% *}"; }

print_node_status() {
    local node=$1 bgp='-' got configured daemon running='' fault=0 hops='-'
    if ! node_exists "$node"; then
        printf '%-10s missing\n' "$node"
        return 1
    fi
    for daemon in $(daemons_of "$node"); do
        if process_of "$(node_dir "$node")/$daemon.pid" >/dev/null; then
            running+=" $daemon"
        else
            running+=" ($daemon DOWN)"
            fault=1
        fi
    done
    if [[ $node != client ]]; then
        read -r got configured < <(bgp_sessions "$node")
        bgp="$got/$configured"
        ((got == configured && got > 0)) || fault=1
        hops=$(next_hops "$(first_family)" "$node" |
            awk -v dst="$(anycast "$(first_family)")" '$1 == dst { print $2 }')
    fi
    if [[ $node == server* ]]; then hops=local; fi
    running=${running# }
    printf '%-10s %-9s %-30s %s\n' "$node" "$bgp" "${running:--}" "${hops:-none}"
    return $fault
}

print_link_status() {
    local upper lower state fault=0
    while read -r upper lower; do
        state=$(ip -n "$(ns "$upper")" -json link show "$lower" 2>/dev/null | jq -r '.[0].operstate // empty')
        link_up "$upper" "$lower" || state="down, by lab fail"
        [[ $state == UP ]] || fault=1
        printf '%-16s %s\n' "$upper-$lower" "${state:-missing}"
    done < <(links)
    return $fault
}
