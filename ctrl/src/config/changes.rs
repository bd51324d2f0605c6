//! What differs between two configurations, key by key, and which keys may differ while the daemon
//! runs.

use serde_json::{Map, Value};

use super::Config;
use crate::protocol::ConfigChange;

/// Keys that a reload changes while the daemon runs: all others need a restart. The guide marks
/// them.
pub const RELOADED: &[&str] = &[
    "node.log",
    "workers.idle",
    "service.address",
    "service.ports",
    "sessions.half_open_max",
    "sessions.established_idle",
    "sessions.redirect_idle",
    "sessions.half_open_timeout",
    "sessions.linger",
    "sessions.kernel_check",
    "parking.packets_per_flow_max",
    "parking.timeout",
    "parking.grace",
    "admission.lookups_per_second",
    "admission.burst",
    "admission.per_source_per_second",
    "admission.per_source_burst",
    "admission.negative_ttl",
    "announce.prefixes",
    "dht.bootstrap",
    "cluster.members",
];

/// Whether a reload changes this key; or the tables of this name, all of whose keys it changes.
#[must_use]
pub fn is_reloaded(key: &str) -> bool {
    let is_table_of = |known: &&str| known.split_once('.').is_some_and(|(table, _)| table == key);
    RELOADED.contains(&key) || RELOADED.iter().any(is_table_of)
}

impl Config {
    /// What is otherwise in `after`, in the order of the names. Tables of which there can be
    /// several are one key.
    #[must_use]
    pub fn changes(&self, after: &Config) -> Vec<ConfigChange> {
        let [mut shown, mut shown_after] = [self, after].map(|config| {
            let mut shown = config.shown();
            // No keys of the file, and they do not tell one secret from another.
            if let Some(cluster) = shown.get_mut("cluster").and_then(Value::as_object_mut) {
                cluster.remove("keys");
            }
            shown
        });
        let mut changes = Vec::new();
        for (name, before, after) in pairs(&mut shown, &mut shown_after) {
            match (before, after) {
                (Value::Object(mut before), Value::Object(mut after)) => {
                    for (key, before, after) in pairs(&mut before, &mut after) {
                        changes.push(ConfigChange { key: format!("{name}.{key}"), before, after });
                    }
                }
                (before, after) => changes.push(ConfigChange { key: name, before, after }),
            }
        }
        let has_file_changed = changes.iter().any(|change| change.key == "cluster.key_file");
        if self.cluster.keys != after.cluster.keys && !has_file_changed {
            changes.push(ConfigChange {
                key: "cluster.key_file".to_owned(),
                before: "as it was read".into(),
                after: "with other content".into(),
            });
        }
        changes
    }
}

/// The names under which there are different values, and these: nothing where there is none.
fn pairs(
    before: &mut Map<String, Value>,
    after: &mut Map<String, Value>,
) -> Vec<(String, Value, Value)> {
    let mut names: Vec<String> = before.keys().chain(after.keys()).cloned().collect();
    names.sort();
    names.dedup();
    let pair = |name: String| {
        let of = |map: &mut Map<String, Value>| map.remove(&name).unwrap_or(Value::Null);
        let (before, after) = (of(before), of(after));
        (before != after).then_some((name, before, after))
    };
    names.into_iter().filter_map(pair).collect()
}
