# shellcheck shell=bash disable=SC2016 # a guest expands what is in single quotes
# The cases: each opens sessions at server1, lets something happen, and judges. All run in one start
# of the machines. The sessions' server is server1; what moves arrives at server2.

CASES=()
declare -A CASE_TEXT=() CASE_HOST_PORT=()

# add_case NAME HOST_PORT TEXT: the function case_NAME, with - as _, is what happens.
add_case() {
    CASES+=("$1")
    CASE_HOST_PORT[$1]=$2
    CASE_TEXT[$1]=$3
}

FAULTS=()
fault() {
    FAULTS+=("$*")
    say "  fault: $*"
}

# --- what can happen --------------------------------------------------------------------

add_case tap tap "host port TAP: sessions move to the other server and come back"
case_tap() { move_and_back; }

move_and_back() {
    load_start
    load_tell mark
    send_service_to server2
    sleep 5
    send_service_to server1
    sleep 2
}

add_case link tap "the uplink of the sessions' server loses its link, and has it again"
case_link() {
    load_start
    load_tell mark
    set_link server1 off
    expect_link server1 false
    send_service_to server2
    sleep 2
    set_link server1 on
    expect_link server1 true
    sleep 3
}

# set_link SERVER on|off: at both ends, as when a cable is pulled.
set_link() {
    tell_monitor "$1" "set_link uplink $2"
    tell_monitor router "set_link $1 $2"
}

# The daemon follows the link: true or false in its statistics.
expect_link() {
    local tries is
    for ((tries = 0; tries < 20; tries++)); do
        is=$(statistics "$1" | jq '.ports[] | select(.role == "uplink").link_up')
        [[ $is != "$2" ]] || return 0
        sleep 0.3
    done
    fault "$1's daemon says after 6 s that link_up is $is, not $2"
}

add_case killed tap "the daemon of the sessions' server is killed, and takes its VF again"
case_killed() {
    load_start
    load_tell mark
    send_service_to server2
    sleep 1
    in_machine server1 5 'kill -KILL $(cat /run/holdfastd.pid)'
    expect_restart server1
    sleep 3
}

# note_daemon SERVER: what it says of itself now, and how long its log is.
note_daemon() {
    statistics "$1" >"$CASE_DIR/$1-before.json"
    in_machine "$1" 5 "wc -l <$DAEMON_LOG" >"$CASE_DIR/$1-lines"
}

# expect_restart SERVER [REASON]: another daemon runs than when it was noted, and the log says since
# then why.
expect_restart() {
    local pid tries log
    pid=$(jq .pid "$CASE_DIR/$1-before.json")
    for ((tries = 0; tries < 60; tries++)); do
        [[ $(statistics "$1" | jq .pid) =~ ^("$pid"|)$ ]] || break
        sleep 0.5
    done
    ((tries < 60)) || fault "the daemon of $1 was not started again within 30 s"
    log=$(in_machine "$1" 5 "tail -n +$(($(cat "$CASE_DIR/$1-lines") + 1)) $DAEMON_LOG")
    grep -E 'ERROR|holdfastd ended' <<<"$log" | cut -c 1-200 | sed 's/^/  /' >&2 || true
    [[ $(tr '\n' ' ' <<<"$log") =~ ${2:-} ]] || fault "the log of $1's daemon does not say '$2'"
}

add_case reset tap "the VF of the sessions' server is reset, then its PF; the daemon ends with an error and starts anew"
case_reset() {
    load_start
    load_tell mark
    send_service_to server2
    sleep 1
    # Behind the driver's back: a function level reset.
    in_machine server1 10 "echo 1 >/sys/bus/pci/devices/$VF_ADDRESS/reset"
    expect_restart server1 "device $VF_ADDRESS takes frames and sends none.*exit code 74"
    sleep 2
    note_daemon server1
    # By its PF, which tells the driver, if the driver listens at that moment.
    in_machine server1 10 "ip link set eth0 down && sleep 1 && ip link set eth0 up"
    expect_restart server1 "device $VF_ADDRESS (was reset|takes frames and sends none).*exit code 74"
    sleep 3
}

add_case switch switch "host port through the NIC's switch, the kernel on a VF of its own: sessions move and come back"
case_switch() { move_and_back; }

add_case jumbo jumbo "MTU 9000, host port by vhost-net: sessions with segments of more than 8,000 bytes move"
case_jumbo() {
    ECHO_BYTES=65536
    load_start
    load_tell mark
    send_service_to server2
    sleep 4
    expect_segments
    send_service_to server1
    sleep 2
}

# Of all sessions, in both directions.
expect_segments() {
    local sizes
    sizes=$(in_machine router 10 "ip netns exec client ss -tinH state established dst :$SERVE_PORT" |
        grep -oE '\b(mss|rcvmss):[0-9]+' | sort | uniq -c)
    say "  segments: $(tr -s ' \n' ' ' <<<"$sizes")"
    awk -F: '{ if ($2 < 8000) small++; else if ($1 ~ /rcvmss/) there++; else here++ } END { exit small || !there || !here }' <<<"$sizes" ||
        fault "segments are shorter than 8,000 bytes"
}

# --- running and judging --------------------------------------------------------------------

# statistics SERVER: nothing, when the daemon does not answer.
statistics() { in_machine "$1" 10 'holdfastctl --json show stats 2>/dev/null' || true; }

run_case() { # NAME
    local start
    CASE_DIR=$OUT_DIR/cases/$1
    rm -rf "$CASE_DIR"
    mkdir -p "$CASE_DIR"
    start=$(now_us)
    say "$1: ${CASE_TEXT[$1]}"
    use_host_port "${CASE_HOST_PORT[$1]}"
    # Not `if ! (...)`: behind it a function would go on after a command that failed.
    set +e
    (
        set -e
        in_case "$1"
        judge "$1" "$(seconds_since "$start")" >"$CASE_DIR/row.json"
    )
    local status=$?
    set -e
    if ((status != 0)); then
        # For whoever looks why. The next one begins anew.
        local server
        for server in server1 server2; do statistics "$server" >"$CASE_DIR/$server-after.json"; done
        in_machine router 10 'ip neigh; ip netns exec client ss -tin; cat /run/load-*.err' >"$CASE_DIR/router" || true
        load_kill
        on_servers stop_daemon
        HOST_PORT=''
        jq -n --arg name "$1" --argjson seconds "$(seconds_since "$start")" '{$name, sessions: 0, reset: 0, corrupted: 0,
            redirected: 0, stalled_max_ms: 0, $seconds, faults: ["it did not come to its end"], pass: false}' >"$CASE_DIR/row.json"
    fi
    jq -r '"  \(.sessions) sessions, \(.reset) reset, \(.corrupted) corrupted, \(.redirected) redirected, longest stall \(.stalled_max_ms) ms; \(.seconds) s: \(if .pass then "passed" else "FAILED" end)",
        (.faults[] | "  \(.)")' "$CASE_DIR/row.json" >&2
}

in_case() { # NAME
    local server
    send_service_to server1
    for server in "${SERVERS[@]}"; do note_daemon "$server"; done
    FAULTS=()
    "case_${1//-/_}"
    load_end
    for server in "${SERVERS[@]}"; do statistics "$server" >"$CASE_DIR/$server-after.json"; done
}

judge() { # NAME SECONDS
    jq -n --arg name "$1" --argjson seconds "$2" -f "$MACHINE_SCRIPTS/judge.jq" \
        --slurpfile loads <(cat "$CASE_DIR"/load-*.json) \
        --slurpfile before "$CASE_DIR/server2-before.json" --slurpfile after "$CASE_DIR/server2-after.json" \
        --args ${FAULTS[@]+"${FAULTS[@]}"}
}

# use_host_port KIND: daemons with another kind of host port are stopped, and started anew.
HOST_PORT=''
use_host_port() {
    [[ $HOST_PORT != "$1" ]] || return 0
    [[ -z $HOST_PORT ]] || on_servers stop_daemon
    on_servers start_daemon "$1"
    HOST_PORT=$1
    follow_host_port
    wait_for_peers
}

wait_for_peers() {
    local server tries
    for server in "${SERVERS[@]}"; do
        for ((tries = 0; tries < 60; tries++)); do
            [[ $(statistics "$server" | jq '.dht.gauges | .joined == 1 and .peers == 1') != true ]] || continue 2
            sleep 0.5
        done
        die "$server does not find the other one: holdfastctl show peers"
    done
}
