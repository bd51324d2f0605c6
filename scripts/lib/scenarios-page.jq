# The table of docs/results/scenarios.md from target/lab/scenarios.json.
"| scenario | rules | family | tunnel | sessions | reset (allowed) | corrupted | redirects | longest stall, ms | passed |",
"|---|---|---|---|---|---|---|---|---|---|",
(.[] | "| \(.name) | \(.rule) | \(.family) | \(.encap) | \(.sessions) | \(.reset) (\(.expected_reset)) | \(.corrupted) | \(.redirected) | \(.stalled_max_ms) | \(if .pass then "yes" else "**no**: " + (.faults | join("; ")) end) |")
