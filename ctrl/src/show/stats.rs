//! The text of `show stats` and `show version`.

use std::fmt::Write;

use crate::protocol::{
    ControlStats, Counters, Distribution, KernelCheckStats, PortStats, ReloadStats, StatsReply,
    VersionReply,
};

use super::{NONE, Table, micros, millis, or_none};

/// `show version`.
#[must_use]
pub fn version(reply: &VersionReply) -> String {
    format!("holdfastctl  {}\n{}", env!("CARGO_PKG_VERSION"), daemon(reply))
}

fn daemon(reply: &VersionReply) -> String {
    format!(
        "holdfastd    {} at {}, up {}, process {}, {}\n",
        reply.version,
        reply.locator,
        millis(reply.uptime_ms),
        reply.pid,
        reply.dpdk_version,
    )
}

/// `show stats`. Counters that are 0 are left out unless `all`.
#[must_use]
pub fn stats(reply: &StatsReply, all: bool) -> String {
    let mut hidden = 0;
    let mut text = daemon(&reply.daemon);
    text += "\nPORTS\n";
    text += &ports(&reply.ports);
    text += "\nSESSION TABLE\n";
    text += &numbers(&reply.table, &Counters::new(), all, &mut hidden);
    text += "\nKERNEL CHECK\n";
    let KernelCheckStats { gauges, counters } = &reply.kernel_check;
    text += &numbers(gauges, counters, all, &mut hidden);
    text += "\nHEALTH\n";
    text += &numbers(&reply.health.gauges, &reply.health.counters, all, &mut hidden);
    text += "\nWORKERS\n";
    text += &worker_counters(reply, all, &mut hidden);
    text += "\nDHT\n";
    text += &numbers(&reply.dht.gauges, &reply.dht.counters, all, &mut hidden);
    text += "\nINCIDENTS\n";
    let of_strays = super::incidents::numbers(&reply.incidents);
    text += &numbers(&Counters::new(), &of_strays, all, &mut hidden);
    text += "\nCONTROL SOCKET\n";
    let ControlStats { gauges, counters, requests } = &reply.control;
    text += &numbers(&of_now(gauges), counters, all, &mut hidden);
    text += &numbers(&Counters::new(), requests, all, &mut hidden);
    text += "\nRELOADS\n";
    let ReloadStats { gauges, counters } = &reply.reload;
    text += &numbers(gauges, counters, all, &mut hidden);
    text += "\nDISTRIBUTIONS\n";
    text += &distributions(&reply.dht.distributions);
    if hidden > 0 {
        // Writing into a String cannot fail.
        let _ = write!(text, "\n{hidden} counters are 0 and not shown; --all shows them.\n");
    }
    text
}

/// Gauges whose names counters have too.
fn of_now(gauges: &Counters) -> Counters {
    gauges.iter().map(|(name, value)| (format!("{name} now"), *value)).collect()
}

/// The devices, and what went through them in packets.
fn ports(ports: &[PortStats]) -> String {
    let head = ["ROLE", "NAME", "DRIVER", "MAC", "LINK", "DOWNS", "MTU"];
    let mut devices = Table::new(&head, &[5, 6]);
    let head =
        ["ROLE", "NAME", "RX PACKETS", "MISSED", "ERRORS", "NO MBUF", "TX PACKETS", "ERRORS"];
    let mut packets = Table::new(&head, &[2, 3, 4, 5, 6, 7]);
    let mut lacks = Table::new(&["ROLE", "LACKS"], &[]);
    for port in ports {
        devices.row(vec![
            port.role.clone(),
            port.name.clone(),
            port.driver.clone(),
            port.mac.clone(),
            if port.link_up { "up" } else { "DOWN" }.to_owned(),
            port.link_downs.to_string(),
            port.mtu.to_string(),
        ]);
        for lack in &port.lacks {
            lacks.row(vec![port.role.clone(), lack.clone()]);
        }
        packets.row(vec![
            port.role.clone(),
            port.name.clone(),
            port.rx_packets.to_string(),
            port.rx_missed.to_string(),
            port.rx_errors.to_string(),
            port.rx_no_mbuf.to_string(),
            port.tx_packets.to_string(),
            port.tx_errors.to_string(),
        ]);
    }
    let mut text = format!("{}\n{}", devices.render(), packets.render());
    if ports.iter().any(|port| !port.lacks.is_empty()) {
        text = format!("{text}\n{}", lacks.render());
    }
    text
}

/// Gauges, all of them, and counters, which are left out at 0 unless `all`.
fn numbers(gauges: &Counters, counters: &Counters, all: bool, hidden: &mut usize) -> String {
    let mut table = Table { rows: Vec::new(), right: &[1] };
    let shown = counters.iter().filter(|(_, value)| all || **value != 0);
    for (name, value) in gauges.iter().chain(shown) {
        table.row(vec![name.clone(), value.to_string()]);
    }
    if !all {
        *hidden += counters.values().filter(|value| **value == 0).count();
    }
    table.render()
}

/// The totals, and beside them each worker's share when there are several.
fn worker_counters(reply: &StatsReply, all: bool, hidden: &mut usize) -> String {
    if reply.workers.len() < 2 {
        return numbers(&Counters::new(), &reply.totals, all, hidden);
    }
    let cores = reply.workers.iter().map(|worker| format!("CORE {}", worker.core));
    let mut table = Table {
        rows: vec![["".to_owned(), "TOTAL".to_owned()].into_iter().chain(cores).collect()],
        right: RIGHT_OF_NAME,
    };
    for (name, total) in &reply.totals {
        if !all && *total == 0 {
            *hidden += 1;
            continue;
        }
        let share = |worker: &crate::protocol::WorkerStats| or_none(worker.counters.get(name));
        let shares = reply.workers.iter().map(share);
        table.row([name.clone(), total.to_string()].into_iter().chain(shares).collect());
    }
    table.render()
}

/// All columns but the first, for as many workers as there can be.
const RIGHT_OF_NAME: &[usize] = &{
    let mut columns = [0; crate::config::WORKERS_MAX + 1];
    let mut index = 0;
    while index < columns.len() {
        columns[index] = index + 1;
        index += 1;
    }
    columns
};

fn distributions(all: &std::collections::BTreeMap<String, Distribution>) -> String {
    let head = ["", "COUNT", "MIN", "P50", "P90", "P99", "MAX"];
    let mut table = Table::new(&head, &[1, 2, 3, 4, 5, 6]);
    for (name, measured) in all {
        let (name, is_time) = match name.strip_suffix("_us") {
            Some(name) => (name, true),
            None => (name.as_str(), false),
        };
        let value = |value: u64| match (measured.count, is_time) {
            (0, _) => NONE.to_owned(),
            (_, true) => micros(value),
            (_, false) => value.to_string(),
        };
        let of = |values: [u64; 5]| values.map(value);
        let values = of([measured.min, measured.p50, measured.p90, measured.p99, measured.max]);
        let cells = [name.to_owned(), measured.count.to_string()];
        table.row(cells.into_iter().chain(values).collect());
    }
    table.render()
}
