//! The text of `show config`: the file that would make this configuration.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::protocol::{ConfigReply, UnconfirmedReload};

/// The order of the guide.
const SECTIONS: [&str; 14] = [
    "node",
    "dpdk",
    "uplink",
    "host_port",
    "workers",
    "service",
    "sessions",
    "parking",
    "admission",
    "tunnel",
    "dht",
    "cluster",
    "incidents",
    "metrics",
];

/// `show config`.
#[must_use]
pub fn config(reply: &ConfigReply) -> String {
    let mut text = String::new();
    for warning in &reply.warnings {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "# warning: {warning}");
    }
    if let Some(UnconfirmedReload { left_ms, changes }) = &reply.unconfirmed {
        let lines = super::reload::unconfirmed(*left_ms) + &super::reload::changes(changes);
        for line in lines.lines() {
            let _ = writeln!(text, "# {line}");
        }
    }
    let place = |name: &str| SECTIONS.iter().position(|section| *section == name);
    let mut sections: Vec<(&String, &Value)> = reply.config.iter().collect();
    sections.sort_by_key(|(name, _)| place(name).unwrap_or(SECTIONS.len()));
    for (name, section) in sections {
        if !text.is_empty() {
            text.push('\n');
        }
        text += &rendered(name, section);
    }
    text
}

fn rendered(name: &str, section: &Value) -> String {
    let mut section = section.clone();
    // The keys' ids are no key of the file.
    let keys = section.as_object_mut().and_then(|section| section.remove("keys"));
    let document = Map::from_iter([(name.to_owned(), section)]);
    let mut text = toml::to_string(&document).unwrap_or_else(|error| format!("# {error}\n"));
    if let Some(keys) = keys {
        let id = |key: &str| keys.get(key).and_then(Value::as_u64);
        let sealing = id("sealing").map_or_else(|| "?".to_owned(), |id| id.to_string());
        let _ = write!(text, "# key {sealing} seals");
        if let Some(opening) = id("opening") {
            let _ = write!(text, ", key {opening} opens as well");
        }
        text.push('\n');
    }
    text
}
