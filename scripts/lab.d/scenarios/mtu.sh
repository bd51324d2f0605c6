# shellcheck shell=bash
# Packets that do not fit: the tunnel, the path, or in one piece.

NARROW=(--mtu 1500)

# Full-size segments upwards through the tunnel, on a fabric that has no room to spare.
scenario uploads-clamped "R11" "4:gue 6:gue 4:ipip 6:ipip 4:rewrite 6:rewrite 4in6:gue 6in4:gue" "${NARROW[@]}"
run_uploads_clamped() {
    start_uploads
    # A rewritten segment is no longer than it was.
    [[ $ENCAP == rewrite ]] || prove "SYN-ACKs clamped" "$(counter mss_clamped server1)"
    sleep 8
    expect "segments too big all the same" $(($(counter too_big_answered) + $(counter tunnel_too_big))) 0
}

# start_uploads [KINDS...]: 200 sessions, most of them sending much.
start_uploads() {
    make_steering_routes
    steer all server3 syn server1
    local kinds=(--request 40 --upload 160 --upload-rate-kib 48)
    (($# == 0)) || kinds=("$@")
    load_start "${PROBE[@]}" --idle 0 --bulk 0 --upload-bytes 131072 "${kinds[@]}"
}

# narrow_fabric: sessions that were opened when there was more room, and whose
# segments do not fit the tunnels of server3 any more.
narrow_fabric() {
    steer all server1
    restart_narrow server3
    wait_until_sound 40 || fault "the routes did not settle"
    steer all server3 syn server1
    load_mark narrow
    sleep 8
}

# The daemon reads the MTU of its uplink when it starts.
restart_narrow() {
    end_daemon TERM "$1" holdfastd
    ip -n "$(ns "$1")" link set "$(leaf_of "$1")" mtu 1500
    start_holdfastd "$1"
    finish_host_port "$1"
}

# Such strays are answered with the size that fits, and the client keeps to it.
scenario too-big-answered "R11" "4:gue 6:gue! 4:ipip 6:ipip 4in6:gue 6in4:gue"
run_too_big_answered() {
    start_uploads
    narrow_fabric
    prove "strays answered" "$(counter too_big_answered server3)"
    prove "sizes that the client has learnt" "$(learnt_sizes client "$(anycast "$(first_family)")")"
}

# learnt_sizes NODE ADDRESS: routes of the kernel whose MTU it was told of.
learnt_sizes() {
    in_node "$1" ip -json route get "$2" | jq '[.[] | select(.metrics[]?.mtu // 0 > 0)] | length'
}

# A client that sets no DF is spared the question; its strays come in pieces.
scenario without-df "R10 R11" "4:gue 4:ipip 4in6:gue"
run_without_df() {
    echo net/ipv4/ip_no_pmtu_disc 1 | set_sysctls client
    start_uploads
    narrow_fabric
    prove "strays fragmented" "$(counter too_big_fragments server3)"
    prove "fragments put together by server1's kernel" "$(kernel_counter server1 IpReasmOKs)"
}

# A narrow link in the fabric cuts what clients send without DF; pieces of strays
# follow their first.
scenario fragments "R10" "4:gue! 4:ipip 4:rewrite"
run_fragments() {
    local spine
    echo net/ipv4/ip_no_pmtu_disc 1 | set_sysctls client
    # Not less: BGP here needs IPv6, which needs these.
    for spine in $(spines); do
        ip -n "$(ns edge)" link set "$spine" mtu 1280
        ip -n "$(ns "$spine")" link set edge mtu 1280
    done
    # Few of the sessions send much: a kernel reassembles for one client only so much at a time.
    start_uploads --request 170 --upload 30 --upload-rate-kib 32
    sleep 8
    prove "fragments made by the edge" "$(kernel_counter edge IpFragCreates)"
    prove "fragments that followed their first" "$(counter fragment_to_tunnel server3)"
    prove "fragments put together by server1's kernel" "$(kernel_counter server1 IpReasmOKs)"
}

# The link to the client narrows; the router's complaint to the service reaches another
# server than the one that sends too much.
scenario icmp-elsewhere "R9" "4:gue! 6:gue 4:ipip 4:rewrite 6:rewrite"
run_icmp_elsewhere() {
    local family
    family=$(first_family)
    make_steering_routes
    steer all server1 icmp server3
    load_start "${PROBE[@]}" --idle 0 --request 140 --bulk 20 --echo 40
    sleep 1
    expect "sizes that server1 has learnt" "$(learnt_sizes server1 "$(client_address "$family")")" 0
    load_mark narrow
    ip -n "$(ns edge)" link set client mtu 1300
    ip -n "$(ns client)" link set edge mtu 1300
    sleep 5
    prove "ICMP errors that server3 took" "$(counter icmp_error server3)"
    prove "sizes that server1 has learnt" "$(learnt_sizes server1 "$(client_address "$family")")"
    expect "the size" "$(in_node server1 ip -json route get "$(client_address "$family")" |
        jq '[.[].metrics[]?.mtu // empty] | first // 0')" 1300
}
