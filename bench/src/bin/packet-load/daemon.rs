//! What a daemon under test says of itself, asked by `holdfastctl`. Never tells it anything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Values by name.
pub type Values = BTreeMap<String, u64>;

/// A daemon, by the way to it.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// The program that asks.
    pub holdfastctl: PathBuf,
    /// Its control socket.
    pub socket: PathBuf,
}

/// What a daemon counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// The workers' counters, added up.
    pub counters: Values,
    /// Gauges of the session table.
    pub table: Values,
    /// What the ports lost, by role: `uplink.rx_missed`.
    pub ports: Values,
    /// Gauges of the DHT core.
    pub dht_gauges: Values,
    /// Counters of the DHT core.
    pub dht_counters: Values,
    /// The uplink's Ethernet address.
    pub uplink_mac: String,
    /// The daemon's process.
    pub pid: u64,
}

/// What of a port's counters means that a frame was lost.
const LOSSES: [&str; 4] = ["rx_missed", "rx_errors", "rx_no_mbuf", "tx_errors"];

impl Daemon {
    /// Its statistics now.
    ///
    /// # Errors
    /// When it does not answer, or not what is expected.
    pub fn stats(&self) -> Result<Stats> {
        let output = Command::new(&self.holdfastctl)
            .args(["--json", "show", "stats", "--socket"])
            .arg(&self.socket)
            .output()
            .with_context(|| format!("running {}", self.holdfastctl.display()))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "holdfastctl: {}", stderr.trim());
        Stats::parse(&output.stdout)
    }
}

impl Stats {
    fn parse(json: &[u8]) -> Result<Stats> {
        let all: Value = serde_json::from_slice(json).context("reading holdfastctl's answer")?;
        let mut ports = Values::new();
        let mut uplink_mac = String::new();
        for port in all["ports"].as_array().context("no ports in holdfastctl's answer")? {
            let role = port["role"].as_str().context("a port without a role")?;
            if role == "uplink" {
                port["mac"].as_str().context("an uplink without mac")?.clone_into(&mut uplink_mac);
            }
            for loss in LOSSES {
                let value =
                    port[loss].as_u64().with_context(|| format!("a port without {loss}"))?;
                *ports.entry(format!("{role}.{loss}")).or_default() += value;
            }
        }
        Ok(Stats {
            counters: values(&all["totals"], "totals")?,
            table: values(&all["table"], "table")?,
            ports,
            dht_gauges: values(&all["dht"]["gauges"], "dht.gauges")?,
            dht_counters: values(&all["dht"]["counters"], "dht.counters")?,
            uplink_mac,
            pid: all["pid"].as_u64().context("no pid in holdfastctl's answer")?,
        })
    }
}

fn values(object: &Value, what: &str) -> Result<Values> {
    let object =
        object.as_object().with_context(|| format!("no {what} in holdfastctl's answer"))?;
    let number = |value: &Value| value.as_u64();
    let named = object.iter().filter_map(|(name, value)| Some((name.clone(), number(value)?)));
    Ok(named.collect())
}

/// How much each value grew.
pub fn growth(before: &Values, after: &Values) -> Values {
    let grown = |(name, value): (&String, &u64)| {
        (name.clone(), value.saturating_sub(before.get(name).copied().unwrap_or(0)))
    };
    after.iter().map(grown).collect()
}

/// Those that are not 0.
pub fn nonzero(values: &Values) -> Values {
    values.iter().filter(|(_, value)| **value != 0).map(|(n, v)| (n.clone(), *v)).collect()
}

/// An Ethernet address from its text.
///
/// # Errors
/// When it is none.
pub fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("'{text}' is no Ethernet address"))?;
    bytes.try_into().ok().with_context(|| format!("'{text}' is no Ethernet address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read() {
        let json = br#"{"pid": 7, "totals": {"local_hit": 3}, "table": {"local": 2},
            "ports": [{"role": "uplink", "mac": "02:00:00:00:00:0a", "rx_missed": 1,
                       "rx_errors": 2, "rx_no_mbuf": 3, "tx_errors": 4}],
            "dht": {"gauges": {"joined": 1}, "counters": {}, "distributions": {}}}"#;
        let stats = Stats::parse(json).expect("an answer");
        assert_eq!(stats.counters["local_hit"], 3);
        assert_eq!(stats.ports["uplink.rx_missed"], 1);
        assert_eq!(mac(&stats.uplink_mac).expect("an address"), [2, 0, 0, 0, 0, 10]);
        assert!(Stats::parse(b"{}").is_err());
        assert!(mac("02:00").is_err());
    }

    #[test]
    fn growth_is_the_difference() {
        let values = |pairs: &[(&str, u64)]| -> Values {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
        };
        let grown =
            growth(&values(&[("a", 1), ("b", 5)]), &values(&[("a", 4), ("b", 5), ("c", 2)]));
        assert_eq!(grown, values(&[("a", 3), ("b", 0), ("c", 2)]));
        assert_eq!(nonzero(&grown), values(&[("a", 3), ("c", 2)]));
    }
}
