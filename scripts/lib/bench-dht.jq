# What scripts/bench makes of the runs of dht-load and of the peers. It decides nothing.
# Inputs: $ours (one dht-load object a run), $peers ({name: object}), $big (one object
# or none), $peer_seconds (time of a peer's phase), $machine.

# The value that the share $p of all are not above, between neighbours if need be.
# In: numbers. Out: number, or null when there is none.
def quantile($p):
    map(select(. != null)) | sort
    | if length == 0 then null
      else ((length - 1) * $p) as $rank | ($rank | floor) as $low
        | .[$low] + ($rank - $low) * ((.[$low + 1] // .[$low]) - .[$low]) end;
def median: quantile(0.5);
def digits($n): if . == null then null else pow(10; $n) as $u | . * $u | round / $u end;
def spread: {median: (median | digits(2)), p10: (quantile(0.1) | digits(2)),
    p90: (quantile(0.9) | digits(2)), n: length};
def over($a; $b): if $a == null or $b == null or $b == 0 then null else $a / $b | digits(2) end;

def rounds: [$ours[].rounds[]];
def round_median(f): [rounds[] | f] | median | digits(2);
def idle(f): [$ours[].idle | f] | {p50: ([.[].p50] | median), p99: ([.[].p99] | median)};

def own:
    {
        nodes: $ours[0].nodes,
        sets_per_s: round_median(.set.sets_per_s),
        lookups_per_s: round_median(.lookup.lookups_per_s),
        idle_get_us: idle(.get_us),
        idle_set_us: idle(.set_us),
        in_flight: $ours[0].in_flight,
        lost: ([$ours[].lost] | add),
        cpu_us_per_set: round_median(.set.per_set.cpu_us),
        cpu_us_per_lookup: round_median(.lookup.per_lookup.cpu_us),
        wrong: ([$ours[].wrong] | add),
        sessions: $ours[0].sessions,
        lookups_with_local_per_s: round_median(.lookup.lookups_with_local_per_s),
        local_share: round_median(.lookup.local_share),
        withdraws_per_s: round_median(.withdraw.withdraws_per_s),
        loaded_lookup_us: {p50: round_median(.lookup.latency_us.p50), p99: round_median(.lookup.latency_us.p99)},
        idle_set_seen_us: idle(.set_seen_us),
        cpu_us_per_set_with_driver: round_median(.set.per_set.cpu_us_with_driver),
        cpu_us_per_lookup_with_driver: round_median(.lookup.per_lookup.cpu_us_with_driver),
        wire_bytes_per_set: round_median(.set.per_set.wire_bytes),
        wire_bytes_per_lookup: round_median(.lookup.per_lookup.wire_bytes),
        wire_bytes_per_withdraw: round_median(.withdraw.per_withdraw.wire_bytes),
        datagrams_per_set: round_median(.set.per_set.datagrams_sent),
        datagrams_per_lookup: round_median(.lookup.per_lookup.datagrams_sent),
        retransmissions_per_lookup: round_median(.lookup.per_lookup.retransmissions),
        peers_dead: ([$ours[].peers_dead] | add),
        spread: {
            sets_per_s: ([rounds[].set.sets_per_s] | spread),
            lookups_per_s: ([rounds[].lookup.lookups_per_s] | spread),
            cpu_us_per_set: ([rounds[].set.per_set.cpu_us] | spread),
            cpu_us_per_lookup: ([rounds[].lookup.per_lookup.cpu_us] | spread),
        },
    };

# How many times ours is better than the peer's in this run.
def compared($own):
    if has("skipped") then .
    else . + {ours_by_theirs: {
        sets_per_s: over($own.sets_per_s; .sets_per_s),
        lookups_per_s: over($own.lookups_per_s; .lookups_per_s),
        idle_get_p50: over(.idle_get_us.p50; $own.idle_get_us.p50),
        idle_set_p50: over(.idle_set_us.p50; $own.idle_set_us.p50)}}
    end;

own as $own
| $own
    + {peers: ($peers | map_values(compared($own)))}
    + {records_per_node: ($big[0].records_per_node.mean // null),
       repair_after_join_s: ($big[0].repair_after_join_s // null),
       resident_bytes_per_record: ($big[0].resident_bytes_per_record // null),
       big: ($big[0] // null)}
    + {peer_seconds: $peer_seconds, machine: $machine, runs: $ours}
