# The table of chaos runs in docs/results/scenarios.md from the lines of target/lab/chaos.jsonl: the last
# run of each seed.
"| seed | minutes | family | tunnel | connections | tunnelled | reset (allowed) | failed otherwise (allowed) | corrupted | longest stall, ms | passed |",
"|---|---|---|---|---|---|---|---|---|---|---|",
(group_by(.name)[] | last
 | "| \(.name | ltrimstr("chaos-")) | \(.minutes) | \(.family) | \(.encap) | \(.connections) | \(.tunnelled) | \(.reset) (\(.expected_reset)) | \(.failed_otherwise) (\(.expected_failed)) | \(.corrupted) | \(.stalled_max_ms) | \(if .pass then "yes" else "**no**: " + (.faults | join("; ")) end) |")
