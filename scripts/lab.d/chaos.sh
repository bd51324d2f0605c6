# shellcheck shell=bash
# Random events under load, one after the other and several at a time, for as long as
# asked for. Never more at once than what the service can bear: one spine stays whole,
# two servers announce, and a server's link or daemon is back within a second or two.

chaos_usage() {
    cat <<'END_OF_USAGE'
usage: lab chaos [OPTION...]

  --seed N         the same events in the same order (1)
  --minutes N      for so long (5)
  --family 4|6|both, --encap gue|ipip|rewrite   (drawn by the seed)
  --capture DIR    leaves a capture of what goes through each leaf there, 120 bytes of each packet
  --bin-dir DIR    where the binaries are (target/release)

Links and spines fail and heal, servers withdraw and announce, daemons are killed and
upgraded, links flap, segments are lost, paths narrow, flows are sent elsewhere; with sessions
that ask, echo, upload, are idle, and come and go, on so few ports that each is used again.
When one is lost, post-mortem in the run's directory has what each server knows of its flow. Adds a line to target/lab/chaos.jsonl. Exit
code 0: no session was lost.
END_OF_USAGE
}

CHAOS_EVENTS=(fail_a_link fail_a_link heal_a_link heal_a_link fail_a_spine withdraw_one announce_one kill_a_daemon
    upgrade_a_daemon blink_a_server flap_a_link lose_segments lose_none narrow_the_path steer_somewhere steer_by_ecmp heal_all)

command_chaos() {
    local seed=1 minutes=5 family='' encap=''
    CHAOS_CAPTURE=''
    while (($#)); do
        case $1 in
            -h | --help) chaos_usage; exit 0 ;;
            --seed | --minutes | --family | --encap | --capture | --bin-dir) (($# >= 2)) || die "$1 wants a value" ;;
            *) die "unknown option $1; see: lab chaos --help" ;;
        esac
        case $1 in
            --seed) seed=$2 ;;
            --minutes) minutes=$2 ;;
            --family) family=$2 ;;
            --encap) encap=$2 ;;
            --capture) CHAOS_CAPTURE=$2 ;;
            --bin-dir) BIN_DIR=$2 ;;
        esac
        shift 2
    done
    is_count "$seed" 0 32767 || die "--seed is 0 to 32767, not '$seed'"
    is_count "$minutes" 1 10080 || die "--minutes is 1 to 10080, not '$minutes'"
    local families=(4 6 both) encaps=(gue ipip rewrite)
    family=${family:-${families[seed % 3]}}
    encap=${encap:-${encaps[seed / 3 % 3]}}
    # What a rewritten packet carries is of one family.
    [[ $encap != rewrite || $family != both ]] || family=4
    CHAOS_SECONDS=$((minutes * 60)) CHAOS_SEED=$seed
    local name=chaos-$seed
    # shellcheck disable=SC2004,SC2034  # read by the runner
    SCENARIO_RULES[$name]=all SCENARIO_OPTIONS[$name]="--spines 3"
    eval "run_chaos_$seed() { run_chaos; }"
    [[ -z $CHAOS_CAPTURE ]] || install -d -m 0777 "$CHAOS_CAPTURE"
    prepare_scenarios
    run_scenario "$name:$family:$encap" || true
    jq -c --argjson minutes "$minutes" '. + {minutes: $minutes}' "$RUN_DIR/row.json" >>"$TEST_OUT/chaos.jsonl"
    say "events: $(wc -l <"$RUN_DIR/events"); written: $TEST_OUT/chaos.jsonl, $RUN_DIR"
    jq -e .pass "$RUN_DIR/row.json" >/dev/null
}

run_chaos() {
    local end event
    RANDOM=$CHAOS_SEED
    CHAOS_FAILED=() CHAOS_WITHDRAWN=()
    make_steering_routes
    # So few that every port is used again within two minutes.
    ip netns exec "$(ns client)" sysctl -qw net.ipv4.ip_local_port_range='32768 44767'
    load_start --probe-delay-ms 300 --idle 60 --request 40 --bulk 0 --upload 30 --upload-rate-kib 64 \
        --upload-bytes 65536 --echo 50 --churn 20 --churn-pause-ms 200
    [[ -z $CHAOS_CAPTURE ]] || capture_headers
    end=$(($(now_us) + CHAOS_SECONDS * 1000000))
    while (($(now_us) < end)); do
        event=${CHAOS_EVENTS[RANDOM % ${#CHAOS_EVENTS[@]}]}
        load_mark "$event"
        "$event"
        sleep $((RANDOM % 4)).$((RANDOM % 10))
        if (($(load_failed) > $(allowed_failures))); then
            fault "after $event, event $(wc -l <"$RUN_DIR/events"): $(load_failed) sessions have failed"
            post_mortem >"$RUN_DIR/post-mortem"
            break
        fi
    done
    heal_all
    load_mark end
    wait_until_sound 60 || fault "the routes did not settle"
    sleep 3
    load_end 90
    EXPECTED_RESET=$(load_count '.outcome == "reset"' "$REPEATED_HANDSHAKE")
    EXPECTED_FAILED=$(load_count '.outcome != "reset"' "($REPEATED_HANDSHAKE) or ($NO_ROUTE)")
}

# A client that repeats its SYN may reach a second server with it. When both answer at the same
# time, as the first does that repeats a lost SYN-ACK, the client takes the one or the other; the
# later server has the session (R12), and resets a client that took the first, or leaves it without
# an answer. So it is without holdfast. A handshake of a second or longer says so.
REPEATED_HANDSHAKE='((.outcome // .cause) | IN("reset", "timeout")) and .phase != "close" and (.connect_ms // 0) >= 900'

# A SYN that the fabric answers while its routes change: network or host unreachable. There is
# no session yet.
NO_ROUTE='.phase == "connect" and ((.detail // "") | test("os error (101|113)"))'

allowed_failures() {
    local name
    for name in "${LOADS[@]}"; do load_event "$name" failed; done |
        jq -s "[.[] | select(($REPEATED_HANDSHAKE) or ($NO_ROUTE))] | length"
}

# The headers of all that goes through leaves, for whoever wants to see what happened.
capture_headers() {
    local name
    for name in $(leaves); do
        mkdir -p "$LAB_DIR/capture-$name"
        ip netns exec "$(ns "$name")" setsid tcpdump -q -i any -s 120 -B 16384 \
            -w "$CHAOS_CAPTURE/$name.pcap" >"$LAB_DIR/capture-$name/log" 2>&1 &
        echo $! >"$LAB_DIR/capture-$name/tcpdump.pid"
    done
}

# What each server knows of the flows that have failed, before anything is healed.
post_mortem() {
    local name port flow server failure
    for name in "${LOADS[@]}"; do
        while read -r failure; do
            port=$(jq -r .local_port <<<"$failure")
            flow=$(socket_text "$(client_address "$name")" "$port")-$(socket_text "$(anycast "$name")" "$SERVICE_PORT")
            printf '\n%s\n' "$failure"
            for server in $(servers); do
                printf '%s: %s; kernel: %s\n' "$server" \
                    "$("$HOLDFASTCTL" --socket "$(node_dir "$server")/holdfastd.sock" --json lookup "$flow" 2>&1 | jq -c . 2>&1)" \
                    "$(ip netns exec "$(ns "$server")" ss -Htani "dport = :$port" | tr -s ' \n\t' ' ')"
            done
        done < <(load_event "$name" failed | head -n 20)
    done
}

load_count() { # JQ_FILTER JQ_FILTER
    jq -s "[.[].per_session[] | select($1) | select($2)] | length" "$RUN_DIR"/load-*.json
}

# happens WORDS...: for the record.
happens() {
    say "event: $*"
    printf '%s %s\n' "$(date +%T.%3N)" "$*" >>"$RUN_DIR/events"
}

# A link of the fabric, but none of the last spine: one path stays whole.
fail_a_link() {
    local link all
    mapfile -t all < <(links | tr ' ' - | grep spine | grep -v "spine$SPINES")
    link=${all[RANDOM % ${#all[@]}]}
    [[ ! -e $LAB_DIR/failed/$link ]] || return 0
    happens "fail $link"
    fail_link "$link"
    CHAOS_FAILED+=("$link")
}

heal_a_link() {
    ((${#CHAOS_FAILED[@]} > 0)) || return 0
    local link=${CHAOS_FAILED[0]}
    CHAOS_FAILED=("${CHAOS_FAILED[@]:1}")
    happens "heal $link"
    heal_link "$link"
}

fail_a_spine() {
    local link spine=spine$((RANDOM % (SPINES - 1) + 1))
    happens "fail $spine"
    for link in $(links_of "$spine"); do
        if [[ ! -e $LAB_DIR/failed/$link ]]; then
            fail_link "$link"
            CHAOS_FAILED+=("$link")
        fi
    done
}

withdraw_one() {
    local server=server$((RANDOM % SERVERS + 1))
    if [[ -e $LAB_DIR/withdrawn/$server ]] || ((${#CHAOS_WITHDRAWN[@]} >= SERVERS - 2)); then return 0; fi
    happens "withdraw $server"
    withdraw "$server"
    CHAOS_WITHDRAWN+=("$server")
}

announce_one() {
    ((${#CHAOS_WITHDRAWN[@]} > 0)) || return 0
    happens "announce ${CHAOS_WITHDRAWN[0]}"
    announce "${CHAOS_WITHDRAWN[0]}"
    CHAOS_WITHDRAWN=("${CHAOS_WITHDRAWN[@]:1}")
}

kill_a_daemon() {
    local server=server$((RANDOM % SERVERS + 1)) pause=0.$((RANDOM % 9 + 1))
    happens "kill the daemon of $server, start it after $pause s"
    restart_holdfastd KILL "$server" "$pause"
}

upgrade_a_daemon() {
    local server=server$((RANDOM % SERVERS + 1))
    happens "restart the daemon of $server"
    restart_holdfastd TERM "$server"
}

blink_a_server() {
    local link all pause=0.$((RANDOM % 9 + 1))
    mapfile -t all < <(links | tr ' ' - | grep server)
    link=${all[RANDOM % ${#all[@]}]}
    happens "fail $link for $pause s"
    fail_link "$link"
    sleep "$pause"
    heal_link "$link"
}

flap_a_link() {
    local i link=spine$((RANDOM % (SPINES - 1) + 1))-leaf$((RANDOM % LEAVES + 1))
    [[ ! -e $LAB_DIR/failed/$link ]] || return 0
    happens "flap $link"
    for i in 1 2 3 4; do
        fail_link "$link"
        sleep 0.$((RANDOM % 5))
        heal_link "$link"
        sleep 0.$((RANDOM % 5 + i))
    done
}

# Not those of handshakes: see REPEATED_HANDSHAKE.
lose_segments() {
    local share=$((RANDOM % 60 + 20))
    happens "lose one of $share segments"
    filter edge lossy "chain forward {
        type filter hook forward priority 0; policy accept;
        tcp flags & syn == 0 numgen random mod $share == 0 counter drop
    }"
}

lose_none() {
    happens "lose none"
    filter edge lossy
}

narrow_the_path() {
    local mtu=$((1300 + RANDOM % 200))
    happens "the client's link takes $mtu bytes"
    ip -n "$(ns edge)" link set client mtu "$mtu"
    ip -n "$(ns client)" link set edge mtu "$mtu"
}

steer_somewhere() {
    local rest=server$((RANDOM % SERVERS + 1)) syns=server$((RANDOM % SERVERS + 1))
    happens "SYNs to $syns, all else to $rest"
    steer all "$rest" syn "$syns"
}

steer_by_ecmp() {
    happens "all by ECMP"
    steer
}

heal_all() {
    local one
    happens "heal all"
    for one in ${CHAOS_FAILED[@]+"${CHAOS_FAILED[@]}"}; do heal_link "$one"; done
    for one in ${CHAOS_WITHDRAWN[@]+"${CHAOS_WITHDRAWN[@]}"}; do announce "$one"; done
    CHAOS_FAILED=() CHAOS_WITHDRAWN=()
    steer
    filter edge lossy
}
