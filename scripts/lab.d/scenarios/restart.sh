# shellcheck shell=bash
# The daemon goes and comes back; the kernel, and with it the sessions, stay.

# restart_holdfastd SIGNAL SERVER [SECONDS]: as a supervisor would, so long after its end.
restart_holdfastd() {
    save_stats_of "$2"
    end_daemon "$1" "$2" holdfastd
    sleep "${3:-0.1}"
    start_holdfastd "$2"
    finish_host_port "$2"
}

scenario daemon-killed "R7 R13" "4:gue! 6:gue 4:rewrite"
run_daemon_killed() {
    start_mix
    change restart_holdfastd KILL server1
    prove "sessions read from the kernel" "$(counter_of_log server1 "the kernel's sessions are known")"
    change fail_link spine1-leaf2
    change heal_link spine1-leaf2
    expect "daemons alive" "$(holdfastds)" "$SERVERS"
}

holdfastds() {
    local server count=0
    for server in $(servers); do
        if process_of "$(node_dir "$server")/holdfastd.pid" >/dev/null; then count=$((count + 1)); fi
    done
    echo $count
}

# counter_of_log SERVER TEXT: the number that the last line with this text gives.
counter_of_log() {
    grep -F "$2" "$(node_dir "$1")/holdfastd.log" | tail -n 1 | sed 's/\x1b\[[0-9;]*m//g' | grep -oE 'adopted=[0-9]+' | cut -d = -f 2
}

scenario daemon-upgraded "R7" "4:gue 6:gue"
run_daemon_upgraded() {
    start_mix
    change restart_holdfastd TERM server1
    change fail_link spine1-leaf2
    change heal_link spine1-leaf2
}

# One after the other, as an upgrade of all would be done.
scenario upgrade-of-all "R7" "4:gue 6:gue"
run_upgrade_of_all() {
    local server
    start_mix
    for server in $(servers); do change restart_holdfastd TERM "$server"; done
    change fail_link spine1-leaf2
}

# It dies again and again, at moments of chance, and its sessions move meanwhile.
scenario daemon-killed-often "R7 R13" "4:gue 6:gue"
run_daemon_killed_often() {
    local i
    start_mix
    # Some of the sessions are others' strays.
    change fail_link spine1-leaf2
    load_mark kills
    for ((i = 0; i < 6; i++)); do
        restart_holdfastd KILL "server$((i % 2 + 1))" 0.$((RANDOM % 10))
        sleep $((RANDOM % 3)).$((RANDOM % 10))
    done
    wait_until_sound 40 || fault "the routes did not settle"
    load_mark settled
    sleep 4
}

# Killed while a link is down and its sessions are others' strays.
scenario killed-while-moved "R5 R7 R13" "4:gue 6:gue"
run_killed_while_moved() {
    start_mix
    change fail_link spine1-leaf2
    change restart_holdfastd KILL server3 0.5
    change heal_link spine1-leaf2
}
