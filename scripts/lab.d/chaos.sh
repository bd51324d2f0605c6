# shellcheck shell=bash
command_chaos() { die "not there yet"; }
