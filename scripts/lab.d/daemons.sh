# shellcheck shell=bash
# The lab's processes: FRR (zebra, bgpd) on routers and servers, nginx,
# session-serve and, in holdfast mode, holdfastd on servers. Writes their
# configurations, starts them, and ends them by pid file alone.

FRR_LIBEXEC=/usr/lib/frr
BULK_LINES_PER_MIB=104858 # of 10 bytes
SERVICE_PORT=80
SERVE_PORT=9000 # session-serve, behind the anycast address too
HEALTH_PORT=8080
DHT_PORT=7000
METRICS_PORT=9464

node_dir() { echo "$LAB_DIR/$1"; }

# --- FRR ---------------------------------------------------------------------

# Nexthop groups stay out of the kernel: it drops a member whose link went down,
# and FRR 8.4 keeps the group as if whole and never puts the member back.
zebra_config() {
    local node=$1 peer
    echo "hostname $node"
    echo "no zebra nexthop kernel enable"
    for peer in $(bgp_peers "$node"); do
        cat <<END
interface $(bgp_interface "$node" "$peer")
 no ipv6 nd suppress-ra
 ipv6 nd ra-interval msec 1000
 ipv6 nd ra-lifetime 0
exit
END
    done
}

# A server in holdfast mode speaks BGP on the appliance's host port.
bgp_interface() { # NODE PEER
    if [[ $1 == server* ]]; then host_interface "$1"; else echo "$2"; fi
}

bgpd_config() {
    local node=$1 family peer peers=()
    for peer in $(bgp_peers "$node"); do peers+=("$(bgp_interface "$node" "$peer")"); done
    cat <<END
hostname $node
router bgp $(as_number "$node")
 bgp router-id $(loopback 4 "$node")
 bgp log-neighbor-changes
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp bestpath as-path multipath-relax
 timers bgp 2 6
 coalesce-time 50
 neighbor fabric peer-group
 neighbor fabric remote-as external
 neighbor fabric advertisement-interval 0
 neighbor fabric timers connect 1
END
    for peer in "${peers[@]}"; do
        echo " neighbor $peer interface peer-group fabric"
    done
    for family in $(families); do
        echo " address-family ipv$family unicast"
        networks_of "$family" "$node" | sed 's/^/  network /'
        cat <<END
  neighbor fabric activate
  maximum-paths 64
 exit-address-family
END
    done
}

networks_of() { # FAMILY NODE
    local length
    length=$(host_length "$1")
    echo "$(loopback "$1" "$2")/$length"
    case $2 in
        # With a package holdfastd has it announced.
        server*) [[ -n $PACKAGE ]] || echo "$(anycast "$1")/$length" ;;
        edge) client_net "$1" ;;
    esac
}

start_frr() {
    local node=$1 dir daemon
    dir=$(node_dir "$node")
    zebra_config "$node" >"$dir/zebra.conf"
    bgpd_config "$node" >"$dir/bgpd.conf"
    chown -R frr:frr "$dir/zebra.conf" "$dir/bgpd.conf"
    for daemon in zebra bgpd; do
        in_node "$node" "$FRR_LIBEXEC/$daemon" -d -P 0 \
            -f "$dir/$daemon.conf" -i "$dir/$daemon.pid" -z "$dir/zserv.api" \
            --vty_socket "$dir" --log "file:$dir/$daemon.log" --log-level informational \
            >>"$dir/$daemon.out" 2>&1 ||
            die "$daemon does not start in $node: see $dir/$daemon.out and $dir/$daemon.log"
    done
}

vtysh_in() { # NODE COMMAND
    vtysh --vty_socket "$(node_dir "$1")" -c "$2" 2>/dev/null
}

# --- nginx -------------------------------------------------------------------

# The bulk file: numbered lines, so that any piece out of place changes the hash.
make_bulk_file() {
    mkdir -p "$LAB_DIR/www"
    seq 100000000 $((99999999 + BULK_MIB * BULK_LINES_PER_MIB)) >"$LAB_DIR/www/bulk"
    sha256sum <"$LAB_DIR/www/bulk" | cut -d ' ' -f 1 >"$LAB_DIR/bulk.sha256"
    chmod -R a+rX "$LAB_DIR/www"
}

nginx_listen() { # FAMILY ADDRESS PORT [PARAMETERS]
    if [[ $1 == 4 ]]; then echo "listen $2:$3 ${4:-};"; else echo "listen [$2]:$3 ${4:-};"; fi
}

# What a session asks comes back in the answer ("id"), so that a client can tell
# an answer that is not its own.
nginx_config() {
    local node=$1 dir family
    dir=$(node_dir "$node")
    cat <<END
worker_processes 1;
user root;
pid $dir/nginx.pid;
error_log $dir/nginx.log notice;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path $dir/tmp-body;
    proxy_temp_path $dir/tmp-proxy;
    fastcgi_temp_path $dir/tmp-fastcgi;
    uwsgi_temp_path $dir/tmp-uwsgi;
    scgi_temp_path $dir/tmp-scgi;
    sendfile on;
    sendfile_max_chunk 128k;
    tcp_nodelay on;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    send_timeout 120s;
    server_tokens off;
    default_type text/plain;
    add_header X-Server $node always;
    server {
$(for family in $(families); do
        echo "        $(nginx_listen "$family" "$(anycast "$family")" "$SERVICE_PORT" "$NGINX_LISTEN")"
    done)
        root $LAB_DIR/www;
        location = / { return 200 "holdfast lab \$arg_id\n"; }
        location = /bulk { limit_rate ${BULK_RATE_KIB}k; }
        location /up/ { root $dir; dav_methods PUT; client_max_body_size 64m; }
    }
    server {
$(for family in $(families); do
        echo "        $(nginx_listen "$family" "$(loopback "$family" "$node")" "$HEALTH_PORT")"
    done)
        location = / { return 200 "$node\n"; }
    }
}
END
}

start_nginx() {
    local node=$1 dir
    dir=$(node_dir "$node")
    mkdir -p "$dir/up"
    nginx_config "$node" >"$dir/nginx.conf"
    in_node "$node" nginx -q -p "$dir" -c "$dir/nginx.conf" >>"$dir/nginx.out" 2>&1 ||
        die "nginx does not start in $node: see $dir/nginx.out and $dir/nginx.log"
}

# --- session-serve -----------------------------------------------------------

# Answers what nginx does not: half-closed sessions, resets, echoes.
start_session_serve() {
    local node=$1 dir family listen=()
    [[ -x $BIN_DIR/session-serve ]] || return 0 # only `lab test` needs it
    dir=$(node_dir "$node")
    for family in $(families); do
        listen+=(--listen "$(socket_text "$(anycast "$family")" "$SERVE_PORT")")
    done
    ip netns exec "$(ns "$node")" setsid "$BIN_DIR/session-serve" "${listen[@]}" --name "$node" \
        </dev/null >>"$dir/session-serve.log" 2>&1 &
    echo $! >"$dir/session-serve.pid"
}

# --- holdfastd ---------------------------------------------------------------

holdfastd_config() {
    local node=$1 dir family locator members first
    dir=$(node_dir "$node")
    family=$(locator_family)
    locator=$(loopback "$family" "$node")
    first=$(loopback "$family" server1)
    if [[ $family == 4 ]]; then members=10.0.0.0/24; else members=2001:db8:10::/64; fi
    cat <<END
[node]
locator = "$locator"
control_socket = "$dir/holdfastd.sock"

[dpdk]
eal_args = ["--no-telemetry"]
huge_pages = "$(if [[ -n $(uplink_of "$node") ]]; then echo auto; else echo off; fi)"
memory_mib = 192
file_prefix = "$(ns "$node")"

[uplink]
$(uplink_keys "$node")

[host_port]
device = "tap:host0"
$(host_mac_key "$node")
$HOST_PORT_KEYS

[workers]
cores = [$((($(node_number "$node") - 1) % $(nproc)))]
idle = "adaptive"

[sessions]
capacity = 100_000
$SESSIONS_KEYS
END
    for family in $(service_families); do
        printf '\n[[service]]\naddress = "%s"\nports = [%d, %d]\n' \
            "$(anycast "$family")" "$SERVICE_PORT" "$SERVE_PORT"
    done
    cat <<END

[tunnel]
encapsulation = "$ENCAP"

# Daemons share CPUs here, and may wait for one longer than any server's would.
[parking]
grace = "150ms"

[dht]
bootstrap = ["$(socket_text "$first" "$DHT_PORT")"]
$DHT_KEYS

[cluster]
members = ["$members"]
key_file = "$LAB_DIR/cluster.key"

[incidents]
journal = "$dir/incidents.jsonl"

[metrics]
listen = "$(socket_text "$locator" "$METRICS_PORT")"
END
}

make_cluster_key() {
    (umask 077 && od -An -v -tx1 -N32 /dev/urandom | tr -d " \n" >"$LAB_DIR/cluster.key")
}

socket_text() { # ADDRESS PORT
    if [[ $1 == *:* ]]; then echo "[$1]:$2"; else echo "$1:$2"; fi
}

# Also holds the host port, in a directory of its own, so that the interface keeps its carrier
# when holdfastd is ended and started again.
start_holdfastd() {
    local node=$1 dir
    dir=$(node_dir "$node")
    if [[ -n $PACKAGE ]]; then
        start_machine "$node"
        install_holdfast "$node"
        return 0
    fi
    holdfastd_config "$node" >"$dir/holdfastd.toml"
    mkdir -p "$dir-hold"
    process_of "$dir-hold/holdfastd.pid" >/dev/null || run_holdfastd "$node" hold "$dir-hold"
    run_holdfastd "$node" run "$dir"
}

run_holdfastd() { # NODE VERB DIRECTORY
    # Not in_node: $! must be the process itself, not a subshell around it.
    ip netns exec "$(ns "$1")" setsid "$HOLDFASTD" "$2" "$(node_dir "$1")/holdfastd.toml" \
        </dev/null >>"$3/holdfastd.log" 2>&1 &
    echo $! >"$3/holdfastd.pid"
}

# The host port's kernel interface is there before the appliance carries its packets.
finish_host_port() {
    local node=$1 dir tries
    dir=$(node_dir "$node")
    for ((tries = 0; tries < 200; tries++)); do
        if [[ -S $dir/holdfastd.sock ]]; then
            # The interface is new: the "default" settings of the node hold for it.
            ip -n "$(ns "$node")" link set host0 mtu "$HOST_MTU" up
            return 0
        fi
        [[ -n $PACKAGE ]] || process_of "$dir/holdfastd.pid" >/dev/null ||
            die "holdfastd ended in $node: $(tail -n 3 "$dir/holdfastd.log")"
        sleep 0.1
    done
    die "holdfastd in $node does not run after 20 s: see $dir/holdfastd.log"
}

# --- ending ------------------------------------------------------------------

# process_of PID_FILE: prints the pid if that process lives and bears the name
# of the file (zebra.pid: zebra); a pid that was given to another is not ours.
process_of() {
    local pid name comm
    [[ -r $1 ]] || return 1
    read -r pid <"$1" || return 1
    [[ $pid =~ ^[0-9]+$ ]] || return 1
    name=${1##*/}
    name=${name%.pid}
    read -r comm 2>/dev/null <"/proc/$pid/comm" || return 1
    # holdfastd may name its main thread; before exec a process is still bash, ip or setsid.
    [[ $comm == "$name" || ($name == holdfastd && $comm == holdfast*) || $comm =~ ^(bash|lab|ip|setsid)$ ]] || return 1
    echo "$pid"
}

# end_all SIGNAL NAME: to every process of that name in the lab.
end_all() {
    local file pid
    for file in "$LAB_DIR"/*/"$2".pid; do
        if pid=$(process_of "$file"); then kill "-$1" "$pid" 2>/dev/null || true; fi
    done
}

any_left() { # NAME...
    local name file
    for name in "$@"; do
        for file in "$LAB_DIR"/*/"$name".pid; do
            if process_of "$file" >/dev/null; then return 0; fi
        done
    done
    return 1
}

LAB_DAEMONS=(tcpdump session-load session-serve nginx bgpd zebra holdfastd unshare)

stop_daemons() {
    local name tries
    end_machines
    for name in "${LAB_DAEMONS[@]}"; do end_all TERM "$name"; done
    for ((tries = 0; tries < 50; tries++)); do
        any_left "${LAB_DAEMONS[@]}" || return 0
        sleep 0.1
    done
    for name in "${LAB_DAEMONS[@]}"; do end_all KILL "$name"; done
    sleep 0.2
    if any_left "${LAB_DAEMONS[@]}"; then warn "some of the lab's processes did not end"; fi
}

# end_daemon SIGNAL NODE NAME: ends one, and waits until it is gone.
end_daemon() {
    local file pid tries
    file=$(node_dir "$2")/$3.pid
    pid=$(process_of "$file") || return 0
    kill "-$1" "$pid" 2>/dev/null || true
    for ((tries = 0; tries < 100; tries++)); do
        process_of "$file" >/dev/null || return 0
        sleep 0.05
    done
    die "$3 in $2 does not end by $1"
}

# --- a server as a whole -------------------------------------------------------

start_server() {
    if [[ $MODE == holdfast ]]; then
        start_holdfastd "$1"
        finish_host_port "$1"
    fi
    start_frr "$1"
    start_nginx "$1"
    start_session_serve "$1"
    rm -f "$LAB_DIR/absent/$1"
}

# stop_server SIGNAL SERVER: all its processes, the appliance first: with KILL the
# network sees no more than when it loses power.
stop_server() {
    local name
    touch "$LAB_DIR/absent/$2"
    for name in holdfastd bgpd zebra session-serve nginx; do end_daemon "$1" "$2" "$name"; done
}

# withdraw SERVER, announce SERVER: the anycast route alone.
set_announced() { # SERVER '' or no
    local family args=(-c "configure terminal" -c "router bgp $(as_number "$1")")
    for family in $(families); do
        args+=(-c "address-family ipv$family unicast"
            -c "$2 network $(anycast "$family")/$(host_length "$family")" -c "exit-address-family")
    done
    vtysh --vty_socket "$(node_dir "$1")" "${args[@]}" >/dev/null
}
