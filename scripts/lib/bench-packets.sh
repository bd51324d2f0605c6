# shellcheck shell=bash
# What `scripts/bench table` and `scripts/bench path` do: the session table and the packet path
# beside their peers, in one process on one core. Sourced by scripts/bench.

PACKETS_MANIFEST=$REPOSITORY/bench/peers/packets/Cargo.toml
# Bounds in seconds of one program's whole run.
TABLE_SECONDS_MAX=3000 PATH_SECONDS_MAX=3000 CALLGRIND_SECONDS_MAX=300 TESTPMD_SECONDS_MAX=60
CALLGRIND_LOOKUPS=131072
# Huge pages of 2 MiB for tables of 8M sessions, and of 1M.
TABLE_PAGES_8M=4000 TABLE_PAGES_1M=800
PATH_PAGES_8M=2600 PATH_PAGES_1M=900
PAGES_KEPT='' PAGES_SET='' RUNNING_PACKETS='' TESTPMD_FIFO=''
NR_HUGEPAGES=/proc/sys/vm/nr_hugepages

packets_usage() {
    cat <<'END'
table: lookups, insertions and removals of the session table beside rte_hash, hashbrown,
       dashmap and the machine's limit, and what a reader loses beside a writer
path:  a packet's whole way through a worker beside testpmd's macswap and the same way
       in C around rte_hash; and two workers on two cores

  --quick          a smoke test of less than a minute: 1M sessions, few rounds
  --sizes LIST     sessions, by commas: 1M,8M (1M is 2^20)
  --families LIST  4,6
  --rounds N       slices of each kind (31)
  --no-huge        take no huge pages, though there are some
  --page           write docs/results/performance.md and .svg from the results there are
  --no-build       take the programs as they are in target/bench/peers/packets/release
END
}

# shellcheck disable=SC2317 # called by the trap
packets_clean_up() {
    if [[ -n $RUNNING_PACKETS ]]; then
        kill "$RUNNING_PACKETS" 2>/dev/null || true
        wait "$RUNNING_PACKETS" 2>/dev/null || true
    fi
    [[ -z $TESTPMD_FIFO ]] || rm -f "$TESTPMD_FIFO"
    # Unless somebody else has changed it meanwhile.
    if [[ -n $PAGES_KEPT && $(cat "$NR_HUGEPAGES") == "$PAGES_SET" ]]; then
        printf '%s\n' "$PAGES_KEPT" >"$NR_HUGEPAGES" || true
    fi
}

PACKETS_OPTIONS=() PACKETS_QUICK=0 PACKETS_SIZES=1M,8M PACKETS_HUGE=1

packets_parse() {
    while (($#)); do
        case $1 in
            --quick) PACKETS_QUICK=1 PACKETS_SIZES=1M; shift; continue ;;
            --no-huge) PACKETS_HUGE=0; shift; continue ;;
            --page) PAGE=1; shift; continue ;;
            --no-build) BUILD=0; shift; continue ;;
            -h | --help) packets_usage; exit 0 ;;
        esac
        (($# >= 2)) || die "unknown option $1, or its value is missing; see: bench --help"
        case $1 in
            --sizes)
                [[ $2 =~ ^[1-9][0-9]?M(,[1-9][0-9]?M)*$ ]] || die "--sizes is such as 1M,8M, not '$2'"
                PACKETS_SIZES=$2
                ;;
            --families)
                [[ $2 =~ ^(4|6|4,6|6,4)$ ]] || die "--families is 4, 6 or 4,6, not '$2'"
                PACKETS_OPTIONS+=(--families "$2")
                ;;
            --rounds)
                is_count "$2" 1 1000 || die "--rounds is from 1 to 1000, not '$2'"
                PACKETS_OPTIONS+=(--rounds "$2")
                ;;
            *) die "unknown option $1; see: bench --help" ;;
        esac
        shift 2
    done
    if ((PACKETS_QUICK)); then PACKETS_OPTIONS+=(--quick); else PACKETS_OPTIONS+=(--sizes "$PACKETS_SIZES"); fi
}

packets_prepare() {
    [[ ! -d ${CARGO_HOME:-$HOME/.cargo}/bin ]] || PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    need_tools jq flock timeout pkg-config
    (($(nproc) >= 2)) || die "two cores are needed"
    mkdir -p "$OUT/peers"
    exec {LOCK}>/run/lock/holdfast-bench.lock
    flock -n "$LOCK" || die "another bench is running"
    trap packets_clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    PACKETS_BIN=$OUT/peers/packets/release
    ((BUILD == 0)) || packets_build native '-C target-cpu=native' "$OUT/peers/packets"
    [[ -x $PACKETS_BIN/$1 ]] || die "no $1 in $PACKETS_BIN: leave --no-build out"
}

# packets_build CPU RUSTFLAGS DIRECTORY
packets_build() {
    say "building the benches of the table and the path for the $1 CPU"
    (exec {LOCK}>&- && env RUSTFLAGS="$2" HOLDFAST_BENCH_CPU="$1" CARGO_TARGET_DIR="$3" timeout 1800 \
        cargo build --quiet --release --locked --manifest-path "$PACKETS_MANIFEST") || die "the benches do not build"
}

# huge_pages COUNT: so many are free afterwards, or PACKETS_HUGE is 0.
huge_pages() {
    local all free
    if ((PACKETS_HUGE)); then
        all=$(cat "$NR_HUGEPAGES")
        free=$(awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo)
        if ((free < $1)); then
            PAGES_KEPT=$all
            { printf '%d\n' $((all + $1 - free)) >"$NR_HUGEPAGES"; } 2>/dev/null || true
            PAGES_SET=$(cat "$NR_HUGEPAGES")
            free=$(awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo)
        fi
        if ((free < $1)); then
            warn "********** only $free of $1 huge pages are free: measuring WITHOUT them **********"
            PACKETS_HUGE=0
        fi
    fi
    if ((PACKETS_HUGE)); then say "$1 huge pages of 2 MiB"; else PACKETS_OPTIONS+=(--no-huge); fi
}

# run_packets SECONDS OUT ERR COMMAND...: bounded in time.
run_packets() {
    local seconds=$1 out=$2 err=$3 status=0
    shift 3
    (exec {LOCK}>&- && exec timeout --kill-after=10 "$seconds" "$@") >"$out" 2>"$err" &
    RUNNING_PACKETS=$!
    wait "$RUNNING_PACKETS" || status=$?
    RUNNING_PACKETS=''
    return "$status"
}

# --- instructions ------------------------------------------------------------------------

# callgrind_count BINARY FAMILY: instructions of a lookup, exactly; fails where it cannot.
callgrind_count() {
    local total looked
    run_packets "$CALLGRIND_SECONDS_MAX" "$OUT/callgrind.txt" "$OUT/callgrind.log" \
        valgrind --tool=callgrind --callgrind-out-file="$OUT/callgrind.out" \
        --toggle-collect=callgrind_lookups "$1" --callgrind-target "$CALLGRIND_LOOKUPS" --families "${2#ipv}" || return 1
    total=$(awk '/^summary:/ { print $2 }' "$OUT/callgrind.out")
    looked=$(awk -v family="$2" '$1 == family { print $2 }' "$OUT/callgrind.txt")
    [[ $total =~ ^[1-9][0-9]*$ && $looked =~ ^[1-9][0-9]*$ ]] || return 1
    awk -v total="$total" -v looked="$looked" 'BEGIN { printf "%.2f\n", total / looked }'
}

# instructions -> a JSON object, by family. valgrind may not know all instructions of this CPU.
instructions() {
    local family count binary=$PACKETS_BIN/table-bench cpu=native result='{}'
    if ! have valgrind; then
        warn "********** SKIPPED: instructions, as there is no valgrind **********"
        printf '{}\n'
        return
    fi
    if ! callgrind_count "$binary" ipv4 >/dev/null; then
        cpu=x86-64-v3
        packets_build "$cpu" "-C target-cpu=$cpu -C target-feature=+aes" "$OUT/peers/packets-$cpu" >&2
        binary=$OUT/peers/packets-$cpu/release/table-bench
    fi
    for family in ipv4 ipv6; do
        if count=$(callgrind_count "$binary" "$family"); then
            result=$(jq --arg family "$family" --argjson count "$count" '. + {($family): $count}' <<<"$result")
        else
            warn "********** SKIPPED: instructions of $family: $(tail -n 1 "$OUT/callgrind.log") **********"
        fi
    done
    jq --arg cpu "$cpu" '. + {cpu: $cpu}' <<<"$result"
}

# --- testpmd -------------------------------------------------------------------------------

# testpmd_macswap DEVICE START: TSC cycles and nanoseconds of a packet, as testpmd counts them.
testpmd_macswap() {
    local log=$OUT/testpmd.log huge=(--in-memory) line cycles mhz tries=0
    ((PACKETS_HUGE)) || huge=(--no-huge -m 512)
    TESTPMD_FIFO=$OUT/testpmd.commands
    rm -f "$TESTPMD_FIFO"
    mkfifo "$TESTPMD_FIFO"
    # The main thread waits for commands beside the one that forwards, on core 0 as ours do.
    (exec {LOCK}>&- && exec timeout --kill-after=10 "$TESTPMD_SECONDS_MAX" dpdk-testpmd --lcores='0@1,1@0' \
        "${huge[@]}" --no-pci --no-telemetry --file-prefix="holdfast-testpmd-$$" --log-level='*:error' --vdev "$1" -- \
        --interactive --forward-mode=macswap --record-core-cycles --nb-cores=1 --burst=32 --total-num-mbufs=8192) \
        <"$TESTPMD_FIFO" >"$log" 2>&1 &
    RUNNING_PACKETS=$!
    exec {COMMANDS}>"$TESTPMD_FIFO"
    until grep -qa 'testpmd>' "$log"; do
        tries=$((tries + 1))
        if ((tries > 200)) || ! kill -0 "$RUNNING_PACKETS" 2>/dev/null; then break; fi
        sleep 0.1
    done
    printf '%s\n' "$2" >&"$COMMANDS" || true
    sleep 3
    printf 'stop\nquit\n' >&"$COMMANDS" || true
    exec {COMMANDS}>&-
    wait "$RUNNING_PACKETS" || true
    RUNNING_PACKETS=''
    rm -f "$TESTPMD_FIFO"
    TESTPMD_FIFO=''
    line=$(grep -a 'CPU cycles/packet=' "$log" | tail -n 1)
    cycles=$(sed -n 's/.*CPU cycles\/packet=\([0-9.]*\).*/\1/p' <<<"$line")
    mhz=$(sed -n 's/.* at \([0-9]*\) MHz.*/\1/p' <<<"$line")
    [[ -n $cycles && -n $mhz ]] || return 1
    jq -n --argjson cycles "$cycles" --argjson mhz "$mhz" \
        '{cycles: $cycles, ns: ($cycles * 10000 / $mhz | round / 10)}'
}

# testpmd_all -> a JSON object: the real testpmd, as a check on the macswap in the bench.
testpmd_all() {
    local one result='{}' name device start
    if ! have dpdk-testpmd; then
        warn "********** SKIPPED: testpmd, as there is no dpdk-testpmd (package dpdk-dev) **********"
        printf '{}\n'
        return
    fi
    while read -r name device start; do
        say "testpmd's macswap on $device"
        if one=$(testpmd_macswap "$device" "$start"); then
            result=$(jq --arg name "$name" --argjson one "$one" \
                '. + {("testpmd_" + $name + "_macswap_ns"): $one.ns, ("testpmd_" + $name + "_macswap_cycles"): $one.cycles}' <<<"$result")
        else
            warn "********** SKIPPED: testpmd on $device: $(tail -n 1 "$OUT/testpmd.log") **********"
        fi
    done <<'END'
null net_null0 start
ring net_ring0 start tx_first 8
END
    printf '%s\n' "$result"
}

# --- all of it -------------------------------------------------------------------------------

revision() { git -C "$REPOSITORY" describe --always --dirty 2>/dev/null || echo unknown; }

# write_packets FILE COMMAND FILTER...: adds what the script knows to a program's result.
write_packets() {
    local file=$1
    shift
    jq --arg revision "$(revision)" "$@" >"$file.new"
    mv "$file.new" "$file"
    say "written: $file"
}

bench_table() {
    local start counts
    packets_parse "$@"
    need_root
    packets_prepare table-bench
    case $PACKETS_SIZES in *[2-9]M* | *[0-9][0-9]M*) huge_pages "$TABLE_PAGES_8M" ;; *) huge_pages "$TABLE_PAGES_1M" ;; esac
    start=$(now_us)
    say "the session table and its peers"
    run_packets "$TABLE_SECONDS_MAX" "$OUT/table.program.json" "$OUT/table.log" \
        "$PACKETS_BIN/table-bench" "${PACKETS_OPTIONS[@]}" || die "table-bench failed: $(tail -n 2 "$OUT/table.log")"
    say "instructions of a lookup"
    counts=$(instructions)
    # shellcheck disable=SC2016 # jq's variables
    write_packets "$OUT/table.json" --argjson counts "$counts" \
        '.machine.revision = $revision | .instructions_per_lookup = $counts.ipv4
         | .instructions_per_lookup_ipv6 = $counts.ipv6 | .instructions_cpu = $counts.cpu
         | .reader_loss_percent = (."1M".ipv4.reader_loss_percent // null)' "$OUT/table.program.json"
    rm -f "$OUT/table.program.json"
    say "done after $(seconds_since "$start") s"
    jq -r -f "$SCRIPTS/lib/bench-table-table.jq" "$OUT/table.json"
    ((PAGE == 0)) || write_performance_page
}

bench_path() {
    local start testpmd
    packets_parse "$@"
    need_root
    packets_prepare path-bench
    case $PACKETS_SIZES in *[2-9]M* | *[0-9][0-9]M*) huge_pages "$PATH_PAGES_8M" ;; *) huge_pages "$PATH_PAGES_1M" ;; esac
    start=$(now_us)
    testpmd=$(testpmd_all)
    say "the packet path and its peers"
    run_packets "$PATH_SECONDS_MAX" "$OUT/path.program.json" "$OUT/path.log" \
        "$PACKETS_BIN/path-bench" "${PACKETS_OPTIONS[@]}" || die "path-bench failed: $(tail -n 2 "$OUT/path.log")"
    say "two workers on two cores"
    run_packets "$PATH_SECONDS_MAX" "$OUT/path.two.json" "$OUT/path.log" \
        "$PACKETS_BIN/path-bench" "${PACKETS_OPTIONS[@]}" --workers 2 || die "path-bench failed: $(tail -n 2 "$OUT/path.log")"
    # shellcheck disable=SC2016 # jq's variables
    write_packets "$OUT/path.json" --argjson testpmd "$testpmd" --slurpfile two "$OUT/path.two.json" '
        ($two[0] | with_entries(select(.key | startswith("two_workers")))) as $two
        | . + $testpmd + $two
        | .machine.revision = $revision
        | with_entries(if .value | type == "object" and has("ns") then
              (if $testpmd.testpmd_null_macswap_ns then .value.over_testpmd_null_macswap = (.value.ns.median / $testpmd.testpmd_null_macswap_ns * 1000 | round / 1000) else . end)
            else . end)' "$OUT/path.program.json"
    rm -f "$OUT/path.program.json" "$OUT/path.two.json"
    say "done after $(seconds_since "$start") s"
    jq -r -f "$SCRIPTS/lib/bench-path-table.jq" "$OUT/path.json"
    ((PAGE == 0)) || write_performance_page
}

# The page and the plot, from all results there are.
write_performance_page() {
    local page=$REPOSITORY/docs/results/performance.md plot=$REPOSITORY/docs/results/performance.svg file files=()
    for file in table path load load-ipv6; do
        if [[ -s $OUT/$file.json ]]; then files+=("$OUT/$file.json"); else files+=(/dev/null); fi
    done
    jq -nr --slurpfile table "${files[0]}" --slurpfile path "${files[1]}" \
        --slurpfile load <(cat "${files[2]}" "${files[3]}") \
        -f "$SCRIPTS/lib/bench-performance-page.jq" >"$page.new"
    mv "$page.new" "$page"
    if have python3; then
        python3 "$SCRIPTS/lib/bench-performance-plot.py" "${files[0]}" "${files[1]}" >"$plot.new"
        mv "$plot.new" "$plot"
        say "written: $page, $plot"
    else
        warn "********** SKIPPED: the plot, as there is no python3 **********"
    fi
}
