# shellcheck shell=bash
# Handshakes whose packets reach different servers.

# start_steered [ARGUMENT...]: while sessions are opened, and after, SYNs go to one
# server and all else to another on another leaf.
start_steered() {
    local mix
    mapfile -t mix < <(load_mix 100)
    make_steering_routes
    steer all server3 syn server1
    load_start "${PROBE[@]}" "${mix[@]}" "$@"
    prove "segments that reached server3 as strays" "$(counter miss server3)"
    prove "sessions that server1 has opened" "$(counter session_opened server1)"
}

scenario ack-elsewhere "R3 R5" "4:gue! 6:gue 4:rewrite"
run_ack_elsewhere() {
    start_steered
    sleep 3
    load_mark back
    steer
    sleep 5
}

# Every session is opened, used and closed with its ACKs going elsewhere.
scenario churn-elsewhere "R3 R5 R8" "4:gue 6:gue 4:ipip 4:rewrite"
run_churn_elsewhere() {
    SESSIONS_MIN=40
    make_steering_routes
    steer all server3 syn server1
    load_start "${PROBE[@]}" --idle 0 --request 0 --bulk 0 --churn 40 --churn-pause-ms 100
    sleep 10
}

scenario churn-while-links-fail "R2 R5 R8" "4:gue 6:gue"
run_churn_while_links_fail() {
    local i
    load_start "${PROBE[@]}" --idle 0 --request 120 --bulk 0 --echo 60 --churn 40 --churn-pause-ms 100
    for ((i = 0; i < 4; i++)); do
        fail_link spine1-leaf2
        sleep 1.5
        heal_link spine1-leaf2
        sleep 1.5
    done
}

# The first server's SYN-ACKs are lost; the client's next SYN reaches another one.
# Its segments then reach a third.
scenario syn-elsewhere "R2 R5 R12" "4:gue 6:gue"
run_syn_elsewhere() {
    local mix family name
    mapfile -t mix < <(load_mix 100)
    make_steering_routes
    steer all server1
    filter leaf1 lossy 'chain forward {
        type filter hook forward priority 0; policy accept;
        tcp flags & (syn | ack) == syn | ack counter drop
    }'
    for family in $(service_families); do
        load_start_one "$family" "$family" "${PROBE[@]}" "${mix[@]}" --ramp-ms 700
    done
    sleep 0.9
    prove "SYN-ACKs of server1 that were lost" "$(filtered leaf1 lossy)"
    steer all server4 syn server3
    for name in "${LOADS[@]}"; do load_wait_event "$name" ready 60; done
    load_check_opened
    prove "sessions that server3 has opened" "$(counter session_opened server3)"
    expect "sessions on server1" "$(sessions_on server1)" 0
    # It repeats its SYN-ACKs: the clients must not hear of them any more.
    filter leaf1 lossy
    load_mark settled
    sleep 8
    prove "SYN-ACKs of server1 that were withheld" "$(counter host_withheld server1)"
}

# Packets that a filter's first counter has counted.
filtered() { # NODE TABLE
    in_node "$1" nft -j list table inet "$2" | jq '[.. | .counter? // empty | .packets] | add // 0'
}

scenario data-with-ack "R3 R5" "4:gue 6:gue"
run_data_with_ack() {
    start_steered --data-with-ack
    sleep 3
    load_mark back
    steer
    sleep 5
}

# The server keeps nothing until the ACK, which comes by another server.
scenario syn-cookies "R3 R5 R7" "4:gue 6:gue"
run_syn_cookies() {
    local server
    for server in $(servers); do echo net/ipv4/tcp_syncookies 2 | set_sysctls "$server"; done
    start_steered
    prove "SYN cookies sent" "$(kernel_counter server1 TcpExtSyncookiesSent)"
    prove "SYN cookies taken" "$(kernel_counter server1 TcpExtSyncookiesRecv)"
    sleep 3
    load_mark back
    steer
    sleep 5
}

# Data in the SYN passes, and such sessions move like others.
scenario fast-open "R2 R3" "4:gue 6:gue"
prepare_fast_open() { NGINX_LISTEN="fastopen=256"; }
run_fast_open() {
    local family server i
    SESSIONS_MIN=0 NEEDS_REDIRECTS=true
    for server in $(servers); do echo net/ipv4/tcp_fastopen 3 | set_sysctls "$server"; done
    echo net/ipv4/tcp_fastopen 1 | set_sysctls client
    make_steering_routes
    steer all server3 syn server1
    for family in $(service_families); do
        for i in {1..40}; do
            in_node client curl -sS --tcp-fastopen --max-time 10 "http://$(url_host "$(anycast "$family")")/?id=$i" |
                grep -qx "holdfast lab $i" || fault "request $i was not answered"
        done
    done
    prove "sessions that began with data in the SYN" "$(kernel_counter server1 TcpExtTCPFastOpenPassive)"
}
