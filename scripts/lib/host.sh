# shellcheck shell=bash
# What the scripts that set up a server share: the tree that they read and change, and how they say
# what they do. With HOLDFAST_ROOT all of /sys, /proc and /run is taken from there, as their tests do.

ROOT=${HOLDFAST_ROOT:-}
SYS=$ROOT/sys PROC=$ROOT/proc
DRY_RUN=0

value() { cat "$1" 2>/dev/null || true; }

# put VALUE FILE: writes, when it is not there already.
put() {
    [[ $(value "$2") != "$1" ]] || return 0
    if ((DRY_RUN)); then
        printf 'would write %s to %s\n' "$1" "$2"
        return 0
    fi
    printf '%s\n' "$1" >"$2" || die "$2 does not take $1"
    printf 'wrote %s to %s\n' "$1" "$2"
}

# run COMMAND...: does, and says, what changes something.
run() {
    if ((DRY_RUN)); then
        printf 'would run: %s\n' "$*"
        return 0
    fi
    "$@" || die "failed: $*"
    printf 'ran: %s\n' "$*"
}

# becomes SECONDS COMMAND...: waits for what the kernel does.
becomes() {
    local deadline=$((SECONDS + $1))
    until "${@:2}"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# State files: what was there before, a line for each thing, written once. They live in /run: like
# what they undo, they end with the machine's.
STATE=

remember() {
    ((!DRY_RUN)) || return 0
    mkdir -p "${STATE%/*}"
    grep -qs "^$1 $2 " "$STATE" || printf '%s\n' "$*" >>"$STATE"
}

# recalled KIND: the lines of this kind, the last one first.
recalled() { sed -n "s/^$1 //p" "$STATE" | tac; }

forget() { ((DRY_RUN)) || rm -f "$STATE"; }
