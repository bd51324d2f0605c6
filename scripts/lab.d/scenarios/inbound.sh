# shellcheck shell=bash
# Replies that do not pass through the appliance, and what it must not touch.

INBOUND=(--inbound-only)

prepare_inbound() { HOST_PORT_KEYS='inbound_only = true'; }

scenario inbound-only "R3 R5" "4:gue! 6:gue 4:rewrite" "${INBOUND[@]}"
prepare_inbound_only() { prepare_inbound; }
run_inbound_only() {
    start_mix
    expect "segments of the service that holdfastd saw leave" "$(counter mss_clamped)" 0
    change fail_link spine1-leaf2
    change heal_link spine1-leaf2
}

scenario inbound-only-elsewhere "R3 R5" "4:gue 6:gue" "${INBOUND[@]}"
prepare_inbound_only_elsewhere() { prepare_inbound; }
run_inbound_only_elsewhere() {
    start_steered
    sleep 3
    load_mark back
    steer
    sleep 5
}

# The ends that only the host's FIN or RST shows are found in the kernel.
scenario inbound-only-ends "R7 R8" "4:gue 6:gue" "${INBOUND[@]}"
prepare_inbound_only_ends() {
    prepare_inbound
    SESSIONS_KEYS='linger = "5s"'
}
run_inbound_only_ends() {
    SESSIONS_MIN=200 NEEDS_REDIRECTS=false
    make_steering_routes
    steer all server1
    load_start "${PROBE[@]}" --idle 60 --request 0 --bulk 0 --server-reset 100 --churn 40
    prove "sessions in the table" "$(table_local server1)"
    sleep 5
    load_end 60
    sleep 40
    expect "sessions left in the table" "$(table_local server1)" 0
}

table_local() {
    "$HOLDFASTCTL" --socket "$(node_dir "$1")/holdfastd.sock" --json show stats | jq .table.local
}

scenario inbound-only-killed "R7 R13" "4:gue 6:gue" "${INBOUND[@]}"
prepare_inbound_only_killed() { prepare_inbound; }
run_inbound_only_killed() {
    start_mix
    change restart_holdfastd KILL server1
    change fail_link spine1-leaf2
    change heal_link spine1-leaf2
}

# Everything that is no service's passes, both ways, while sessions are redirected.
scenario pass-through "R5" "4:gue 6:gue"
run_pass_through() {
    local family server locator
    start_steered
    for family in $(families); do
        for server in $(servers); do
            locator=$(loopback "$family" "$server")
            in_node client ping -q -c 3 -i 0.2 -W 2 "$locator" >/dev/null || fault "no ping of $server"
            in_node client ping -q -c 2 -i 0.2 -W 2 -s 1400 "$locator" >/dev/null || fault "no large ping of $server"
            server_answers "$family" "$server" || fault "$server does not answer at its locator"
            # From the server outwards, with neighbours asked anew.
            ip -n "$(ns "$server")" -6 neigh flush dev host0 nud reachable
            in_node "$server" ping -q -c 2 -i 0.2 -W 2 -I "$locator" "$(client_address "$family")" >/dev/null ||
                fault "$server cannot ping"
        done
    done
    prove "frames passed" "$(counter passed)"
    prove "neighbour entries that the leaf found" "$(in_node leaf1 ip -6 neigh show dev server1 | grep -c lladdr)"
    wait_until_sound 10 || fault "BGP does not stand"
}
