# shellcheck shell=bash
# `bench load`: the real holdfastd under a packet generator in another process, which plays
# network and kernel. Everything runs in a namespace and a directory of its own, and goes with
# them. It needs lib/common.sh, and `machine` and $OUT of scripts/bench.

load_usage() {
    cat <<'END'
usage: bench load [OPTION...]

load: packets through holdfastd, offered, forwarded, lost, and latencies, while sessions are
      installed and come and go; a mix, hits, redirects and misses, each at a fixed rate and at
      the highest with little loss

  --quick              50,000 sessions and short measurements: under 90 s
  --family 4|6         clients, service and locators (4); 6 writes load-ipv6.json
  --sessions N         sessions of the daemon under test (1000000)
  --runs LIST          of mix,hits,redirects,misses, by commas (all)
  --redirects N --churn N --install-rate N --learn-rate N
  --mix-rate N --hits-rate N --redirects-rate N --misses-rate N
  --seconds S --step-seconds S --steps N --loss-percent P --frame-bytes N --sample N
                       passed on to packet-load: see packet-load --help
  --uplink PCI --generator PCI
                       two NICs or virtual functions, cabled together or through a switch and
                       bound to vfio-pci: the uplink of the daemon under test, and the
                       generator's port; without them the uplink is a memif, like the host port
  --ring N             slots of each memif and descriptors of a NIC's queue, a power of two
                       (4096): where others use the CPUs, more of them ride out a pause
  --cpus G,W,S         CPUs of the generator, the worker under test and all the rest (0,1,2;
                       with two CPUs 0,1,0)
  --dry-run            print configurations and commands, check them, and start nothing
  --no-build           take the programs as they are in target/release (or --bin-dir)
  --bin-dir DIR        take them from there

Exit code 0: every packet was accounted for, none changed, none came out at the wrong side.
END
}

LOAD_NAMESPACE=hfload
LOAD_FAMILY=4 LOAD_QUICK=0 LOAD_DRY_RUN=0 LOAD_SESSIONS='' LOAD_REDIRECTS=''
LOAD_UPLINK='' LOAD_GENERATOR='' LOAD_CPUS='' LOAD_RING=4096
LOAD_ARGS=()
LOAD_PACKETS_MAX=16384 # parked
# MiB of DPDK memory of the daemon under test, the other one, and the generator.
LOAD_NEAR_MIB='' LOAD_FAR_MIB='' LOAD_GENERATOR_MIB=160
LOAD_DIR='' LOAD_HUGE=off LOAD_PAGES_BEFORE='' LOAD_PAGES_SET=''

load_options() {
    while (($#)); do
        case $1 in
            --quick) LOAD_QUICK=1; shift; continue ;;
            --dry-run) LOAD_DRY_RUN=1; shift; continue ;;
            --no-build) BUILD=0; shift; continue ;;
            -h | --help) load_usage; exit 0 ;;
        esac
        (($# >= 2)) || die "unknown option $1, or its value is missing; see: bench load --help"
        case $1 in
            --family)
                [[ $2 == [46] ]] || die "--family is 4 or 6, not '$2'"
                LOAD_FAMILY=$2
                ;;
            --sessions)
                is_count "$2" 1000 20000000 || die "--sessions is from 1000 to 20000000, not '$2'"
                LOAD_SESSIONS=$2
                ;;
            --redirects)
                is_count "$2" 1 10000000 || die "--redirects is from 1 to 10000000, not '$2'"
                LOAD_REDIRECTS=$2
                ;;
            --churn | --install-rate | --learn-rate | --mix-rate | --hits-rate | --redirects-rate | --misses-rate | --steps | --frame-bytes | --sample)
                is_count "$2" 0 100000000 || die "$1 is a whole number, not '$2'"
                LOAD_ARGS+=("$1" "$2")
                ;;
            --runs | --seconds | --step-seconds | --loss-percent)
                [[ $2 =~ ^[a-z,0-9.]+$ ]] || die "$1 cannot be '$2'"
                LOAD_ARGS+=("$1" "$2")
                ;;
            --uplink) LOAD_UPLINK=$(load_pci --uplink "$2") || exit 1 ;;
            --generator) LOAD_GENERATOR=$(load_pci --generator "$2") || exit 1 ;;
            --ring)
                { is_count "$2" 256 8192 && ((($2 & ($2 - 1)) == 0)); } ||
                    die "--ring is a power of two from 256 to 8192, not '$2'"
                LOAD_RING=$2
                ;;
            --cpus)
                [[ $2 =~ ^[0-9]{1,3},[0-9]{1,3},[0-9-]{1,7}$ ]] || die "--cpus is G,W,S as in 0,1,2-7, not '$2'"
                LOAD_CPUS=$2
                ;;
            --bin-dir) BIN_DIR=$2 BUILD=0 ;;
            *) die "unknown option $1; see: bench load --help" ;;
        esac
        shift 2
    done
    load_check_options
}

# A PCI address as DPDK writes it.
load_pci() { # OPTION ADDRESS
    local address=${2,,}
    [[ $address =~ ^[0-9a-f]{2}: ]] && address=0000:$address
    [[ $address =~ ^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$ ]] ||
        die "$1 is a PCI address as in 0000:3b:02.0, not '$2'"
    echo "$address"
}

load_check_options() {
    local cpus
    cpus=$(nproc)
    if [[ -n $LOAD_UPLINK || -n $LOAD_GENERATOR ]]; then
        [[ -n $LOAD_UPLINK && -n $LOAD_GENERATOR ]] ||
            die "--uplink and --generator go together: both ports are needed, or none"
        [[ $LOAD_UPLINK != "$LOAD_GENERATOR" ]] || die "--uplink and --generator are the same port"
    fi
    if [[ -z $LOAD_CPUS ]]; then
        ((cpus >= 2)) || die "needs two CPUs: generator and worker both poll"
        LOAD_CPUS=0,1,0
        ((cpus == 2)) || LOAD_CPUS=0,1,2-$((cpus - 1))
    fi
    IFS=, read -r LOAD_CPU_GENERATOR LOAD_CPU_WORKER LOAD_CPU_REST <<<"$LOAD_CPUS"
    [[ $LOAD_CPU_GENERATOR != "$LOAD_CPU_WORKER" ]] || die "--cpus: generator and worker need a CPU each"
    if ((LOAD_QUICK)); then
        : "${LOAD_SESSIONS:=50000}" "${LOAD_REDIRECTS:=10000}"
        # What was asked for stands behind, and wins.
        LOAD_ARGS=(--seconds 1 --step-seconds 0.5 --steps 5 --churn 5000 ${LOAD_ARGS[@]+"${LOAD_ARGS[@]}"})
    fi
    : "${LOAD_SESSIONS:=1000000}" "${LOAD_REDIRECTS:=$((LOAD_SESSIONS / 10))}"
    # Both ports' descriptors, what is parked, and some under way; 4 KiB each with small pages.
    LOAD_MBUFS=$((4 * LOAD_RING + LOAD_PACKETS_MAX + 8192))
    LOAD_MBUFS_FAR=$((4 * LOAD_RING + 8192))
    LOAD_NEAR_MIB=$((LOAD_MBUFS / 250 + 64)) LOAD_FAR_MIB=$((LOAD_MBUFS_FAR / 250 + 64))
    if ((LOAD_FAMILY == 4)); then
        LOAD_NEAR=10.99.0.1 LOAD_FAR=10.99.0.2 LOAD_MEMBERS=10.99.0.0/24 LOAD_SERVICE=192.168.0.1
        LOAD_RESULT=$OUT/load.json
    else
        LOAD_NEAR=fd00:99::1 LOAD_FAR=fd00:99::2 LOAD_MEMBERS=fd00:99::/64 LOAD_SERVICE=2001:db8:192:168::1
        LOAD_RESULT=$OUT/load-ipv6.json
    fi
}

load_socket_text() { # ADDRESS PORT
    if [[ $1 == *:* ]]; then echo "[$1]:$2"; else echo "$1:$2"; fi
}

# The generator is the server of each memif, so that it can be there before the daemons.
load_memif() { # NUMBER ROLE ID
    local bits=0
    while ((1 << bits < LOAD_RING)); do bits=$((bits + 1)); done
    echo "net_memif$1,role=$2,id=$3,socket=$LOAD_DIR/memif.sock,socket-abstract=no,rsize=$bits,bsize=2048"
}

# --- the daemons -----------------------------------------------------------------------

# Limits are out of the way of what is measured: those of admission are the greatest there are,
# and the parking is large. Closed sessions leave soon, so that coming and going reaches a
# balance within the run; the table has room for them.
load_config() { # near|far
    local locator=$LOAD_NEAR uplink host cores=$LOAD_CPU_WORKER idle=busy mib=$LOAD_NEAR_MIB
    local mbufs=$LOAD_MBUFS packets_max=$LOAD_PACKETS_MAX capacity=$((2 * LOAD_SESSIONS + LOAD_REDIRECTS + 500000))
    uplink=$(load_memif 0 client 0)
    host=$(load_memif 1 client 1)
    [[ -z $LOAD_UPLINK ]] || uplink=$LOAD_UPLINK
    if [[ $1 == far ]]; then
        locator=$LOAD_FAR cores=${LOAD_CPU_REST%%[-,]*} idle=adaptive mib=$LOAD_FAR_MIB
        mbufs=$LOAD_MBUFS_FAR packets_max=2048 capacity=$((2 * LOAD_REDIRECTS + 100000))
        # Nobody reads what it sends to the network, and nothing comes from there.
        uplink=net_null0,no-rx=1
        host=$(load_memif 1 client 2)
    fi
    cat <<END
[node]
locator = "$locator"
control_socket = "$LOAD_DIR/$1.sock"

[dpdk]
eal_args = ["--no-telemetry"]
huge_pages = "$LOAD_HUGE"
memory_mib = $mib
file_prefix = "hfload-$1-$$"
mbufs_per_worker = $mbufs

[uplink]
device = "$uplink"
rx_descriptors = $LOAD_RING
tx_descriptors = $LOAD_RING

[host_port]
device = "$host"

[workers]
cores = [$cores]
idle = "$idle"

[[service]]
address = "$LOAD_SERVICE"
ports = [80]

[sessions]
capacity = $capacity
linger = "2s"
kernel_check = "1s"
redirect_idle = "1h"

[parking]
packets_max = $packets_max

[admission]
lookups_per_second = 10_000_000
burst = 1_048_576
per_source_per_second = 10_000_000
per_source_burst = 1_048_576

[dht]
bootstrap = ["$(load_socket_text "$LOAD_NEAR" 7000)", "$(load_socket_text "$LOAD_FAR" 7000)"]
records_max = $((4 * (LOAD_SESSIONS + LOAD_REDIRECTS) + 1000000))

[cluster]
members = ["$LOAD_MEMBERS"]
key_file = "$LOAD_DIR/cluster.key"
END
}

# load_exec COMMAND...: in the namespace, before what else runs on this machine. With a session
# comes a scheduling group, whose rank counts where the kernel makes such groups.
load_exec() {
    exec {LOCK}>&-
    # shellcheck disable=SC2016 # the inner shell's
    exec setsid bash -c '
        echo -20 >/proc/self/autogroup
        renice -n -20 -p $$ >&2
        exec ip netns exec "$@"' - "$LOAD_NAMESPACE" "$@"
}

load_start_daemon() { # near|far
    # Its workers pin themselves; all its other threads are kept off the worker under test.
    (load_exec taskset -c "$LOAD_CPU_REST" "$BIN_DIR/holdfastd" run "$LOAD_DIR/$1.toml") \
        </dev/null >"$OUT/load-$1.log" 2>&1 &
    echo $! >"$LOAD_DIR/$1.pid"
}

load_generator_command() {
    local uplink
    uplink=$(load_memif 0 server 0)
    [[ -z $LOAD_GENERATOR ]] || uplink=$LOAD_GENERATOR
    LOAD_COMMAND=("$BIN_DIR/packet-load" --uplink "$uplink"
        --host "$(load_memif 1 server 1)" --far-host "$(load_memif 2 server 2)"
        --near-control "$LOAD_DIR/near.sock" --far-control "$LOAD_DIR/far.sock"
        --near-locator "$LOAD_NEAR" --far-locator "$LOAD_FAR"
        --service "$(load_socket_text "$LOAD_SERVICE" 80)" --holdfastctl "$BIN_DIR/holdfastctl"
        --cpu "$LOAD_CPU_GENERATOR" --memory-mib "$LOAD_GENERATOR_MIB" --file-prefix "hfload-generator-$$"
        --sessions "$LOAD_SESSIONS" --redirects "$LOAD_REDIRECTS")
    LOAD_COMMAND+=(${LOAD_ARGS[@]+"${LOAD_ARGS[@]}"})
    [[ $LOAD_HUGE == on ]] || LOAD_COMMAND+=(--no-huge)
}

load_start_generator() {
    local seconds=1200
    ((LOAD_QUICK == 0)) || seconds=80
    load_generator_command
    (load_exec timeout --kill-after=10 "$seconds" "${LOAD_COMMAND[@]}") \
        </dev/null >"$LOAD_DIR/result.json" 2>"$OUT/load-generator.log" &
    LOAD_PID=$!
    echo "$LOAD_PID" >"$LOAD_DIR/generator.pid"
}

# load_wait_for WORD: what the generator says when it has come so far; false when it ended before.
load_wait_for() {
    until grep -qs "^packet-load: $1\$" "$OUT/load-generator.log"; do
        kill -0 "$LOAD_PID" 2>/dev/null || return 1
        sleep 0.1
    done
}

# load_last_words NAME: why it ended, if it said so, without a backtrace.
load_last_words() {
    local log=$OUT/load-$1.log
    if grep -q '^Error: ' "$log"; then
        sed -n '/^Error: /,/^$/p' "$log" | sed '/^Stack backtrace:/,$d' | tr '\n' ' '
    else
        tail -n 2 "$log" | tr '\n' ' '
    fi
}

load_show_progress() {
    # Without the lock: these may outlive this shell.
    tail -n +1 -F --pid="$LOAD_PID" "$OUT/load-generator.log" 2>/dev/null {LOCK}>&- |
        sed -un 's/^packet-load: /  /p' >&2 {LOCK}>&- &
}

# --- huge pages --------------------------------------------------------------------------

load_free_pages() { awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo; }

# Sets LOAD_HUGE. What was reserved before is given back by load_clean_up.
load_reserve_pages() {
    local file=/proc/sys/vm/nr_hugepages page_kib needed free
    page_kib=$(awk '/^Hugepagesize:/ { print $2 }' /proc/meminfo)
    [[ -n $page_kib ]] || { warn "no huge pages in this kernel: the figures are those of small pages"; return 0; }
    needed=$(((LOAD_NEAR_MIB + LOAD_FAR_MIB + LOAD_GENERATOR_MIB) * 1024 / page_kib + 1))
    free=$(load_free_pages)
    if ((free < needed)); then
        LOAD_PAGES_BEFORE=$(cat "$file")
        LOAD_PAGES_SET=$((LOAD_PAGES_BEFORE + needed - free))
        echo "$LOAD_PAGES_SET" 2>/dev/null >"$file" || true
        free=$(load_free_pages)
    fi
    if ((free >= needed)); then
        LOAD_HUGE=on
    else
        warn "$needed huge pages are needed and $free are free: the figures are those of small pages"
    fi
}

load_return_pages() {
    local file=/proc/sys/vm/nr_hugepages
    [[ -n $LOAD_PAGES_SET ]] || return 0
    # Somebody else may have changed it meanwhile.
    [[ $(cat "$file") -gt $LOAD_PAGES_SET ]] || echo "$LOAD_PAGES_BEFORE" 2>/dev/null >"$file" || true
    LOAD_PAGES_SET=''
}

# --- beginning and end ---------------------------------------------------------------------

load_network_up() {
    local length=32 pid
    ((LOAD_FAMILY == 4)) || length=128
    # What a run left that was killed itself; with the lock held no other one is running.
    for pid in $(ip netns pids "$LOAD_NAMESPACE" 2>/dev/null); do
        warn "process $pid is left of a run before: ended"
        kill -KILL "$pid" 2>/dev/null || true
    done
    ip netns delete "$LOAD_NAMESPACE" 2>/dev/null || true
    ip netns add "$LOAD_NAMESPACE"
    ip -n "$LOAD_NAMESPACE" link set lo up
    ip -n "$LOAD_NAMESPACE" address add "$LOAD_NEAR/$length" dev lo
    ip -n "$LOAD_NAMESPACE" address add "$LOAD_FAR/$length" dev lo
}

load_stop() { # NAME...
    local name pid pids=() tries
    for name; do
        [[ -r $LOAD_DIR/$name.pid ]] || continue
        pid=$(cat "$LOAD_DIR/$name.pid")
        # Only what this shell started: a pid that was given to another is not its child.
        [[ $(ps -o ppid= -p "$pid" 2>/dev/null) -eq $$ ]] || continue
        kill "$pid" 2>/dev/null && pids+=("$pid")
    done
    for ((tries = 0; tries < 50 && ${#pids[@]}; tries++)); do
        kill -0 "${pids[@]}" 2>/dev/null || break
        sleep 0.1
    done
    for pid in ${pids[@]+"${pids[@]}"}; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
}

# shellcheck disable=SC2317 # called by the trap
load_clean_up() {
    load_stop generator near far
    ip netns delete "$LOAD_NAMESPACE" 2>/dev/null || true
    load_return_pages
    [[ -z $LOAD_DIR ]] || rm -rf "$LOAD_DIR"
}

load_build() {
    if ((BUILD)); then
        say "building holdfastd, holdfastctl and packet-load"
        (cd "$REPOSITORY" && cargo build --release --locked -p holdfast -p holdfast-bench \
            --bin holdfastd --bin holdfastctl --bin packet-load)
    fi
    local program
    for program in holdfastd holdfastctl packet-load; do
        [[ -x $BIN_DIR/$program ]] || die "no $program in $BIN_DIR: leave --no-build out"
    done
}

load_check_nics() {
    local address driver
    for address in $LOAD_UPLINK $LOAD_GENERATOR; do
        [[ -e /sys/bus/pci/devices/$address ]] || die "there is no PCI device $address here"
        driver=$(basename "$(readlink "/sys/bus/pci/devices/$address/driver")")
        case $driver in
            vfio-pci | uio_pci_generic | igb_uio | mlx5_core | mlx4_core) ;;
            *) die "$address is bound to '$driver': dpdk-devbind.py --bind=vfio-pci $address" ;;
        esac
    done
}

load_prepare() {
    [[ ! -d ${CARGO_HOME:-$HOME/.cargo}/bin ]] || PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    need_tools ip jq flock timeout taskset awk
    mkdir -p "$OUT"
    exec {LOCK}>/run/lock/holdfast-bench-load.lock
    flock -n "$LOCK" || die "another bench load is running"
    load_build
    trap load_clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    # A socket's path has at most 107 bytes.
    LOAD_DIR=$(mktemp -d /tmp/hfload.XXXXXX)
    (umask 077 && od -An -v -tx1 -N32 /dev/urandom | tr -d " \n" >"$LOAD_DIR/cluster.key")
}

load_show_plan() {
    local name
    load_generator_command
    for name in near far; do
        printf '# %s.toml, on CPUs %s\n' "$name" "$LOAD_CPU_REST"
        cat "$LOAD_DIR/$name.toml"
        "$BIN_DIR/holdfastd" check "$LOAD_DIR/$name.toml" || die "holdfastd refuses $name.toml"
        echo
    done
    printf '# generator\n%s\n' "${LOAD_COMMAND[*]}"
    "${LOAD_COMMAND[@]}" --dry-run
}

load_write_result() {
    local mode=memif
    [[ -z $LOAD_UPLINK ]] || mode=nic
    jq --argjson machine "$(machine)" --argjson family "$LOAD_FAMILY" --arg mode "$mode" --arg huge "$LOAD_HUGE" \
        --arg cpus "$LOAD_CPUS" --argjson ring "$LOAD_RING" --argjson limits "$(load_limits)" '
        {machine: ($machine + {huge_pages: $huge, cpus: $cpus, uplink: $mode, ring: $ring}), family: $family,
         note: "Information, not a comparison: generator and daemon share a machine, and where CPUs are few the DHT cores run on the generator'"'"'s. Two processes on two cores vary fivefold.",
         limits: $limits} + .' "$LOAD_DIR/result.json" >"$LOAD_RESULT.new"
    mv "$LOAD_RESULT.new" "$LOAD_RESULT"
}

# What the configuration of the daemon under test raises.
load_limits() {
    sed -n '/^\[\(sessions\|parking\|admission\)\]/,/^$/p' "$LOAD_DIR/near.toml" |
        jq -Rn '[inputs | select(test("^[a-z]"))
                 | capture("^(?<key>[a-z_]+) = (?<value>.*)$")
                 | {key, value: (.value | gsub("[\"_]"; "") | tonumber? // .)}] | from_entries'
}

bench_load() {
    local name start status=0
    load_options "$@"
    need_root
    [[ -z $LOAD_UPLINK ]] || ((LOAD_DRY_RUN)) || load_check_nics
    load_prepare
    start=$(now_us)
    # shellcheck disable=SC2034 # read by `machine`
    LOAD_BEFORE=$(cut -d ' ' -f 1 /proc/loadavg)
    load_reserve_pages
    for name in near far; do load_config "$name" >"$LOAD_DIR/$name.toml"; done
    if ((LOAD_DRY_RUN)); then
        load_show_plan
        return
    fi
    rm -f "$LOAD_RESULT" "$OUT/load-generator.log"
    load_network_up
    load_start_generator
    load_show_progress
    # The daemons' memifs want the generator's socket to be there.
    load_wait_for ready || die "the generator does not start: $(load_last_words generator)"
    load_start_daemon far
    load_start_daemon near
    load_wait_for finished || true
    for name in near far; do
        kill -0 "$(cat "$LOAD_DIR/$name.pid")" 2>/dev/null ||
            die "$name ended: $(load_last_words "$name"); the generator: $(load_last_words generator)"
    done
    load_stop near far
    wait "$LOAD_PID" || status=$?
    jq -se 'length == 1 and (.[0] | has("faults"))' "$LOAD_DIR/result.json" >/dev/null 2>&1 ||
        die "packet-load gave no result (exit code $status): $(load_last_words generator)"
    load_write_result
    say "done after $(seconds_since "$start") s"
    jq -r -f "$SCRIPTS/lib/bench-load-table.jq" "$LOAD_RESULT"
    say "written: $LOAD_RESULT"
    ((status == 0)) || die "FAILED: $(jq -r '.faults | length' "$LOAD_RESULT") faults, see .faults of the result"
}
