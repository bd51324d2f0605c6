# load.json as a table: each run at its fixed rate and at its highest.
def cell(width): tostring | if length < width then " " * (width - length) + . else . end;
def number(digits): if . == null then "-" else pow(10; digits) as $p | (. * $p | round) / $p end;
def latencies: [.p50, .p90, .p99, .p99_9, .max] | map(number(1) | cell(9)) | join("");
def line($run; $rate):
    if . == null then "  " + ($run + " " * 11)[:11] + ($rate + " " * 9)[:9] + "no rate was carried with so little loss"
    else
        "  " + ($run + " " * 11)[:11] + ($rate + " " * 9)[:9]
        + (.offered_mpps | number(4) | cell(9)) + (.forwarded_mpps | number(4) | cell(11))
        + (.lost_percent | number(4) | cell(9)) + (.latency_us | latencies)
        + (.cpu_percent.worker_waited | number(2) | cell(10))
        + (if .generator_limited then "  (the generator was at its limit)" else "" end)
    end;
def by_kind($kind): .latency_us_by_kind[$kind]
    | if . == null or .samples == 0 then empty
      else ("    of it " + $kind + " " * 49)[:49] + latencies end;
def names: ["mix", "hits", "redirects", "misses"];
. as $all
| "holdfastd, IPv\(.family), \(.sessions) sessions, \(.redirected_sessions) redirects, \(.churn_per_second) opened and closed per second, frames of \(.frame_bytes) bytes",
  "",
  "                                                           latency in us                                        worker",
  "  run        rate       offered  forwarded   lost %      p50      p90      p99    p99.9      max  waited %",
  (names[] | . as $run | $all[$run] // empty
   | line($run; "fixed"),
     (if $run == "mix" then by_kind("hits"), by_kind("redirects"), by_kind("misses") else empty end),
     (if (.steps | length) > 0 then .highest | line($run; "highest") else empty end)),
  "",
  "  Mpps; highest: the greatest rate tried with at most \(.loss_percent_max) % lost; waited: for its CPU, while others had it.",
  "  \(.note)",
  (if (.faults | length) > 0 then "  FAULTS:", (.faults[] | "    \(.)") else "  Every packet is accounted for." end)
