//! Turns answers of the daemon into text for people: aligned tables, units, what is left out.
//! Never asks the daemon.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use humantime_serde::re::humantime::format_rfc3339_millis;

use crate::protocol::{
    Counters, Distribution, KernelCheckStats, LoadPeriod, LookupOutcome, LookupReply, LookupReport,
    LookupsReply, Peer, PeersReply, PortStats, SessionEntry, SessionKind, SessionsReply,
    StatsReply, VersionReply, WorkersReply,
};

/// Stands where there is no value.
const NONE: &str = "-";

/// Lines up the cells of rows.
struct Table {
    rows: Vec<Vec<String>>,
    /// Columns whose cells end at one line, as numbers do.
    right: &'static [usize],
}

impl Table {
    fn new(head: &[&str], right: &'static [usize]) -> Table {
        Table { rows: vec![head.iter().map(ToString::to_string).collect()], right }
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let gap = if column == 0 { "" } else { "  " };
                if self.right.contains(&column) {
                    line += &format!("{gap}{cell:>width$}");
                } else {
                    line += &format!("{gap}{cell:<width$}");
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// A time of at most a few characters: `312 µs`, `4.2 ms`, `12.5 s`, `3 h 12 min`, `4 d 7 h`.
#[must_use]
pub fn short_time(time: Duration) -> String {
    let us = time.as_micros();
    let seconds = time.as_secs();
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        60_000_000..3_600_000_000 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600_000_000..86_400_000_000 => {
            format!("{} h {} min", seconds / 3600, seconds / 60 % 60)
        }
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn micros(us: u64) -> String {
    short_time(Duration::from_micros(us))
}

fn millis(ms: u64) -> String {
    short_time(Duration::from_millis(ms))
}

fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

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
    text += "\nWORKERS\n";
    text += &worker_counters(reply, all, &mut hidden);
    text += "\nDHT\n";
    text += &numbers(&reply.dht.gauges, &reply.dht.counters, all, &mut hidden);
    text += "\nDISTRIBUTIONS\n";
    text += &distributions(&reply.dht.distributions);
    if hidden > 0 {
        // Writing into a String cannot fail.
        let _ = write!(text, "\n{hidden} counters are 0 and not shown; --all shows them.\n");
    }
    text
}

fn ports(ports: &[PortStats]) -> String {
    let mut table = Table::new(
        &[
            "ROLE",
            "NAME",
            "DRIVER",
            "MAC",
            "LINK",
            "MTU",
            "RX PACKETS",
            "MISSED",
            "ERRORS",
            "NO MBUF",
            "TX PACKETS",
            "ERRORS",
        ],
        &[5, 6, 7, 8, 9, 10, 11],
    );
    for port in ports {
        table.row(vec![
            port.role.clone(),
            port.name.clone(),
            port.driver.clone(),
            port.mac.clone(),
            if port.link_up { "up" } else { "DOWN" }.to_owned(),
            port.mtu.to_string(),
            port.rx_packets.to_string(),
            port.rx_missed.to_string(),
            port.rx_errors.to_string(),
            port.rx_no_mbuf.to_string(),
            port.tx_packets.to_string(),
            port.tx_errors.to_string(),
        ]);
    }
    table.render()
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

/// `show workers`.
#[must_use]
pub fn workers(reply: &WorkersReply) -> String {
    let last = match &reply.last_second {
        Some(period) => format!("LAST SECOND ({})\n{}", micros(period.duration_us), load(period)),
        None => "LAST SECOND\nnot measured yet\n".to_owned(),
    };
    format!(
        "{last}\nSINCE THE START ({})\n{}\ntime stamp counter {:.3} GHz, session table on pages of {}\n",
        micros(reply.since_start.duration_us),
        load(&reply.since_start),
        reply.tsc_hz as f64 / 1e9,
        page_size(reply.table_page_bytes),
    )
}

fn load(period: &LoadPeriod) -> String {
    let head = [
        "CORE",
        "BUSY",
        "PACKETS/BURST",
        "CYCLES/PACKET",
        "UPLINK PACKETS/S",
        "HOST PACKETS/S",
        "DROPS",
        "DROPS/S",
        "TURNS/S",
    ];
    let mut table = Table::new(&head, &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let ratio = |value: Option<f64>| or_none(value.map(|value| format!("{value:.1}")));
    for worker in &period.workers {
        table.row(vec![
            worker.core.to_string(),
            or_none(worker.busy_percent.map(|percent| format!("{percent:.1} %"))),
            ratio(worker.packets_per_burst),
            ratio(worker.cycles_per_packet),
            or_none(worker.uplink_packets_per_s),
            or_none(worker.host_packets_per_s),
            worker.drops.to_string(),
            or_none(worker.drops_per_s),
            or_none(worker.turns_per_s),
        ]);
    }
    table.render()
}

/// A page's size, as in `2 MiB`.
fn page_size(bytes: u64) -> String {
    match bytes.trailing_zeros() {
        30..=63 => format!("{} GiB", bytes >> 30),
        20..=29 => format!("{} MiB", bytes >> 20),
        10..=19 => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

/// `show sessions`.
#[must_use]
pub fn sessions(reply: &SessionsReply) -> String {
    let head = ["FLOW", "KIND", "STATE", "OWNER", "IDLE", "VERSION"];
    let mut table = Table::new(&head, &[4, 5]);
    for entry in &reply.sessions {
        table.row(vec![
            entry.flow.to_string(),
            entry.kind.to_string(),
            entry.state.clone(),
            entry.owner.to_string(),
            millis(entry.idle_ms),
            or_none(entry.version),
        ]);
    }
    let shown = reply.sessions.len();
    let more = if reply.truncated { "; --limit shows more" } else { "" };
    format!("{}\n{shown} of {} sessions{more}\n", table.render(), reply.total)
}

/// `show peers`.
#[must_use]
pub fn peers(reply: &PeersReply) -> String {
    let head = [
        "LOCATOR",
        "STATE",
        "RTT",
        "MISSED",
        "LAST SEEN",
        "STARTED (UTC)",
        "LIFE",
        "ADDRESS",
        "ID",
    ];
    let mut table = Table::new(&head, &[2, 3, 4, 6]);
    for peer in &reply.peers {
        table.row(vec![
            peer.locator.to_string(),
            peer.state.clone(),
            or_none(peer.srtt_us.map(micros)),
            or_none(peer.missed),
            last_seen(peer),
            or_none(peer.started_unix_us.map(utc)),
            or_none(peer.life),
            peer.address.to_string(),
            peer.id.clone(),
        ]);
    }
    format!("{}\n{}\n", table.render(), count_of(&reply.peers))
}

fn last_seen(peer: &Peer) -> String {
    match (peer.last_seen_ms, peer.absent_ms) {
        (Some(ms), _) => millis(ms) + " ago",
        (None, Some(ms)) => format!("gone {}", millis(ms)),
        (None, None) => NONE.to_owned(),
    }
}

/// How many there are, and how many of them not simply alive.
fn count_of(peers: &[Peer]) -> String {
    let mut text = format!("{} peers", peers.len());
    for state in ["suspect", "away", "dead"] {
        let count = peers.iter().filter(|peer| peer.state == state).count();
        if count > 0 {
            text += &format!(", {count} {state}");
        }
    }
    text
}

/// `show lookups`.
#[must_use]
pub fn lookups(reply: &LookupsReply) -> String {
    let head = ["ASKED (UTC)", "TOOK", "OUTCOME", "OWNER", "FLOW"];
    let mut table = Table::new(&head, &[1]);
    for lookup in &reply.lookups {
        table.row(vec![
            utc(lookup.asked_at_unix_us),
            micros(lookup.duration_us),
            lookup.outcome.to_string(),
            or_none(lookup.owner),
            lookup.flow.to_string(),
        ]);
    }
    format!("{}\n{} lookups, the newest first\n", table.render(), reply.lookups.len())
}

/// `lookup FLOW`.
#[must_use]
pub fn lookup(reply: &LookupReply) -> String {
    let table = reply.table.as_ref().map_or_else(|| "no entry".to_owned(), entry);
    let mut text =
        format!("flow   {}\ntable  {table}\ndht    {}\n", reply.flow, report(&reply.dht));
    if !reply.dht.replicas.is_empty() {
        text.push('\n');
        text += &replicas(&reply.dht);
    }
    text
}

fn entry(entry: &SessionEntry) -> String {
    let idle = millis(entry.idle_ms);
    match entry.kind {
        SessionKind::Local => {
            format!("local, {}, version {}, idle for {idle}", entry.state, or_none(entry.version))
        }
        SessionKind::Redirect => format!("redirect to {}, idle for {idle}", entry.owner),
    }
}

fn report(report: &LookupReport) -> String {
    let outcome = match report.outcome {
        LookupOutcome::Owner => {
            let (owner, version) = (or_none(report.owner), or_none(report.version));
            format!("owner {owner}, version {version}")
        }
        LookupOutcome::NotFound => "nobody owns it".to_owned(),
        LookupOutcome::TimedOut => "too few replicas answered in time".to_owned(),
    };
    format!("{outcome}; took {}", micros(report.duration_us))
}

fn replicas(report: &LookupReport) -> String {
    let head = ["ASKED", "ANSWER", "OWNER", "VERSION", "RTT"];
    let mut table = Table::new(&head, &[3, 4]);
    for replica in &report.replicas {
        table.row(vec![
            replica.locator.to_string(),
            replica.answer.clone(),
            or_none(replica.owner),
            or_none(replica.version),
            or_none(replica.rtt_us.map(micros)),
        ]);
    }
    table.render()
}

/// A point in time from microseconds since the Unix epoch.
fn utc(unix_us: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(unix_us));
    // The formatter knows no years above 9999.
    const LAST_US: u64 = 253_402_300_799_000_000;
    match time.filter(|_| unix_us <= LAST_US) {
        Some(time) => format_rfc3339_millis(time).to_string(),
        None => format!("{unix_us} µs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let rows = [
            (0, "0 µs"),
            (312, "312 µs"),
            (4_240, "4.2 ms"),
            (12_500_000, "12.5 s"),
            (61_000_000, "1 min 1 s"),
            (11_520_000_000, "3 h 12 min"),
            (370_800_000_000, "4 d 7 h"),
        ];
        for (us, expected) in rows {
            assert_eq!(micros(us), expected);
        }
    }

    #[test]
    fn page_sizes_are_short() {
        let rows = [
            (0, "0 bytes"),
            (100, "100 bytes"),
            (4 << 10, "4 KiB"),
            (2 << 20, "2 MiB"),
            (1 << 30, "1 GiB"),
            (1 << 63, "8589934592 GiB"),
            (u64::MAX, "18446744073709551615 bytes"),
        ];
        for (bytes, expected) in rows {
            assert_eq!(page_size(bytes), expected);
        }
    }

    #[test]
    fn a_time_beyond_the_calendar_does_not_panic() {
        assert_eq!(utc(1_470_182_400_123_456), "2016-08-03T00:00:00.123Z");
        assert_eq!(utc(u64::MAX), "18446744073709551615 µs");
    }
}
