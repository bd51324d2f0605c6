# The results of `scripts/bench table`, `path` and `load` as docs/results/performance.md. Every
# figure in it is from the results; what is missing is said to be.
# Input: none; $table, $path: the results, each an array of one or none; $load: one a family.

def cell: if . == null then "-" else tostring end;
def spread: if . == null then "-" else "\(.median) (\(.p10)–\(.p90))" end;
def row: "| " + (map(cell) | join(" | ")) + " |";
def rule: "|" + ([range(length)] | map("---|") | join(""));
def heading: row, rule;
def sizes: to_entries[] | select(.key | test("^[0-9]+M$"));
def families: to_entries[] | select(.value | type == "object");
def machine: "revision `\(.machine.revision)`, \(.machine.cores) cores of an \(.machine.cpu), kernel \(.machine.kernel), \(.machine.dpdk), load average before the run \(.machine.load_average_before); \(.settings.rounds) rounds, \(if .settings.reserved_huge_pages then "huge pages of 2 MiB" else "**no reserved huge pages**" end)";
def contender: {"ours": "holdfast, 32 under way", "ours_bursts": "holdfast, in bursts of 32", "ours_load_50": "holdfast at load 0.5", "ours_load_80": "holdfast at load 0.8",
    "limit": "limit: reads of random lines", "rte_hash": "rte_hash, lock-free, bulk 32"}[.] // .;
def way: gsub("_[0-9]+M$"; "") | {"macswap_null": "testpmd's macswap, net_null", "macswap_ring": "testpmd's macswap, net_ring",
    "rte_hash_gue": "the same way with rte_hash, GUE", "rte_hash_ipip": "the same way with rte_hash, IP in IP",
    "redirect_gue": "holdfast: redirect, GUE", "redirect_ipip": "holdfast: redirect, IP in IP", "redirect_rewrite": "holdfast: redirect, rewrite",
    "local_hit": "holdfast: local session", "pass_through": "holdfast: passes through", "miss_not_found": "holdfast: stray, asked twice, nobody's"} as $names
    | if test("_ipv6$") then ($names[sub("_ipv6$"; "")] // .) + ", IPv6" else ($names[.] // .) end;

def sizes_of_paths: to_entries[] | select(.value | type == "object" and has("ns")) | .key | capture("_(?<size>[0-9]+M)$").size;

def table_part:
    "## Session table", "",
    "`scripts/bench table`: \(machine). Million operations per second of one core's CPU time, all in one process on the same flows, slices of \(.settings.lookups_per_slice) lookups or \(.settings.updates_per_slice) updates in turn; median (p10–p90). The limit reads random cache lines of as many bytes as our table has, 32 to 64 of them asked for ahead. In bursts is how a worker asks: 32 lines are asked for, then looked at. Under way is a stream of lookups (`find_all`), which no worker has. Insertions and removals are one by one, but for the row that says bursts.", "",
    (sizes | .key as $size | .value | families | .key as $family | .value as $of
        | "### \($size) sessions, \($family | if . == "ipv4" then "IPv4" else "IPv6" end), load \($of.load)", "",
          (["", "hit", "miss", "insert", "remove"] | heading),
          (("limit", "rte_hash", "hashbrown", "dashmap", "ours", "ours_bursts", "ours_load_50", "ours_load_80") as $one
              | [$one | contender] + (["hit", "miss", "insert", "remove"] | map($of[.][$one] | spread)) | row),
          (("limit", "rte_hash") as $one
              | ["*holdfast ÷ \($one)*"] + (["hit", "miss", "insert", "remove"] | map($of["\(.)_over_\($one)"] | spread)) | row),
          (["*holdfast in bursts ÷ rte_hash*"] + (["hit", "miss", "insert", "remove"] | map($of["\(.)_bursts_over_rte_hash"] | spread)) | row),
          "",
          "A reader loses \($of.reader_beside_writer.loss_percent | spread) % beside a writer of \($of.reader_beside_writer.writer_million_ops_per_second.median) M/s on the other core; rte_hash's loses \($of.reader_beside_writer_rte_hash.loss_percent | spread) % beside one of \($of.reader_beside_writer_rte_hash.writer_million_ops_per_second.median) M/s.", ""),
    (if .instructions_per_lookup then
        "Instructions of a lookup that hits, counted by callgrind: \(.instructions_per_lookup) (IPv4), \(.instructions_per_lookup_ipv6) (IPv6), built for \(.instructions_cpu).", ""
     else empty end);

def path_part:
    "## A packet's way", "",
    "`scripts/bench path`: \(machine). Frames of 64 bytes (IPv6: 74) come from rings in memory and go back there, \(.settings.packets_per_slice) a slice in turn, and a sample of what comes out is checked; CPU time of one core, median (p10–p90).", "",
    (. as $all | [sizes_of_paths] | unique[] | . as $size
        | "### \($size) sessions", "",
          (["", "ns a packet", "cycles", "Mpps", "÷ macswap on net_null", "÷ the same with rte_hash"] | heading),
          ($all | to_entries[] | select((.value | type == "object" and has("ns")) and (.key | endswith("_" + $size)))
              | [(.key | way), (.value.ns | spread), (.value.cycles | spread), .value.mpps, (.value.over_macswap_null | spread), (.value.over_rte_hash_path | spread)] | row),
          ""),
    (to_entries[] | select(.key | startswith("two_workers"))
        | "Two workers over one table (`\(.key | sub("two_workers_"; ""))`): \(.value.two_workers_mpps | spread) Mpps, one alone \(.value.one_worker_mpps | spread): \(.value.ratio | spread) times as many.", ""),
    (if .testpmd_null_macswap_ns then "testpmd itself says of its macswap: \(.testpmd_null_macswap_ns) ns on net_null, \(.testpmd_ring_macswap_ns | cell) ns on net_ring.", "" else empty end);

def rate($run; $rate):
    [$run, $rate] + if . == null then ["-", "-", "-", "-", "-"]
        else [.offered_mpps, .forwarded_mpps, .lost_percent, .latency_us.p50, .latency_us.p99] | map(if . == null then . else (. * 1000 | round / 1000) end) end
    | row;

def load_part:
    "## Load, IPv\(.family)", "",
    "`scripts/bench load`: packets through holdfastd, IPv\(.family), \(.sessions) sessions, \(.redirected_sessions) redirects, \(.churn_per_second) opened and closed a second, frames of \(.frame_bytes) bytes. The highest rate is the greatest tried with at most \(.loss_percent_max) % lost.", "",
    (["", "rate", "offered Mpps", "forwarded Mpps", "lost %", "p50 µs", "p99 µs"] | heading),
    (. as $all | ("mix", "hits", "redirects", "misses") as $run | $all[$run] // empty
        | (if .fixed then .fixed | rate($run; "fixed") else empty end), (if (.steps | length) > 0 then .highest | rate($run; "highest") else empty end)),
    "", (.note // empty), "";

"# Performance", "",
(if ($table | length) + ($path | length) > 0 then "![Lookups per second and nanoseconds per packet](performance.svg)", "" else empty end),
(if $table | length > 0 then $table[0] | table_part else "*No result of `scripts/bench table`.*", "" end),
(if $path | length > 0 then $path[0] | path_part else "*No result of `scripts/bench path`.*", "" end),
(if $load | length > 0 then $load[] | load_part else "*No result of `scripts/bench load`.*", "" end)
