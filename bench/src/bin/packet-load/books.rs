//! Whether every frame is accounted for: what was offered came out somewhere, or was dropped by a
//! counter that has a name. Never excuses a difference.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::daemon::Values;

/// Two sides that have to be equal.
struct Entry {
    what: &'static str,
    left: &'static [&'static str],
    right: &'static [&'static str],
    /// By how much the right side may be the greater one.
    slack: &'static [&'static str],
}

/// Names with a dot are the generator's and the ports' own, the others the workers' counters.
const BOOKS: &[Entry] = &[
    Entry {
        what: "what was sent to the uplink was received",
        // Frames that are none of ours may come from a switch.
        left: &[
            "generator.to_uplink",
            "passed",
            "malformed_truncated",
            "malformed_version",
            "malformed_length",
            "malformed_extensions",
            "fragment_passed",
        ],
        right: &["uplink_received", "uplink.rx_missed", "uplink.rx_errors"],
        slack: &[],
    },
    Entry {
        what: "what was sent to the host port was received",
        left: &["generator.to_host"],
        right: &["host_received", "host_port.rx_missed", "host_port.rx_errors"],
        slack: &[],
    },
    Entry {
        what: "each frame from the uplink has an outcome",
        left: &["uplink_received"],
        right: &[
            "passed",
            "malformed_truncated",
            "malformed_version",
            "malformed_length",
            "malformed_extensions",
            "fragment_passed",
            "fragment_to_host",
            "fragment_to_tunnel",
            "fragment_expired",
            "fragment_full",
            "fragment_tiny",
            "fragment_dropped",
            "syn_to_host",
            "syn_closing",
            "local_hit",
            "redirect_hit",
            "miss",
            "tunnel_received",
            "tunnel_stranger",
            "tunnel_truncated",
            "tunnel_version",
            "tunnel_length",
            "tunnel_extensions",
            "tunnel_not_service",
        ],
        slack: &[],
    },
    Entry {
        what: "each stray is answered at once, parked or refused",
        left: &["miss"],
        right: &[
            "negative_hit",
            "parked",
            "park_full",
            "park_flow_full",
            "lookup_refused_worker",
            "lookup_refused_source",
        ],
        slack: &[],
    },
    Entry {
        what: "each parked packet is released or dropped",
        left: &["parked"],
        right: &[
            "released_host",
            "released_tunnel",
            "park_expired",
            "lookup_ring_full",
            "dropped_timed_out",
            "resolved_stranger",
        ],
        // It counts a second question that found no room as well, and that drops nothing.
        slack: &["lookup_ring_full"],
    },
    Entry {
        what: "what goes to the host is sent or dropped",
        left: &[
            "passed",
            "malformed_truncated",
            "malformed_version",
            "malformed_length",
            "malformed_extensions",
            "fragment_passed",
            "fragment_to_host",
            "syn_to_host",
            "local_hit",
            "negative_hit",
            "released_host",
            "tunnel_received",
        ],
        right: &["host_sent", "host_unsent", "host_too_big", "tunnel_superseded"],
        slack: &[],
    },
    Entry {
        what: "what was sent to the host arrived",
        left: &["host_sent"],
        right: &["generator.from_host"],
        slack: &[],
    },
    Entry {
        what: "each packet of another owner is tunnelled or dropped",
        // Fragments that the worker makes are packets more than came.
        left: &["redirect_hit", "released_tunnel", "fragment_to_tunnel", "too_big_fragments"],
        right: &[
            "tunnel_sent",
            "tunnel_no_headroom",
            "tunnel_other_family",
            "owners_full",
            "tunnel_too_big",
            "tunnel_no_frame",
            "too_big_answered",
        ],
        slack: &[],
    },
    Entry {
        what: "what goes to the uplink is sent or dropped",
        left: &["host_received", "tunnel_sent", "too_big_answered"],
        right: &["uplink_sent", "uplink_unsent", "uplink_too_big", "host_withheld", "rst_withheld"],
        slack: &[],
    },
    Entry {
        what: "what was sent to the uplink arrived",
        left: &["uplink_sent"],
        right: &["generator.from_uplink", "generator.from_uplink_missed"],
        slack: &[],
    },
];

/// Counters of frames that were dropped.
const DROPS: &[&str] = &[
    "syn_closing",
    "park_full",
    "park_flow_full",
    "park_expired",
    "lookup_ring_full",
    "lookup_refused_worker",
    "lookup_refused_source",
    "dropped_timed_out",
    "resolved_stranger",
    "tunnel_no_headroom",
    "tunnel_other_family",
    "owners_full",
    "tunnel_too_big",
    "tunnel_no_frame",
    "fragment_expired",
    "fragment_full",
    "fragment_tiny",
    "fragment_dropped",
    "tunnel_stranger",
    "tunnel_truncated",
    "tunnel_version",
    "tunnel_length",
    "tunnel_extensions",
    "tunnel_superseded",
    "tunnel_not_service",
    "host_withheld",
    "rst_withheld",
    "host_unsent",
    "host_too_big",
    "uplink_unsent",
    "uplink_too_big",
    "uplink.rx_missed",
    "uplink.rx_errors",
    "host_port.rx_missed",
    "host_port.rx_errors",
];

/// The entries that do not balance, in words.
///
/// # Errors
/// When a counter is not there: then nothing can be said.
pub fn imbalances(values: &Values) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for entry in BOOKS {
        let (left, right) = (sum(values, entry.left)?, sum(values, entry.right)?);
        let slack = sum(values, entry.slack)?;
        if right < left || right - left > slack {
            let (left_names, right_names) = (entry.left.join(" + "), entry.right.join(" + "));
            wrong.push(format!(
                "{}: {left_names} = {left}, but {right_names} = {right}",
                entry.what
            ));
        }
    }
    Ok(wrong)
}

/// What was dropped, by counter.
///
/// # Errors
/// When a counter is not there.
pub fn drops(values: &Values) -> Result<Value> {
    let mut drops = json!({});
    for name in DROPS {
        let value = sum(values, &[name])?;
        if value != 0 {
            drops[*name] = value.into();
        }
    }
    Ok(drops)
}

fn sum(values: &Values, names: &[&str]) -> Result<u64> {
    let value = |name: &&str| {
        values.get(*name).copied().with_context(|| format!("the daemon has no counter '{name}'"))
    };
    names.iter().map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 hits, 20 redirects, 10 strays of which one found no room, 5 frames from the host.
    fn sound() -> Values {
        let names = BOOKS.iter().flat_map(|entry| entry.left.iter().chain(entry.right));
        let mut values: Values = names.chain(DROPS).map(|name| ((*name).to_owned(), 0)).collect();
        for (name, value) in [
            ("generator.to_uplink", 130),
            ("uplink_received", 127),
            ("uplink.rx_missed", 3),
            ("local_hit", 97),
            ("redirect_hit", 20),
            ("miss", 10),
            ("parked", 9),
            ("park_full", 1),
            ("released_host", 9),
            ("host_sent", 105),
            ("host_unsent", 1),
            ("generator.from_host", 105),
            ("generator.to_host", 5),
            ("host_received", 5),
            ("tunnel_sent", 20),
            ("uplink_sent", 25),
            ("generator.from_uplink", 25),
        ] {
            values.insert(name.to_owned(), value);
        }
        values
    }

    #[test]
    fn sound_books_balance() {
        assert_eq!(imbalances(&sound()).expect("all counters"), [""; 0]);
        let expected = json!({"park_full": 1, "host_unsent": 1, "uplink.rx_missed": 3});
        assert_eq!(drops(&sound()).expect("all counters"), expected);
    }

    #[test]
    fn a_frame_that_is_nowhere_is_noticed() {
        for entry in BOOKS {
            for name in entry.left.iter().chain(entry.right) {
                let mut values = sound();
                *values.get_mut(*name).expect("a counter") += 1;
                let wrong = imbalances(&values).expect("all counters");
                // Alone it may be a question that was not asked again; the rest must be exact.
                assert!(!wrong.is_empty() || *name == "lookup_ring_full", "{name}");
            }
        }
    }

    #[test]
    fn a_missing_counter_is_an_error() {
        let mut values = sound();
        values.remove("park_expired");
        assert!(imbalances(&values).is_err());
        assert!(drops(&values).is_err());
    }
}
