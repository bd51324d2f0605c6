# A row of result.json. Inputs by name: $loads, the results of session-load; $before and $after, what
# server2's daemon said; $ARGS.positional, faults that the case has found.
def moved($name): ($after[0].totals[$name] // 0) - ($before[0].totals[$name] // 0);

{
    name: $name,
    sessions: ([$loads[].sessions] | add),
    reset: ([$loads[].reset] | add),
    corrupted: ([$loads[].corrupted] | add),
    failed_otherwise: ([$loads[] | .failed - .reset - .corrupted] | add),
    redirected: moved("redirect_installed"),
    tunnelled: moved("tunnel_sent"),
    stalled_max_ms: ([$loads[].stalled_max_ms] | max),
    seconds: $seconds
}
| .faults = (
    $ARGS.positional
    + (if .sessions == 0 then ["proved nothing: there was no session"] else [] end)
    + (if .redirected <= 0 then ["proved nothing: no session was redirected"] else [] end)
    + (if .reset > 0 then ["\(.reset) sessions were reset"] else [] end)
    + (if .corrupted > 0 then ["\(.corrupted) sessions were corrupted"] else [] end)
    + (if .failed_otherwise > 0 then ["\(.failed_otherwise) sessions failed otherwise"] else [] end)
  )
| .pass = (.faults == [])
