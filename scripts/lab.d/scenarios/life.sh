# shellcheck shell=bash
# How sessions end, or do not, while they are not where the network thinks.

# move_all [SERVER]: every segment but SYNs now reaches this server.
move_all() { steer all "${1:-server3}" syn server1; }

start_on_server1() {
    make_steering_routes
    steer all server1
    load_start "${PROBE[@]}" --request 0 --bulk 0 "$@"
}

# Sessions of which one direction is closed live on for more than a minute, and move.
scenario half-close "R8" "4:gue 6:gue"
run_half_close() {
    start_on_server1 --idle 0 --half-close 100 --host-close 100 --half-close-s 75
    sleep 5
    move_all
    load_mark moved
    sleep 60
    move_all server4
    load_mark "moved again"
    load_end 60
}

scenario resets "R8" "4:gue 6:gue"
run_resets() {
    start_on_server1 --idle 0 --server-reset 100 --client-reset 100
    move_all
    load_mark moved
    sleep 4
    load_end 60
    # What is over leaves the table after its linger.
    prove "sessions in the table that are over" "$(sessions_in_state server1 reset)"
}

sessions_in_state() { # SERVER STATE
    "$HOLDFASTCTL" --socket "$(node_dir "$1")/holdfastd.sock" --json sessions list --limit 10000 --state "$2" |
        jq '.sessions | length'
}

# Segments are lost while sessions are opened, used and closed by way of another server.
scenario lossy-close "R8" "4:gue 6:gue"
run_lossy_close() {
    SESSIONS_MIN=40
    make_steering_routes
    steer all server3 syn server1
    filter edge lossy 'chain forward {
        type filter hook forward priority 0; policy accept;
        meta l4proto tcp numgen random mod 20 == 0 counter drop
    }'
    load_start "${PROBE[@]}" --idle 0 --request 0 --bulk 0 --churn 60 --churn-pause-ms 200
    sleep 15
    prove "segments lost" "$(filtered edge lossy)"
    filter edge lossy
    load_end 90
}

# Older than any entry of the table may be: the kernel still holds the sockets.
scenario idle-beyond-age "R1 R7" "4:gue 6:gue"
prepare_idle_beyond_age() { SESSIONS_KEYS='established_idle = "1m"
kernel_check = "10s"'; }
run_idle_beyond_age() {
    start_on_server1 --idle 200
    sleep 80
    move_all
    load_mark moved
    sleep 5
}

# The client's machine restarts without a word and uses the same ports again; its new
# sessions land elsewhere than the old ones, which their server still holds.
scenario client-crashes "R2 R12" "4:gue! 6:gue 6:ipip 4:rewrite"
run_client_crashes() {
    start_on_server1 --idle 100 --echo 100 --source-port-first 20000
    crash_client
    steer all server4 syn server3
    load_start "${PROBE[@]}" --idle 100 --request 0 --bulk 0 --echo 100 --source-port-first 20000
    prove "sessions on server3" "$(sessions_on server3)"
    sleep 3
    # The old owner redirects what it held itself.
    steer all server1
    load_mark "to where the old ones are"
    sleep 6
    prove "sessions that the old owner redirects" "$(counter tunnel_sent server1)"
}

crash_client() {
    local name input
    # No FIN leaves it.
    ip -n "$(ns edge)" link set client down
    for name in "${LOADS[@]}"; do
        end_daemon KILL "load-$name" session-load
        input=${LOAD_INPUT[$name]}
        exec {input}>&-
        rm -rf "$(load_dir "$name")"
    done
    LOADS=()
    ip -n "$(ns edge)" link delete client
    ip netns delete "$(ns client)"
    ip netns add "$(ns client)"
    node_sysctls client | set_sysctls client
    ip -n "$(ns client)" link set lo up
    make_link client edge
    number_client_link
    sleep 0.5
}

# Closed by the host, whose kernel is in TIME_WAIT, and opened again by the same ports.
scenario ports-reused "R8 R12" "4:gue 6:gue 6:ipip 4:rewrite"
run_ports_reused() {
    local i
    SESSIONS_MIN=200
    make_steering_routes
    # Its own TIME_WAIT does not keep the client from it.
    echo net/ipv4/tcp_tw_reuse 1 | set_sysctls client
    for i in 1 3 2 4; do
        steer all server4 syn "server$i"
        load_start "${PROBE[@]}" --idle 100 --request 0 --bulk 0 --client-reset 100 --source-port-first 30000
        sleep 1
        load_end 60
        sleep 1.2
    done
}
