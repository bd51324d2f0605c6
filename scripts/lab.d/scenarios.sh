# shellcheck shell=bash
# Scenarios: each makes a lab of its own, opens sessions, lets the network do
# something to them, and judges. Registry, runner and verdict; what happens is in
# scenarios/.

SCENARIOS=()
declare -A SCENARIO_RULES=() SCENARIO_VARIANTS=() SCENARIO_OPTIONS=()

# scenario NAME RULES VARIANTS [OPTION...]: VARIANTS are FAMILY:ENCAP, the first of
# them is run in CI if it ends in "!"; OPTIONs are those of `lab up`. The function
# run_NAME holds what happens.
scenario() {
    SCENARIOS+=("$1")
    SCENARIO_RULES[$1]=$2
    SCENARIO_VARIANTS[$1]=$3
    shift 3
    SCENARIO_OPTIONS[${SCENARIOS[-1]}]=$*
}

# shellcheck source=scripts/lab.d/scenarios/topology.sh
. "$SCRIPTS/lab.d/scenarios/topology.sh"
# shellcheck source=scripts/lab.d/scenarios/handshake.sh
. "$SCRIPTS/lab.d/scenarios/handshake.sh"
# shellcheck source=scripts/lab.d/scenarios/life.sh
. "$SCRIPTS/lab.d/scenarios/life.sh"
# shellcheck source=scripts/lab.d/scenarios/mtu.sh
. "$SCRIPTS/lab.d/scenarios/mtu.sh"
# shellcheck source=scripts/lab.d/scenarios/restart.sh
. "$SCRIPTS/lab.d/scenarios/restart.sh"
# shellcheck source=scripts/lab.d/scenarios/inbound.sh
. "$SCRIPTS/lab.d/scenarios/inbound.sh"
# shellcheck source=scripts/lab.d/scenarios/operate.sh
. "$SCRIPTS/lab.d/scenarios/operate.sh"

TEST_OUT=${HOLDFAST_LAB_TEST_DIR:-$REPOSITORY/target/lab}

test_usage() {
    cat <<'END_OF_USAGE'
usage: lab test [OPTION...] [NAME[:FAMILY:ENCAP]...]

Runs scenarios, each in a lab of its own, with real TCP at both ends: all of them, or those
named, in all their variants or in one. Writes target/lab/scenarios.json (or into
$HOLDFAST_LAB_TEST_DIR), and for each scenario a directory with all logs.

  --ci             those marked for CI alone (shown by --list with a !)
  --list           names, rules and variants
  --bin-dir DIR    where the binaries are (target/release)
  --uplink SERVER=PCI,INTERFACE   as of lab up

A scenario whose cause did not occur fails: it proved nothing. Exit code 0: all passed.
END_OF_USAGE
}

command_test() {
    local ci=0 list=0 names=() argument
    while (($#)); do
        case $1 in
            --ci) ci=1 ;;
            --list) list=1 ;;
            --bin-dir)
                BIN_DIR=${2:?a directory}
                shift
                ;;
            --uplink)
                UPLINKS+="${2:?SERVER=PCI,INTERFACE} "
                shift
                ;;
            -h | --help) test_usage; exit 0 ;;
            -*) die "unknown option $1; see: lab test --help" ;;
            *) names+=("$1") ;;
        esac
        shift
    done
    ((list == 0)) || { list_scenarios; return 0; }
    local wanted=()
    for argument in $(variants_of "$ci" "${names[@]}"); do wanted+=("$argument"); done
    ((${#wanted[@]} > 0)) || die "no scenario is wanted"
    run_scenarios "${wanted[@]}"
}

list_scenarios() {
    local name
    for name in "${SCENARIOS[@]}"; do
        printf '%-28s %-12s %s\n' "$name" "${SCENARIO_RULES[$name]}" "${SCENARIO_VARIANTS[$name]}"
    done
}

# variants_of CI NAME...: lines NAME:FAMILY:ENCAP.
variants_of() {
    local ci=$1 name variant
    shift
    (($# > 0)) || set -- "${SCENARIOS[@]}"
    for name in "$@"; do
        if [[ $name == *:*:* ]]; then
            [[ -n ${SCENARIO_RULES[${name%%:*}]:-} ]] || die "no scenario '$name'; see: lab test --list"
            echo "$name"
            continue
        fi
        [[ -n ${SCENARIO_RULES[$name]:-} ]] || die "no scenario '$name'; see: lab test --list"
        for variant in ${SCENARIO_VARIANTS[$name]}; do
            if ((ci == 0)) || [[ $variant == *! ]]; then echo "$name:${variant%!}"; fi
        done
    done
}

# What all runs need, once.
prepare_scenarios() {
    local one
    need_tools ip ethtool jq curl nginx vtysh nft ss
    for one in session-load session-serve holdfastd holdfastctl; do
        [[ -x $BIN_DIR/$one ]] || die "no $one in $BIN_DIR: cargo build --release, or give --bin-dir"
    done
    export LAB_DIR=${HOLDFAST_LAB_DIR:-/run/holdfast-scenario} LAB_PREFIX=${HOLDFAST_LAB_PREFIX:-hfs-}
    mkdir -p "$TEST_OUT"
    exec {TEST_LOCK}>"/run/lock/$(basename "$LAB_DIR").lock"
    flock -n "$TEST_LOCK" || die "another test of the lab is running"
}

run_scenarios() {
    local one rows=() failed=0 start
    prepare_scenarios
    start=$(now_us)
    say "$# scenarios: $*"
    for one in "$@"; do
        run_scenario "$one" || failed=$((failed + 1))
        rows+=("$TEST_OUT/${one//:/-}/row.json")
    done
    jq -s . "${rows[@]}" >"$TEST_OUT/scenarios.json"
    say "$(($# - failed)) passed, $failed failed after $(seconds_since "$start") s: $TEST_OUT/scenarios.json"
    ((failed == 0))
}

# run_scenario NAME:FAMILY:ENCAP
run_scenario() {
    local name family encap start
    IFS=: read -r name family encap <<<"$1"
    RUN_DIR=$TEST_OUT/${1//:/-}
    rm -rf "$RUN_DIR"
    mkdir -p "$RUN_DIR"
    start=$(now_us)
    tear_down_quietly
    trap 'tear_down_quietly; exit 130' INT TERM
    set +e
    (
        set -e
        exec {TEST_LOCK}>&- # what a scenario leaves running must not hold the lock
        in_scenario "$name" "$family" "$encap"
    ) >"$RUN_DIR/log" 2>&1
    set -e
    keep_scenario_logs
    tear_down_quietly
    trap - INT TERM
    [[ -s $RUN_DIR/row.json ]] || write_broken_row "$name" "$family" "$encap"
    print_row "$RUN_DIR/row.json" "$(seconds_since "$start")"
    jq -e .pass "$RUN_DIR/row.json" >/dev/null
}

tear_down_quietly() {
    (tear_down >/dev/null 2>&1) || true
}

in_scenario() {
    local name=$1 family_name=$2 options
    SESSIONS_MIN=200 EXPECTED_RESET=0 EXPECTED_FAILED=0 NEEDS_REDIRECTS=true
    : >"$RUN_DIR/faults"
    : >"$RUN_DIR/proofs"
    read -r -a options <<<"${SCENARIO_OPTIONS[$name]}"
    local locator=''
    # 4in6: a service of IPv4 whose owner's locator is IPv6.
    case $2 in
        4in6) locator=6; set -- "$1" 4 "$3" ;;
        6in4) locator=4; set -- "$1" 6 "$3" ;;
    esac
    parse_up_options --mode holdfast --family "$2" --encap "$3" --locator "$locator" --bulk-rate 1024 --bulk-mib 20 \
        --bin-dir "$BIN_DIR" "${options[@]}"
    if declare -F "prepare_${name//-/_}" >/dev/null; then "prepare_${name//-/_}"; fi
    make_state_dir
    bring_up
    say "the lab is up"
    "run_${name//-/_}"
    [[ ${#LOADS[@]} -eq 0 ]] || load_end 90
    say "judging"
    save_stats
    judge "$name" "$family_name" "$3"
}

# What every daemon has counted by now.
save_stats() {
    local server
    for server in $(servers); do
        if server_present "$server"; then save_stats_of "$server"; fi
    done
}

# Also before one is ended.
save_stats_of() {
    "$HOLDFASTCTL" --socket "$(node_dir "$1")/holdfastd.sock" --json show stats \
        >"$RUN_DIR/stats-$1-$(now_us).json" || fault "holdfastd of $1 does not answer"
}

# counter NAME [SERVER...]: its sum over servers, all of them if none is named.
counter() {
    local name=$1 server all=("${@:2}")
    ((${#all[@]} > 0)) || mapfile -t all < <(servers)
    for server in "${all[@]}"; do
        server_present "$server" || continue
        "$HOLDFASTCTL" --socket "$(node_dir "$server")/holdfastd.sock" --json show stats |
            jq --arg name "$name" '.totals[$name]'
    done | jq -s 'add // 0'
}

# kernel_counter NODE NAME: as nstat calls it.
kernel_counter() { in_node "$1" nstat -asz -j | jq --arg name "$2" '.kernel[$name] // 0'; }

fault() {
    say "FAULT: $*"
    printf '%s\n' "$*" >>"$RUN_DIR/faults"
}

# prove WHAT NUMBER: the cause must have occurred so often, more than never.
prove() {
    say "$1: $2"
    printf '%s: %s\n' "$1" "$2" >>"$RUN_DIR/proofs"
    (($2 > 0)) || fault "proved nothing: $1: $2"
}

# expect WHAT NUMBER EXPECTED
expect() {
    say "$1: $2"
    printf '%s: %s\n' "$1" "$2" >>"$RUN_DIR/proofs"
    (($2 == $3)) || fault "$1: $2, not $3"
}

judge() { # NAME FAMILY ENCAP
    jq -n -f "$SCRIPTS/lib/scenario.jq" \
        --slurpfile loads <(cat "$RUN_DIR"/load-*.json 2>/dev/null) \
        --slurpfile stats <(cat "$RUN_DIR"/stats-*.json 2>/dev/null) \
        --argjson faults "$(jq -Rn '[inputs]' "$RUN_DIR/faults")" \
        --argjson facts "$(facts "$@")" >"$RUN_DIR/row.json.new"
    mv "$RUN_DIR/row.json.new" "$RUN_DIR/row.json"
}

facts() { # NAME FAMILY ENCAP
    jq -n --arg name "$1" --arg rule "${SCENARIO_RULES[$1]}" --arg family "$2" --arg encap "$3" \
        --argjson sessions_min "$SESSIONS_MIN" --argjson expected_reset "$EXPECTED_RESET" \
        --argjson expected_failed "$EXPECTED_FAILED" --argjson needs_redirects "$NEEDS_REDIRECTS" \
        --argjson proofs "$(jq -Rn '[inputs]' "$RUN_DIR/proofs")" '$ARGS.named'
}

# The scenario did not come to its end: the last it said is the reason.
write_broken_row() {
    jq -n --arg name "$1" --arg rule "${SCENARIO_RULES[$1]}" --arg family "$2" --arg encap "$3" \
        --arg reason "$(tail -n 1 "$RUN_DIR/log")" \
        '$ARGS.named | del(.reason) + {sessions: 0, reset: 0, corrupted: 0, redirected: 0, stalled_max_ms: 0,
            expected_reset: 0, pass: false, faults: ["did not come to its end: \($ARGS.named.reason)"]}' \
        >"$RUN_DIR/row.json"
}

print_row() { # FILE SECONDS
    jq -r --arg seconds "$2" '
        def pad($n): tostring | . + (" " * ([$n - length, 0] | max));
        "\(if .pass then "pass" else "FAIL" end)  \(.name | pad(27)) \(.rule | pad(9)) \(.family | pad(5)) \(.encap | pad(8))"
        + "\(.sessions) sessions, \(.reset) reset (\(.expected_reset) expected), \(.corrupted) corrupted, "
        + "\(.redirected) redirected, stalled \(.stalled_max_ms) ms; \($seconds) s",
        (.faults[]? | "      \(.)")' "$1"
}

keep_scenario_logs() {
    local file
    for file in "$LAB_DIR"/*/*.{log,conf,toml,err,jsonl}; do
        [[ -f $file ]] || continue
        mkdir -p "$RUN_DIR/lab/$(basename "$(dirname "$file")")"
        cp "$file" "$RUN_DIR/lab/$(basename "$(dirname "$file")")/"
    done
}
