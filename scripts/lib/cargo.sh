# shellcheck shell=bash
# Tools that cargo builds and installs, each in the version that its caller pins.

# cargo_tool PACKAGE VERSION [OPTION...]: neither optimised nor with debug information, as they have
# little to do. What they have in common is built once.
cargo_tool() {
    say "installing $1 $2 (a minute)"
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$REPOSITORY/target}/tools \
        timeout --kill-after=10 1500 cargo install --quiet --locked --debug --version "$2" "${@:3}" "$1"
}
