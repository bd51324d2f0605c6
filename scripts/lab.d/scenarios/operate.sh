# shellcheck shell=bash
# A new operator's path: install, look, configure, start, drain, restart, read what it did. All that
# is typed is in the file transcript of the run's directory, with the answers.

scenario operate "R7 R13" "4:gue! 6:gue"

prepare_operate() {
    need_tools tshark dpkg unshare nsenter
    PACKAGE=${HOLDFAST_PACKAGE:-$(newest_package)}
    [[ -f $PACKAGE ]] || die "no package: scripts/package makes it, or give HOLDFAST_PACKAGE"
    : >"$RUN_DIR/transcript"
}

newest_package() {
    find "$BIN_DIR/../debian" -maxdepth 1 -name 'holdfast_*.deb' -printf '%T@ %p\n' 2>/dev/null | sort -rn | head -n 1 | cut -d ' ' -f 2-
}

run_operate() {
    local family
    family=$(service_families)
    look_around
    refuse_what_is_wrong
    # Sessions that are there when the drain begins, and such as begin meanwhile.
    load_of before "$family"
    drain_server1 "$family"
    roll_restart
    load_mark
    sleep 3
    end_load after
    read_incidents
}

load_of() { # NAME FAMILY
    local mix
    mapfile -t mix < <(load_mix)
    load_start_one "$1" "$2" "${PROBE[@]}" "${mix[@]}"
    load_wait_event "$1" ready 60
    load_check_opened
    sleep 1
}

end_load() { # NAME: this one alone
    local others=() name
    for name in "${LOADS[@]}"; do [[ $name == "$1" ]] || others+=("$name"); done
    LOADS=("$1")
    load_end 60
    LOADS=("${others[@]}")
}

look_around() {
    local server
    # What this machine lacks, and how it is had: no fault of the package.
    operator server1 holdfastctl doctor || true
    answered "huge pages" "clock"
    for server in $(servers); do until_announced "$server" 30; done
    operator server1 holdfastctl show health || fault "show health"
    answered "ready" "announced" "up"
    operator server1 holdfastctl show peers || fault "show peers"
    answered alive
    operator server1 holdfastctl top --once --size 80x24 || fault "top"
}

# Ready, and routing was told so.
until_announced() { # SERVER SECONDS
    local tries
    for ((tries = 0; tries < $2 * 10; tries++)); do
        if [[ $(health "$1" '.state == "ready" and all(.prefixes[]; .route == "announced")') == true ]]; then return 0; fi
        sleep 0.1
    done
    fault "$1 is not ready and announced after $2 s: $(health "$1" '"\(.state) \(.awaited) \([.prefixes[] | .route, .because])"')"
}

health() { # SERVER JQ_EXPRESSION
    "$HOLDFASTCTL" --socket "$(node_dir "$1")/holdfastd.sock" --json show health 2>/dev/null | jq -r "$2" 2>/dev/null
}

refuse_what_is_wrong() {
    machine_config server1 | sed 's/^capacity = .*/capacity = "many"/' | write_file server1 /root/wrong.toml
    ! operator server1 holdfastd check /root/wrong.toml || fault "a wrong configuration passes"
    answered "/root/wrong.toml:" "capacity"
}

# One server is taken out of traffic: nobody notices.
drain_server1() { # FAMILY
    local drain flow
    load_mark drain
    touch "$LAB_DIR/withdrawn/server1"
    operator server1 holdfastctl drain --timeout 5m || fault "drain"
    answered draining
    wait_until_sound 40 || fault "routing does not leave server1"
    on_machine server1 holdfastctl drain --timeout 5m --wait >"$RUN_DIR/drain" 2>&1 &
    drain=$!
    load_of after "$1"
    flow=$(a_tunnelled_flow)
    look_at_flow "$flow"
    prove "local sessions while it drains" "$(health server1 .sessions_left)"
    end_load before
    wait "$drain" || fault "drain --wait ended with $?: $(tail -n 1 "$RUN_DIR/drain")"
    { printf 'server1# holdfastctl drain --timeout 5m --wait\n' && cat "$RUN_DIR/drain" && echo; } >>"$RUN_DIR/transcript"
    grep -q "no session is left" "$RUN_DIR/drain" || fault "drain --wait does not say that no session is left"
    expect "local sessions when it is drained" "$(health server1 .sessions_left)" 0
    operator server1 holdfastctl show health || fault "show health"
    answered drained withdrawn
    load_mark undrain
    operator server1 holdfastctl undrain || fault "undrain"
    rm "$LAB_DIR/withdrawn/server1"
    until_announced server1 30
    wait_until_sound 40 || fault "routing does not come back to server1"
}

# "SERVER FLOW" of a session that is in use, of server1 and by way of another.
a_tunnelled_flow() {
    local server flow
    for server in $(servers); do
        [[ $server != server1 ]] || continue
        flow=$("$HOLDFASTCTL" --socket "$(node_dir "$server")/holdfastd.sock" --json sessions list --kind redirect \
            --service "$(anycast_service)" --idle-under 2s --limit 1 | jq -r '.sessions[0].flow // empty')
        if [[ -n $flow ]]; then
            echo "$server $flow"
            return 0
        fi
    done
}

anycast_service() { socket_text "$(anycast "$(service_families)")" "$SERVICE_PORT"; }

look_at_flow() { # "SERVER FLOW"
    local server flow client port capture=/root/flow.pcapng
    read -r server flow <<<"$1"
    [[ -n ${flow:-} ]] || { fault "no flow is tunnelled to server1"; return 0; }
    client=${flow%%-*} port=${client##*:}
    operator "$server" holdfastctl sessions list --client-port "$port" || fault "sessions list"
    answered "$flow" redirect
    operator "$server" holdfastctl explain "$flow" || fault "explain"
    answered "$(loopback "$(locator_family)" server1)"
    operator "$server" holdfastctl lookup "$flow" || fault "lookup"
    operator "$server" holdfastctl trace "$flow" --for 3s --count 5 || fault "trace"
    answered tunnelled R4
    operator "$server" holdfastctl capture --filter tunnelled --count 20 --for 20s -w "$capture" || fault "capture"
    open_capture "$server" "$capture"
}

# With tshark: packets of the service, in the tunnel and before, each with its verdict.
open_capture() { # SERVER FILE
    local file=$RUN_DIR/flow.pcapng read fields=(frame.interface_name frame.comment ip.src ipv6.src tcp.dstport)
    on_machine "$1" cat "$2" >"$file"
    read=(tshark -X "lua_script:$REPOSITORY/packaging/wireshark/gue.lua" -r "$file")
    "${read[@]}" >"$RUN_DIR/capture.txt" 2>"$RUN_DIR/tshark.err" || fault "tshark cannot read the capture"
    "${read[@]}" -T fields "${fields[@]/#/-e}" >"$RUN_DIR/capture.tsv" 2>/dev/null
    prove "captured frames with their verdict" "$(grep -c 'tunnelled to ' "$RUN_DIR/capture.tsv")"
    prove "captured segments on their way in" "$(segments_captured '^(uplink in|waited)$')"
    expect "captured segments in the tunnel" "$(segments_captured '^uplink out$')" \
        "$(segments_captured '^(uplink in|waited)$')"
    { printf '# tshark -X lua_script:gue.lua -r flow.pcapng\n' && head -n 6 "$RUN_DIR/capture.txt" && echo; } >>"$RUN_DIR/transcript"
}

# To a service's port, innermost.
segments_captured() { # PATTERN_OF_INTERFACES
    awk -F'\t' -v interfaces="$1" -v ports="^($SERVICE_PORT|$SERVE_PORT)$" '$1 ~ interfaces && $5 ~ ports' \
        "$RUN_DIR/capture.tsv" | wc -l
}

# All daemons are restarted, as an upgrade does: one after the other, each when the one before is ready.
roll_restart() {
    local server
    for server in $(servers); do
        load_mark "restart $server"
        save_stats_of "$server"
        operator "$server" systemctl restart holdfastd || fault "restart of $server"
        until_announced "$server" 30
        wait_until_sound 40 || fault "the routes did not settle"
        sleep 2
    done
}

# What the drain did: by another server's ledger.
read_incidents() {
    local server id
    sleep 11 # incidents.quiet
    for server in $(servers); do
        "$HOLDFASTCTL" --socket "$(node_dir "$server")/holdfastd.sock" --json incidents >"$RUN_DIR/incidents-$server.json" ||
            fault "$server does not list its incidents"
        id=$(jq -r '[.incidents[] | select(.sessions.saved > 0)][0].id // empty' "$RUN_DIR/incidents-$server.json")
        [[ -n $id ]] || continue
        operator "$server" holdfastctl incidents || fault "incidents"
        operator "$server" holdfastctl incidents show "$id" || fault "incidents show"
        answered saved
    done
    prove "incidents in which sessions were saved" "$(jq -s '[.[].incidents[] | select(.sessions.saved > 0)] | length' "$RUN_DIR"/incidents-*.json)"
    expect "sessions that incidents say were reset" "$(jq -s '[.[].incidents[].sessions.reset] | add' "$RUN_DIR"/incidents-*.json)" 0
}
