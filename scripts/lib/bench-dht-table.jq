# The result of `scripts/bench dht` as a table. It prints nothing that is not in it.

def pad($n): tostring | . + (" " * ([$n - length, 0] | max));
def left($n): tostring | (" " * ([$n - length, 0] | max)) + .;
def cell: if . == null then "-" else tostring end;
def whole: if . == null then "-" elif . >= 100 then round | tostring else (. * 10 | round / 10 | tostring) end;
def times: if . == null then "-" elif . >= 10 then "\(round)x" else "\(. * 10 | round / 10)x" end;
def pair: if . == null or .p50 == null then "-" else "\(.p50 | whole)/\(.p99 | whole)" end;
def lost: if .lost == null then "broke" elif .lost_share then "\(.lost) (\(.lost_share * 1000 | round / 10) %)" else .lost | tostring end;
def row($c): ($c[0] | pad(12)) + ($c[1:] | map(cell | left(15)) | join(""));

. as $own
| [
    "",
    "\(.nodes) nodes in one process, UDP over loopback; CPU and bytes are of all nodes together",
    "",
    row(["", "sets/s", "lookups/s", "set p50/p99 us", "get p50/p99 us", "in flight", "lost", "CPU us/set", "CPU us/lookup", "bytes/set", "bytes/lookup"]),
    row(["holdfast", (.sets_per_s | whole), (.lookups_per_s | whole), (.idle_set_us | pair), (.idle_get_us | pair), .in_flight, lost, (.cpu_us_per_set | whole), (.cpu_us_per_lookup | whole), (.wire_bytes_per_set | whole), (.wire_bytes_per_lookup | whole)]),
    (.peers | to_entries[] | .key as $name | .value
        | if .skipped then "\($name | pad(12))   skipped: \(.skipped)"
          else row([$name, (.sets_per_s | whole), (.lookups_per_s | whole), (.idle_set_us | pair), (.idle_get_us | pair), .in_flight, lost, (.cpu_us_per_set | whole), (.cpu_us_per_lookup | whole), (.wire_bytes_per_set | whole), (.wire_bytes_per_lookup | whole)])
          end),
    "",
    (if any(.peers[]; has("ours_by_theirs")) then
        "holdfast is better by",
        (.peers | to_entries[] | select(.value.ours_by_theirs) | .key as $name | .value.ours_by_theirs
            | row([$name, (.sets_per_s | times), (.lookups_per_s | times), (.idle_set_p50 | times), (.idle_get_p50 | times)])),
        ""
     else empty end),
    "holdfast     \(.lookups_with_local_per_s | whole) lookups/s with those that a node answers from its own records (\(.local_share * 1000 | round / 10) %)",
    "             p10 to p90 of \(.spread.sets_per_s.n) rounds: \(.spread.sets_per_s | "\(.p10 | whole) to \(.p90 | whole)") sets/s, \(.spread.lookups_per_s | "\(.p10 | whole) to \(.p90 | whole)") lookups/s",
    "             under load a lookup takes \(.loaded_lookup_us | pair) us; \(.retransmissions_per_lookup) retransmissions and \(.datagrams_per_lookup) datagrams a lookup, \(.datagrams_per_set) a set",
    "             an idle set, as the driver sees it: \(.idle_set_seen_us | pair) us",
    "             wrong answers: \(.wrong); nodes taken for dead: \(.peers_dead)",
    (if .big then .big | (
        "large        \(.records_per_node.mean) records a node (max/mean \(.records_per_node.max_by_mean)), \(.resident_bytes_per_record) bytes of memory a record, \(.sets_per_s | whole) sets/s",
        "             repaired \(.repair_after_join_s) s after a join; \(.join.surveyed_at_all_replicas) of \(.join.surveyed) sampled at all replicas; \(.join.records) records, \(.join.records_expected) expected; wrong \(.wrong), lost \(.lost)")
     else empty end),
    ""
  ][]
