# shellcheck shell=bash
# What every script here needs: messages, refusal, time. It changes nothing.

# Progress goes to stderr, so that stdout stays what the command was asked for.
say() { printf '%s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

need_root() {
    [[ $EUID -eq 0 ]] || die "needs root: network namespaces are made and entered. Run it with sudo."
}

# need_tools TOOL...: refuses when one is missing.
need_tools() {
    local tool missing=()
    for tool in "$@"; do
        have "$tool" || missing+=("$tool")
    done
    ((${#missing[@]} == 0)) || die "missing: ${missing[*]}. scripts/setup installs them."
}

# Wall clock in microseconds.
now_us() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }

# seconds_since START_US -> "1.234"
seconds_since() {
    local us=$(($(now_us) - $1))
    printf '%d.%03d' $((us / 1000000)) $((us / 1000 % 1000))
}

# is_count VALUE MIN MAX: a whole number in the range, with no leading zero.
is_count() {
    [[ $1 =~ ^(0|[1-9][0-9]{0,8})$ ]] && (($1 >= $2 && $1 <= $3))
}
