# target/demo/result.json from the records of both runs. $down and $healed: when the
# link failed and when it was healed, in microseconds since 1970.
include "demo";

def outcome($load; $machine): {
    sessions: $load.sessions,
    reset: $load.reset,
    corrupted: $load.corrupted,
    failed_otherwise: ($load.failed - $load.reset - $load.corrupted),
    stalled_max_ms: $load.stalled_max_ms,
    stalled_before_failure_max_ms: $load.stalled_before_mark_max_ms,
    bulk: $load.by_kind.bulk.sessions,
    bulk_under_way: $load.bulk_under_way_at_mark,
    by_kind: ($load.by_kind | map_values({sessions, reset, failed, stalled_max_ms})),
    by_server: $load.by_server,
    cpu_busy_percent: $machine.cpu_busy_percent
};

($holdfast[0].per_session | map({key: (.local_port | tostring), value: .kind}) | from_entries) as $kind_of
# Only flows that the load made; each counts once.
| [$lookups | redirecting($down; 1e18)[] | select($kind_of[.port | tostring])] as $redirecting
| ($redirecting | first_per_session) as $redirected
# Detection: from the kernel's link-down to the first look-up of a moved session. Idle
# sessions send nothing until they are probed, so only the others can detect.
| [$redirected[] | select(.asked_at_unix_us < $healed and $kind_of[.port | tostring] != "idle")
    | (.asked_at_unix_us - $down) / 1000] as $detection_ms
| {
    link: $link,
    control: outcome($control[0]; $control_machine[0]),
    holdfast: (outcome($holdfast[0]; $machine[0]) + {redirected: ($redirected | length)}),
    setting_time_us: ($stats | distribution("setting_time_us")),
    detection_time_ms: ($detection_ms | summary_of_values),
    # Over the network only; a server that holds a replica of the record answers itself.
    lookup_time_us: ($stats | distribution("lookup_time_us")),
    # First look-up of each redirected session, from wherever it was answered.
    redirect_lookup_time_us: ($redirected | map(.duration_us) | summary_of_values),
    paper: {
        rerouting: "within two seconds",
        setting_time: "on the scale of seconds (figure 11, 4 nodes)",
        health_checks_at_best_s: [5, 10],
        health_checks: {
            aws: {interval_s: [30, 5], failures: [2, 1], timeout_s: 5},
            kemp: {interval_s: [9, 3], failures: [2, 1], timeout_s: 4},
            f5: {interval_s: 5, timeout_s: 16},
            note: "default, then minimum"
        },
        pydht_measured: {get_s: 1.00, set_s: 2.0, note: "measured with the library of the paper, 4 nodes on loopback"}
    }
}
