# The result of `scripts/bench table` as a table. It prints nothing that is not in it.

def pad($n): tostring | . + (" " * ([$n - length, 0] | max));
def left($n): tostring | (" " * ([$n - length, 0] | max)) + .;
def spread: if . == null then "-" else "\(.median) (\(.p10)-\(.p90))" end;
def row($c): ($c[0] | pad(16)) + ($c[1:] | map(left(26)) | join(""));
def contenders: ["limit", "rte_hash", "hashbrown", "dashmap", "ours", "ours_bursts", "ours_load_50", "ours_load_80"];

"",
"million operations per second of one core's CPU time: median (p10-p90) of \(.settings.rounds) rounds",
(if .settings.reserved_huge_pages then empty else "WITHOUT reserved huge pages" end),
(to_entries[] | select(.key | test("^[0-9]+M$")) | .key as $size | .value
    | to_entries[] | select(.value | type == "object") | .key as $family | .value as $of
    | "",
      "\($size) sessions, \($family), our table at load \($of.load)",
      row(["", "hit", "miss", "insert", "remove"]),
      (contenders[] as $one | row([$one] + (["hit", "miss", "insert", "remove"] | map($of[.][$one] | spread)))),
      "ours over",
      (("limit", "rte_hash", "hashbrown", "dashmap") as $one
        | row(["  \($one)"] + (["hit", "miss", "insert", "remove"] | map($of["\(.)_over_\($one)"] | spread)))),
      row(["  rte_hash, bursts"] + (["hit", "miss", "insert", "remove"] | map($of["\(.)_bursts_over_rte_hash"] | spread))),
      "a reader beside a writer of \($of.reader_beside_writer.writer_million_ops_per_second.median) M/s loses \($of.reader_beside_writer.loss_percent | spread) %; rte_hash's beside \($of.reader_beside_writer_rte_hash.writer_million_ops_per_second.median) M/s: \($of.reader_beside_writer_rte_hash.loss_percent | spread) %",
      "page bytes: \($of.page_bytes | to_entries | map("\(.key) \(.value)") | join(", "))"),
"",
"instructions of a lookup, IPv4 and IPv6: \(.instructions_per_lookup // "-") and \(.instructions_per_lookup_ipv6 // "-")",
""
