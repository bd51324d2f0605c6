# shellcheck shell=bash
# The sessions of a scenario: session-load in the client, one for each family of
# the service. It only starts, tells and reads them.

LOADS=()        # names of those under way
declare -A LOAD_INPUT=()

load_dir() { echo "$LAB_DIR/load-$1"; }

# Kinds and numbers for 200 sessions or so; $1 more or fewer, in percent.
load_mix() {
    local percent=${1:-100}
    printf '%s\n' --idle $((80 * percent / 100)) --request $((60 * percent / 100)) \
        --bulk $((8 * percent / 100)) --upload $((20 * percent / 100)) --echo $((40 * percent / 100))
}

# load_start ARGUMENT...: opens sessions to each address of the service, and waits
# until all are open. Numbers of sessions hold for each family.
load_start() {
    local family
    for family in $(service_families); do load_start_one "$family" "$family" "$@"; done
    for family in "${LOADS[@]}"; do load_wait_event "$family" ready 60; done
    load_check_opened
}

load_start_one() { # NAME FAMILY ARGUMENT...
    local name=$1 family=$2 dir input
    shift 2
    dir=$(load_dir "$name")
    mkdir -p "$dir"
    [[ -p $dir/commands ]] || mkfifo "$dir/commands"
    ip netns exec "$(ns client)" setsid "$BIN_DIR/session-load" \
        --target "$(socket_text "$(anycast "$family")" "$SERVICE_PORT")" \
        --serve-target "$(socket_text "$(anycast "$family")" "$SERVE_PORT")" \
        --upload-path "/up/$name-" --bulk-sha256-file "$LAB_DIR/bulk.sha256" --duration-s 3600 --limit-s 3900 --timeout-s 60 "$@" \
        <"$dir/commands" >"$dir/load.jsonl" 2>"$dir/load.err" &
    echo $! >"$dir/session-load.pid"
    exec {input}>"$dir/commands"
    LOAD_INPUT[$name]=$input
    LOADS+=("$name")
}

load_event() { # NAME EVENT
    jq -c --arg event "$2" 'select(.event == $event)' "$(load_dir "$1")/load.jsonl"
}

# Whether all of it has been written, too.
load_has_event() { # NAME EVENT
    [[ -n $(load_event "$1" "$2" 2>/dev/null) ]]
}

load_wait_event() { # NAME EVENT SECONDS
    local tries
    for ((tries = 0; tries < $3 * 10; tries++)); do
        if load_has_event "$1" "$2"; then return 0; fi
        process_of "$(load_dir "$1")/session-load.pid" >/dev/null || break
        sleep 0.1
    done
    load_has_event "$1" "$2" ||
        die "the load did not come to '$2' within $3 s: $(tail -n 3 "$(load_dir "$1")/load.err")"
}

load_check_opened() {
    local name failed=0
    for name in "${LOADS[@]}"; do
        if load_event "$name" ready | jq -e '.failed_to_open > 0' >/dev/null; then failed=1; fi
    done
    ((failed)) || return 0
    # Why is in the result.
    load_end 60
    die "sessions could not be opened: $(jq -s -r '[.[].per_session[] | select(.outcome != "ok")
        | "\(.kind) \(.outcome) \(.detail // "")"] | group_by(.) | map("\(length) \(.[0])") | join("; ")' \
        "$RUN_DIR"/load-*.json)"
}

load_tell() {
    local name
    for name in "${LOADS[@]}"; do
        process_of "$(load_dir "$name")/session-load.pid" >/dev/null ||
            die "the load ended too early: $(tail -n 3 "$(load_dir "$name")/load.err")"
        printf '%s\n' "$*" >&"${LOAD_INPUT[$name]}"
    done
}

# The network changes now: idle sessions ask again some seconds later.
load_mark() { load_tell mark "${1:-}"; }

# load_end [SECONDS]: all sessions come to their end, within the time.
load_end() {
    local name input
    for name in "${LOADS[@]}"; do
        # It ends by itself when no session is left.
        if ! load_has_event "$name" result; then echo finish >&"${LOAD_INPUT[$name]}"; fi
    done
    for name in "${LOADS[@]}"; do
        load_wait_event "$name" result "${1:-90}"
        input=${LOAD_INPUT[$name]}
        exec {input}>&-
        load_event "$name" result >"$RUN_DIR/load-$name.json"
        cp "$(load_dir "$name")/load.jsonl" "$RUN_DIR/load-$name.jsonl"
        rm -f "$(load_dir "$name")/session-load.pid"
    done
    LOADS=()
}

# load_failed: sessions that have failed so far.
load_failed() {
    local name
    for name in "${LOADS[@]}"; do load_event "$name" failed; done | wc -l
}
