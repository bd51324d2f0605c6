# shellcheck shell=bash
# Servers as an operator has them: holdfast's Debian package, installed with dpkg and run by systemd
# in a machine of its own (lib/machine) on the server's network. FRR and nginx are the lab's.

# The package that servers install; without one the lab starts the daemons itself.
PACKAGE=${PACKAGE:-}

machine_run() { echo "$LAB_DIR/machine-$1-run"; }

# The machine's /run is a directory of ours, so that what is in it can be reached from here.
start_machine() {
    local node=$1 dir run work init
    dir=$(node_dir "$node") run=$(machine_run "$node") work=$LAB_DIR/machine-$1
    mkdir -p "$work" "$run/frr" "$dir-machine"
    ip netns exec "$(ns "$node")" setsid "$SCRIPTS/lib/machine" boot "$work" \
        "$run:/run" "$dir:/run/frr" "$PACKAGE:/root/holdfast.deb" "$LAB_DIR/cluster.key:/root/cluster.key" \
        </dev/null >>"$dir/machine.log" 2>&1 &
    echo $! >"$dir-machine/unshare.pid"
    init=$("$SCRIPTS/lib/machine" wait "$(cat "$dir-machine/unshare.pid")") ||
        die "the machine of $node does not start: $(tail -n 3 "$dir/machine.log")"
    echo "$init" >"$dir-machine/init"
    # Where the lab looks for every daemon's socket.
    ln -sfn "$run/holdfast/holdfastd.sock" "$dir/holdfastd.sock"
}

on_machine() { # SERVER COMMAND...
    "$SCRIPTS/lib/machine" enter "$(cat "$(node_dir "$1")-machine/init")" "${@:2}"
}

# What an operator types: it and its answer are kept, as they are on a terminal.
operator() { # SERVER COMMAND...
    local status=0
    { printf '%s# ' "$1" && printf '%s ' "${@:2}" && echo; } >>"$RUN_DIR/transcript"
    on_machine "$@" </dev/null >"$RUN_DIR/answer" 2>&1 || status=$?
    cat "$RUN_DIR/answer" >>"$RUN_DIR/transcript"
    ((status == 0)) || printf '(exit status %d)\n' "$status" >>"$RUN_DIR/transcript"
    echo >>"$RUN_DIR/transcript"
    return $status
}

# answered TEXT...: each is in the last answer.
answered() {
    local text
    for text in "$@"; do
        grep -qF -- "$text" "$RUN_DIR/answer" || fault "not in the answer of '$(last_command)': $text"
    done
}

last_command() { grep '^server[0-9]*# ' "$RUN_DIR/transcript" | tail -n 1; }

write_file() { # SERVER PATH: from standard input
    on_machine "$1" sh -c "umask 027; cat >'$2'"
}

# As the deployment chapter says: install, look, configure, check, start.
install_holdfast() {
    local node=$1
    operator "$node" dpkg -i /root/holdfast.deb || fault "dpkg does not install the package in $node"
    on_machine "$node" install -m 640 /root/cluster.key /etc/holdfast/cluster.key
    machine_config "$node" | write_file "$node" /etc/holdfast/holdfast.toml
    operator "$node" holdfastd check /etc/holdfast/holdfast.toml || fault "the configuration of $node is not valid"
    operator "$node" systemctl enable --now holdfast-hold holdfastd || fault "holdfastd does not start in $node"
}

machine_config() {
    local dir family
    dir=$(node_dir "$1")
    holdfastd_config "$1" | sed -e '/^control_socket/d' \
        -e "s|$LAB_DIR/cluster.key|/etc/holdfast/cluster.key|" -e "s|$dir/incidents.jsonl|/var/lib/holdfast/incidents.jsonl|"
    printf '\n[announce]\nannouncer = "frr"\nsettle = "2s"\n'
    for family in $(service_families); do
        printf '\n[[check]]\nservice = "%s"\nkind = "http"\ninterval = "1s"\n' \
            "$(socket_text "$(anycast "$family")" "$SERVICE_PORT")"
    done
}

# SIGKILL: what is in it has no end of its own that matters, and all of it ends with it.
end_machines() { end_all KILL unshare; }
