# The result of `scripts/bench path` as a table. It prints nothing that is not in it.

def pad($n): tostring | . + (" " * ([$n - length, 0] | max));
def left($n): tostring | (" " * ([$n - length, 0] | max)) + .;
def spread: if . == null then "-" else "\(.median) (\(.p10)-\(.p90))" end;
def cell: if . == null then "-" else tostring end;
def row($c): ($c[0] | pad(28)) + ($c[1:] | map(left(27)) | join(""));

"",
"a packet's way, one core: median (p10-p90) of \(.settings.rounds) rounds",
(if .settings.reserved_huge_pages then empty else "WITHOUT reserved huge pages" end),
"",
row(["", "ns", "cycles", "Mpps", "over macswap null", "over rte_hash path", "frames checked"]),
(to_entries[] | select(.value | type == "object" and has("ns"))
    | row([.key, (.value.ns | spread), (.value.cycles | spread), (.value.mpps | cell), (.value.over_macswap_null | spread), (.value.over_rte_hash_path | spread), (.value.frames_checked | cell)])),
"",
(to_entries[] | select(.key | startswith("two_workers"))
    | "\(.key): one \(.value.one_worker_mpps | spread) Mpps, two \(.value.two_workers_mpps | spread) Mpps, ratio \(.value.ratio | spread)"),
"testpmd's own macswap: null \(.testpmd_null_macswap_ns // "-") ns, ring \(.testpmd_ring_macswap_ns // "-") ns",
""
