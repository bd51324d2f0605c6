# The result of `scripts/bench dht` as docs/results/dht.md. Every figure in it is from
# the result; what cannot be measured is not said.
# Input: the result; $command: how it was made.

def whole: if . == null then "-" elif . >= 100 then round | tostring else (. * 10 | round / 10 | tostring) end;
def times: if . == null then "-" elif . >= 10 then "\(round)" else "\(. * 10 | round / 10)" end;
def pair: if . == null or .p50 == null then "-" else "\(.p50 | whole) / \(.p99 | whole)" end;
def lost: if .lost == null then "broke" elif .lost_share then "\(.lost) (\(.lost_share * 1000 | round / 10) %)" else .lost | tostring end;
def row: "| " + (map(tostring) | join(" | ")) + " |";
def figures: [(.sets_per_s | whole), (.lookups_per_s | whole), (.idle_set_us | pair), (.idle_get_us | pair),
    .in_flight, lost, (.cpu_us_per_set | whole), (.cpu_us_per_lookup | whole), (.wire_bytes_per_set | whole), (.wire_bytes_per_lookup | whole)];
def measured: to_entries[] | select(.value.skipped | not);

"# DHT",
"",
"`\($command)`, at revision `\(.machine.revision)`, on \(.machine.cores) cores of an \(.machine.cpu), kernel \(.machine.kernel), load average before the run \(.machine.load_average_before). \(.nodes) nodes in one process, each with a thread and a UDP socket on loopback, every datagram sealed; \(.sessions) sessions a round, \(.spread.sets_per_s.n) rounds, medians. The peers ran in between, \(.nodes) nodes in one process each, values of 48 bytes. CPU time and bytes are of all nodes together.",
"",
(["", "sets/s", "lookups/s", "idle set p50 / p99, µs", "idle get p50 / p99, µs", "in flight", "lost", "CPU µs a set", "CPU µs a lookup", "bytes a set", "bytes a lookup"] | row),
"|---|---|---|---|---|---|---|---|---|---|---|",
(["holdfast"] + figures | row),
(.peers | measured | ["\(.key) \(.value.version)"] + (.value | figures) | row),
"",
(.peers | to_entries[] | select(.value.skipped) | "- *\(.key)* is missing: \(.value.skipped)"),
(if any(.peers[]; has("ours_by_theirs")) then
    "How many times holdfast is better, by the same figures:",
    "",
    (["", "sets/s", "lookups/s", "idle set p50", "idle get p50"] | row),
    "|---|---|---|---|---|",
    (.peers | measured | [.key] + (.value.ours_by_theirs | [.sets_per_s, .lookups_per_s, .idle_set_p50, .idle_get_p50] | map(times)) | row),
    ""
 else empty end),
"| holdfast alone | |",
"|---|---|",
(["sets/s, p10 to p90 of the rounds", (.spread.sets_per_s | "\(.p10 | whole) to \(.p90 | whole)")] | row),
(["lookups/s, p10 to p90 of the rounds", (.spread.lookups_per_s | "\(.p10 | whole) to \(.p90 | whole)")] | row),
(["lookups/s with those that a node answers from its own records", "\(.lookups_with_local_per_s | whole) (\(.local_share * 1000 | round / 10) % local)"] | row),
(["withdraws/s", (.withdraws_per_s | whole)] | row),
(["lookup with \(.in_flight) in flight, p50 / p99, µs", (.loaded_lookup_us | pair)] | row),
(["idle set as the driver sees it, p50 / p99, µs", (.idle_set_seen_us | pair)] | row),
(["CPU µs a set, a lookup, with the driver", "\(.cpu_us_per_set_with_driver | whole), \(.cpu_us_per_lookup_with_driver | whole)"] | row),
(["datagrams a set, a lookup", "\(.datagrams_per_set), \(.datagrams_per_lookup)"] | row),
(["bytes a withdraw", (.wire_bytes_per_withdraw | whole)] | row),
(["retransmissions a lookup", .retransmissions_per_lookup] | row),
(["wrong answers", .wrong] | row),
(["nodes taken for dead, though all lived", .peers_dead] | row),
(if .big then .big |
    "",
    "| \(.nodes) nodes, then one more | |",
    "|---|---|",
    (["records a node, mean (max/mean)", "\(.records_per_node.mean) (\(.records_per_node.max_by_mean))"] | row),
    (["sessions, published at", "\(.sessions), \(.sets_per_s | whole)/s"] | row),
    (["bytes of resident memory a record", .resident_bytes_per_record] | row),
    (["repaired after the join, s", .repair_after_join_s] | row),
    (["sampled flows that all their replicas hold after it", "\(.join.surveyed_at_all_replicas) of \(.join.surveyed)"] | row),
    (["records held after it (expected)", "\(.join.records) (\(.join.records_expected))"] | row),
    (["lookups before and after, wrong, lost", "\(.lookups_before_join.asked + .lookups_after_join.asked), \(.wrong), \(.lost)"] | row)
 else empty end),
"",
"- *Set*: from the first announcement until every replica has acknowledged every session. Sets are",
"  pushed through the workers' rings as fast as these take them.",
"- *Lookup*: asked by a server that does not own the session, over the network; those that the",
"  asker can answer from its own records are counted apart. Every answer's owner and version are",
"  checked. *Lost* are lookups without an answer or timed out.",
"- *Idle set*: first STORE sent until the last replica's acknowledgement, one at a time. The driver",
"  sees it later: it asks the owner for its gauges, and its own asking is in the time.",
"- *Idle get*: asked until the driver has the answer, one at a time, by a server that is neither",
"  owner nor replica.",
"- *Bytes* are those of the loopback interface in a network namespace that holds nothing else, IP",
"  and UDP headers included, and so are pings and all else that the nodes say meanwhile.",
"- Peers' sets/s are with 64 in flight, their lookups/s the better of 64 and 1,000; lost are those",
"  of 1,000 lookups in flight for \(.peer_seconds) s that failed or took longer than 10 s. Rates count what was done",
"  within the time. Their CPU time contains the driver. Limits that protect public networks are off:",
(.peers | measured | "  \(.key): \(.value.settings)."),
(if .big then "- *Memory a record* is all that the process gained by it, the owners' share included." else empty end),
"- libtorrent, OpenDHT and mainline store at more replicas than three. kademlia and OpenDHT are",
"  asked at nodes that do not hold the value; libp2p's answers from its own storage are not counted;",
"  libtorrent and mainline do not tell."
