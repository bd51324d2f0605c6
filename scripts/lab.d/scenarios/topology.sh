# shellcheck shell=bash
# Links, routers and servers that come and go.

# Time for idle sessions to ask after a mark (--probe-delay-ms) and all to move.
PROBE=(--probe-delay-ms 1500)

# change COMMAND...: says so to the load, does it, and gives sessions time to move.
change() {
    load_mark "$1"
    "$@"
    wait_until_sound 40 || fault "the routes did not settle"
    sleep 3
}

fail_links() { local link; for link in "$@"; do fail_link "$link"; done; }
heal_links() { local link; for link in "$@"; do heal_link "$link"; done; }

links_of() { links | awk -v node="$1" '$1 == node || $2 == node { print $1 "-" $2 }'; }

start_mix() { # [PERCENT [ARGUMENT...]]
    local mix
    mapfile -t mix < <(load_mix "${1:-100}")
    load_start "${PROBE[@]}" "${mix[@]}" "${@:2}"
    sleep 1
}

# Of clients that ask. One that only receives sends nothing that could be answered by a
# reset: it waits, as TCP does.
start_asking() { load_start "${PROBE[@]}" --idle 90 --request 70 --bulk 0 --echo 40; }

scenario link-fails "R4 R5" "4:gue 6:gue! 4:ipip 6:ipip 4:rewrite 6:rewrite 4in6:gue 6in4:gue 4in6:ipip 6in4:ipip"
run_link_fails() {
    start_mix
    change fail_link spine1-leaf2
    change heal_link spine1-leaf2
}

scenario both-families "R4 R5" "both:gue both:ipip"
run_both_families() {
    start_mix 60
    change fail_link spine1-leaf2
    change heal_link spine1-leaf2
}

scenario edge-link-fails "R4 R5" "4:gue 6:gue"
run_edge_link_fails() {
    start_mix
    change fail_link edge-spine1
    change heal_link edge-spine1
}

scenario server-link-blinks "R5 R13" "4:gue 6:gue"
run_server_link_blinks() {
    start_mix
    load_mark fail
    fail_link leaf1-server1
    # Long enough that BGP sends its flows elsewhere, and shorter than a death.
    sleep 1
    change heal_link leaf1-server1
}

scenario spine-fails "R4 R5" "4:gue 6:gue"
run_spine_fails() {
    local dead
    start_mix
    mapfile -t dead < <(links_of spine1)
    change fail_links "${dead[@]}"
    change heal_links "${dead[@]}"
}

scenario spine-added "R4 R5" "4:gue 6:gue"
run_spine_added() {
    local new
    mapfile -t new < <(links_of spine2)
    fail_links "${new[@]}"
    wait_until_sound 40
    start_mix
    change heal_links "${new[@]}"
}

# The server's processes are not there until it is added.
scenario server-added "R4 R5" "4:gue 6:gue" --servers 5
run_server_added() {
    stop_server TERM server5
    wait_until_sound 40
    start_mix
    change start_server server5
    prove "sessions that server5 redirects" "$(counter redirect_installed server5)"
}

scenario server-drained "R4 R5" "4:gue 6:gue 4:rewrite"
run_server_drained() {
    local before
    start_mix
    change withdraw server2
    before=$(counter syn_to_host server2)
    # Nothing new comes to it, and what it has lives on.
    in_node client bash -c "for i in {1..30}; do curl -sS -o /dev/null --max-time 5 http://$(url_host \
        "$(anycast "$(first_family)")")/; done" || fault "the others do not serve"
    expect "new sessions on the drained server" $(($(counter syn_to_host server2) - before)) 0
    prove "tunnelled segments that reached it" "$(counter tunnel_received server2)"
    change announce server2
}

scenario two-failures "R4 R5" "4:gue 6:gue" --spines 3
run_two_failures() {
    start_mix
    change fail_links spine1-leaf1 spine2-leaf2
    change heal_links spine1-leaf1 spine2-leaf2
}

scenario link-flaps "R4 R5" "4:gue 6:gue"
run_link_flaps() {
    local i
    start_mix
    load_mark flap
    for ((i = 0; i < 8; i++)); do
        fail_link spine1-leaf2
        sleep 0.4
        heal_link spine1-leaf2
        sleep 0.6
    done
    wait_until_sound 40 || fault "the routes did not settle"
    load_mark settled
    sleep 4
}

# What servers send takes spine2, what clients send spine1.
scenario asymmetric-return "R4 R5" "4:gue 6:gue"
run_asymmetric_return() {
    local leaf family before
    for family in $(families); do
        for leaf in $(leaves); do return_by "$family" "$leaf" spine2; done
    done
    start_mix
    before=$(sent_to leaf2 spine1)
    load_mark fail
    fail_link spine1-leaf1
    sleep 6
    load_mark heal
    heal_link spine1-leaf1
    sleep 6
    # BGP's own packets go that way, a few a second.
    expect "bulk that returned by spine1, in MiB" $((($(sent_to leaf2 spine1) - before) >> 20)) 0
}

return_by() { # FAMILY LEAF SPINE
    local gateway
    gateway=$(ip -n "$(ns "$2")" "-$1" -json route show "$(client_net "$1")" |
        jq -r --arg dev "$3" '[.[] | (.nexthops // [.])[] | select(.dev == $dev) | .gateway // .via.host][0]')
    ip -n "$(ns "$2")" "-$1" route add "$(client_net "$1")" via "$gateway" dev "$3" onlink metric 5
}

sent_to() { ip -n "$(ns "$1")" -json -s link show "$2" | jq '.[0].stats64.tx.bytes'; }

# Its sessions cannot live, and their clients learn so; no other session suffers.
scenario server-dies "R13" "4:gue 6:gue"
run_server_dies() {
    local lost
    start_asking
    lost=$(sessions_on server1)
    prove "sessions on server1" "$lost"
    load_mark death
    fail_link leaf1-server1
    stop_server KILL server1
    wait_until_sound 40 || fault "the routes did not settle"
    sleep 16
    load_mark after
    sleep 4
    expect "sessions that have failed by now" "$(load_failed)" "$lost"
    load_end
    expect "of these, on server1" "$(sessions_lost_on server1)" "$lost"
    EXPECTED_RESET=$lost
}

# All that a leaf's servers had is lost with it.
scenario leaf-fails "R13" "4:gue 6:gue"
run_leaf_fails() {
    local dead lost
    start_asking
    lost=$(($(sessions_on server1) + $(sessions_on server2)))
    prove "sessions behind leaf1" "$lost"
    mapfile -t dead < <(links_of leaf1 | grep spine)
    load_mark death
    fail_links "${dead[@]}"
    sleep 18
    load_mark after
    sleep 4
    expect "sessions that have failed by now" "$(load_failed)" "$lost"
    load_end
    expect "of these, behind leaf1" $(($(sessions_lost_on server1) + $(sessions_lost_on server2))) "$lost"
    EXPECTED_RESET=$lost
}

# sessions_on SERVER: those that the load has opened there.
sessions_on() {
    local name
    for name in "${LOADS[@]}"; do load_event "$name" ready; done |
        jq -s --arg server "$1" '[.[].by_server[$server] // {} | .[]] | add // 0'
}

sessions_lost_on() {
    jq -s --arg server "$1" '[.[].per_session[] | select(.server == $server and .outcome != "ok")] | length' \
        "$RUN_DIR"/load-*.json
}
