# shellcheck shell=bash
# The sessions of a case: session-load in the client, one for each family, with session-serve at the
# servers. What is sent is checked byte by byte in both directions.

LOAD_FAMILIES=(4 6)
# For each family.
LOAD_MIX=(--echo 40 --half-close 8)
# Of each request, and of its answer.
ECHO_BYTES=4096

service_of() { if [[ $1 == 4 ]]; then echo "$ANYCAST4:$SERVE_PORT"; else echo "[$ANYCAST6]:$SERVE_PORT"; fi; }

# load_start: opens the sessions, and waits until all are open.
load_start() {
    local family
    # A case before may have told the client of a smaller MTU, which it remembers for ten minutes.
    in_machine router 5 'ip -n client route flush cache; ip -n client -6 route flush cache'
    for family in "${LOAD_FAMILIES[@]}"; do
        in_machine router 10 "
            cd /run; rm -f load-$family.*; mkfifo load-$family.in
            ip netns exec client setsid session-load --target $(service_of "$family") --serve-target $(service_of "$family") \
                --idle 0 --request 0 --bulk 0 ${LOAD_MIX[*]} --echo-bytes $ECHO_BYTES --request-interval-ms 1000 \
                --half-close-s 8 --half-close-rate-kib 8 --ramp-ms 1500 --timeout-s 100 --duration-s 300 \
                <>load-$family.in >load-$family.jsonl 2>load-$family.err &
            echo \$! >load-$family.pid"
    done
    for family in "${LOAD_FAMILIES[@]}"; do load_wait "$family" ready 40 >/dev/null; done
}

# load_wait FAMILY EVENT SECONDS: prints the event's line.
load_wait() {
    in_machine router "$(($3 + 2))" "
        cd /run
        for ((tries = 0; tries < $3 * $PATIENCE * 4; tries++)); do
            if grep '\"event\":\"$2\"' load-$1.jsonl; then exit 0; fi
            sleep 0.2
        done
        tail -n 3 load-$1.err load-$1.jsonl
        exit 1" || die "the sessions over IPv$1 did not come to '$2' within $(($3 * PATIENCE)) s"
}

load_tell() {
    local family
    for family in "${LOAD_FAMILIES[@]}"; do in_machine router 5 "echo '$*' >/run/load-$family.in"; done
}

# load_end: all sessions come to their end; their results lie in files.
load_end() {
    local family
    load_tell finish
    for family in "${LOAD_FAMILIES[@]}"; do load_wait "$family" result 60 >"$CASE_DIR/load-$family.json"; done
}

# load_kill: ends the sessions, whatever they are at.
load_kill() {
    local family
    for family in "${LOAD_FAMILIES[@]}"; do
        in_machine router 5 "[[ ! -e /run/load-$family.pid ]] || kill \$(cat /run/load-$family.pid) 2>/dev/null || true"
    done
}
