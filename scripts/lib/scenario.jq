# A row of scenarios.json. Inputs by name: $loads, the results of session-load;
# $stats, the daemons' `show stats`, of every daemon that ran; $facts, what the
# scenario itself says; $faults, lines of text.

def total($name): [$stats[].totals[$name] // 0] | add // 0;

(if ($loads | length) > 0
 then {
    sessions: ([$loads[].sessions] | add),
    reset: ([$loads[].reset] | add),
    corrupted: ([$loads[].corrupted] | add),
    failed_otherwise: ([$loads[] | .failed - .reset - .corrupted] | add),
    stalled_max_ms: ([$loads[].stalled_max_ms] | max),
    connections: ([$loads[].connections // 0] | add)
 }
 else {sessions: 0, reset: 0, corrupted: 0, failed_otherwise: 0, stalled_max_ms: 0, connections: 0}
 end) as $load
| $load + $facts
| .redirected = total("redirect_installed")
| .faults = (
    $faults
    + (if .sessions < .sessions_min then ["proved nothing: \(.sessions) sessions, not \(.sessions_min)"] else [] end)
    + (if .needs_redirects and .redirected == 0 then ["proved nothing: no session was redirected"] else [] end)
    + (if .reset > .expected_reset then ["\(.reset) sessions were reset, not \(.expected_reset)"] else [] end)
    + (if .corrupted > 0 then ["\(.corrupted) sessions were corrupted"] else [] end)
    + (if .failed_otherwise > .expected_failed then ["\(.failed_otherwise) sessions failed otherwise, not \(.expected_failed)"] else [] end)
  )
| .pass = (.faults == [])
| {name, rule, family, encap, sessions, reset, corrupted, failed_otherwise, redirected, stalled_max_ms,
   expected_reset, expected_failed, connections, tunnelled: total("tunnel_sent"), proofs, pass, faults}
