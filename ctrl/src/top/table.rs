//! The tables of `top`: their columns and rows, in what order and which of them. Never draws.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use thiserror::Error;

use super::data::{Round, Rounds};
use crate::protocol::{IncidentState, SessionKind};
use crate::show::{NONE, causes_in_short, micros, millis, or_none};

/// What a table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The workers.
    Workers,
    /// The other servers.
    Peers,
    /// Entries of the session table.
    Sessions,
    /// Incidents.
    Incidents,
}

/// Why a text is no subject of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected workers, peers, sessions or incidents")]
pub struct SubjectError;

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Subject, SubjectError> {
        let named = |subject: &Subject| subject.to_string() == text;
        Subject::ALL.into_iter().find(named).ok_or(SubjectError)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Subject::Workers => "workers",
            Subject::Peers => "peers",
            Subject::Sessions => "sessions",
            Subject::Incidents => "incidents",
        })
    }
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// Its cells end at one line, as numbers do.
    pub is_right: bool,
}

const fn left(name: &'static str) -> Column {
    Column { name, is_right: false }
}

const fn right(name: &'static str) -> Column {
    Column { name, is_right: true }
}

impl Subject {
    /// All of them, from top to bottom.
    pub const ALL: [Subject; 4] =
        [Subject::Workers, Subject::Peers, Subject::Sessions, Subject::Incidents];

    /// Its columns, the most important first.
    pub const fn columns(self) -> &'static [Column] {
        const WORKERS: &[Column] = &[
            left("WORKER"),
            right("BUSY"),
            right("UPLINK/S"),
            right("HOST/S"),
            right("TUNNELLED/S"),
            right("DROPS/S"),
            right("PER BURST"),
            right("CYCLES"),
        ];
        const PEERS: &[Column] = &[
            left("PEER"),
            left("STATE"),
            right("RTT"),
            right("MISSED"),
            right("LAST SEEN"),
            right("LIFE"),
        ];
        const SESSIONS: &[Column] =
            &[left("SESSION"), left("STATE"), right("IDLE"), left("REDIRECTED TO")];
        const INCIDENTS: &[Column] = &[
            left("INCIDENT"),
            right("BEGAN"),
            right("LASTED"),
            right("SESSIONS"),
            right("SAVED"),
            right("LOST"),
            left("CAUSE"),
            right("FORWARDED"),
            right("DETECTED"),
        ];
        match self {
            Subject::Workers => WORKERS,
            Subject::Peers => PEERS,
            Subject::Sessions => SESSIONS,
            Subject::Incidents => INCIDENTS,
        }
    }

    /// How it is sorted until it is told otherwise.
    pub const fn order(self) -> Order {
        let (column, is_descending) = match self {
            Subject::Workers | Subject::Peers => (0, false),
            Subject::Sessions => (2, false),
            Subject::Incidents => (0, true),
        };
        Order { column, is_descending }
    }

    /// Its rows in what was answered, sorted, and those alone that have `filter` in them.
    pub fn rows(self, rounds: &Rounds, order: Order, filter: &str) -> Vec<Row> {
        let Some(round) = rounds.latest() else {
            return Vec::new();
        };
        let mut rows = match self {
            Subject::Workers => workers(round, rounds),
            Subject::Peers => peers(round),
            Subject::Sessions => sessions(round),
            Subject::Incidents => incidents(round),
        };
        let filter = filter.to_lowercase();
        let has_it = |cell: &Cell| cell.text.to_lowercase().contains(&filter);
        rows.retain(|row| row.cells.iter().any(has_it));
        let compare = |one: &Row, other: &Row| {
            let compared = one.cells[order.column].key.compare(&other.cells[order.column].key);
            if order.is_descending { compared.reverse() } else { compared }
        };
        rows.sort_by(compare);
        rows
    }
}

/// What a table is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub column: usize,
    pub is_descending: bool,
}

/// How much something matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    /// It is not as it should be, but may become so by itself.
    Uneasy,
    /// It is wrong.
    Bad,
}

/// A row.
#[derive(Debug)]
pub struct Row {
    pub cells: Vec<Cell>,
    pub tone: Tone,
}

/// What is shown, and by what it is sorted.
#[derive(Debug)]
pub struct Cell {
    pub text: String,
    key: SortKey,
}

/// What there is not comes first.
#[derive(Debug, PartialEq, PartialOrd)]
enum SortKey {
    None,
    Number(f64),
    Text(String),
    Address(std::net::IpAddr),
}

impl SortKey {
    fn compare(&self, other: &SortKey) -> Ordering {
        self.partial_cmp(other).unwrap_or(Ordering::Equal)
    }
}

impl Cell {
    fn text(text: impl Into<String>) -> Cell {
        let text = text.into();
        Cell { key: SortKey::Text(text.clone()), text }
    }

    fn number(number: Option<f64>, shown: impl FnOnce(f64) -> String) -> Cell {
        let key = number.map_or(SortKey::None, SortKey::Number);
        Cell { text: number.map_or_else(|| NONE.to_owned(), shown), key }
    }

    fn count(count: u64) -> Cell {
        Cell::number(Some(count as f64), |_| count.to_string())
    }

    fn optional(count: Option<u64>, shown: fn(u64) -> String) -> Cell {
        Cell { text: or_none(count.map(shown)), ..Cell::number(count.map(|c| c as f64), short) }
    }
}

/// A number in at most five characters: `0.4`, `312`, `4.12k`, `12.4M`.
pub fn short(number: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    // What would be rounded up to the unit is of it.
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| number >= unit * 0.9995) else {
        let decimals = usize::from(number < 9.95 && number.fract() != 0.0);
        return format!("{number:.decimals$}");
    };
    let number = number / unit;
    let decimals = if number < 9.995 { 2 } else { usize::from(number < 99.95) };
    format!("{number:.decimals$}{name}")
}

fn workers(round: &Round, rounds: &Rounds) -> Vec<Row> {
    let loads = round.workers.last_second.as_ref();
    let row = |(index, worker): (usize, &crate::protocol::WorkerStats)| {
        let load = loads.and_then(|period| period.workers.get(index));
        let per_second = |of: fn(&crate::protocol::WorkerLoad) -> Option<u64>| {
            Cell::number(load.and_then(of).map(|count| count as f64), short)
        };
        let tunnelled = rounds
            .per_second(|stats| stats.workers.get(index)?.counters.get("tunnel_sent").copied());
        let has_drops = load.is_some_and(|load| load.drops > 0);
        Row {
            cells: vec![
                Cell::number(Some(f64::from(worker.core)), |core| format!("core {core}")),
                Cell::number(load.and_then(|load| load.busy_percent), |busy| {
                    format!("{busy:.1} %")
                }),
                per_second(|load| load.uplink_packets_per_s),
                per_second(|load| load.host_packets_per_s),
                Cell::number(tunnelled, short),
                per_second(|load| load.drops_per_s),
                Cell::number(load.and_then(|load| load.packets_per_burst), short),
                Cell::number(load.and_then(|load| load.cycles_per_packet), short),
            ],
            tone: if has_drops { Tone::Uneasy } else { Tone::Plain },
        }
    };
    round.stats.workers.iter().enumerate().map(row).collect()
}

fn peers(round: &Round) -> Vec<Row> {
    let row = |peer: &crate::protocol::Peer| Row {
        cells: vec![
            Cell { text: peer.locator.to_string(), key: SortKey::Address(peer.locator) },
            Cell::text(peer.state.clone()),
            Cell::optional(peer.srtt_us, micros),
            Cell::optional(peer.missed, |missed| missed.to_string()),
            Cell::optional(peer.last_seen_ms.or(peer.absent_ms), millis),
            Cell::optional(peer.life, |life| life.to_string()),
        ],
        tone: match peer.state.as_str() {
            "alive" => Tone::Plain,
            "dead" => Tone::Bad,
            _ => Tone::Uneasy,
        },
    };
    round.peers.peers.iter().map(row).collect()
}

fn sessions(round: &Round) -> Vec<Row> {
    let row = |session: &crate::protocol::SessionEntry| Row {
        cells: vec![
            Cell::text(session.flow.to_string()),
            Cell::text(session.state.clone()),
            Cell::optional(Some(session.idle_ms), millis),
            match session.kind {
                SessionKind::Local => Cell { text: NONE.to_owned(), key: SortKey::None },
                SessionKind::Redirect => {
                    Cell { text: session.owner.to_string(), key: SortKey::Address(session.owner) }
                }
            },
        ],
        tone: Tone::Plain,
    };
    round.sessions.iter().flat_map(|reply| &reply.sessions).map(row).collect()
}

fn incidents(round: &Round) -> Vec<Row> {
    let now = round.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let row = |incident: &crate::protocol::IncidentSummary| {
        let ago = now_us.saturating_sub(incident.began_unix_us);
        let lasted = incident.ended_unix_us.saturating_sub(incident.began_unix_us);
        let is_open = incident.state == IncidentState::Open;
        let state = if is_open { " open" } else { "" };
        Row {
            cells: vec![
                Cell::number(Some(incident.id as f64), |_| format!("{}{state}", incident.id)),
                Cell::number(Some(-(ago as f64)), |_| format!("{} ago", micros(ago))),
                Cell::optional(Some(lasted), micros),
                Cell::count(incident.sessions.at_risk),
                Cell::count(incident.sessions.saved),
                Cell::count(incident.sessions.lost()),
                Cell::text(causes_in_short(&incident.causes)),
                Cell::optional(incident.forward_time_p50_us, micros),
                Cell::optional(incident.detection_time_us, micros),
            ],
            tone: match (incident.sessions.lost(), is_open) {
                (1.., _) => Tone::Bad,
                (0, true) => Tone::Uneasy,
                (0, false) => Tone::Plain,
            },
        }
    };
    round.incidents.incidents.iter().map(row).collect()
}

/// How wide columns are that are `wanted` so wide, with two columns between, in `width` of them:
/// the first gives way, to [`FIRST_MIN`], then the last ones do.
pub fn widths(columns: &[Column], wanted: &[usize], width: usize) -> Vec<usize> {
    let mut widths: Vec<usize> = vec![wanted[0].min(FIRST_MIN).min(width)];
    let mut used = widths[0];
    for (column, wanted) in columns.iter().zip(wanted).skip(1) {
        let left = width.saturating_sub(used + GAP);
        let is_enough = *wanted <= left || !column.is_right && left >= TEXT_MIN;
        if !is_enough {
            break;
        }
        widths.push(left.min(*wanted));
        used += GAP + left.min(*wanted);
    }
    widths[0] += (width - used).min(wanted[0] - widths[0]);
    widths
}

/// Between two columns.
pub const GAP: usize = 2;
/// The first column has so much, if it wants it: a flow of IPv4.
const FIRST_MIN: usize = 43;
/// A text that is cut has so much at least.
const TEXT_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let rows = [
            (0.0, "0"),
            (0.44, "0.4"),
            (3.0, "3"),
            (9.94, "9.9"),
            (9.95, "10"),
            (312.4, "312"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (4_124.0, "4.12k"),
            (9_996.0, "10.0k"),
            (99_960.0, "100k"),
            (999_600.0, "1.00M"),
            (12_440_000.0, "12.4M"),
            (7.1e9, "7.10G"),
            (2e16, "20000T"),
        ];
        for (number, expected) in rows {
            assert_eq!(short(number), expected, "{number}");
        }
    }

    #[test]
    fn columns_give_way_from_the_first_and_the_last() {
        let columns = [left("A"), right("B"), left("C"), right("D")];
        let rows: &[(&[usize], usize, &[usize])] = &[
            (&[5, 5, 5, 5], 80, &[5, 5, 5, 5]),
            (&[60, 5, 5, 5], 80, &[59, 5, 5, 5]),
            (&[60, 5, 20, 5], 77, &[48, 5, 20]),
            (&[60, 5, 20, 5], 75, &[46, 5, 20]),
            (&[60, 5, 20, 5], 62, &[43, 5, 10]),
            (&[60, 5, 20, 5], 58, &[51, 5]),
            (&[60, 5, 20, 5], 40, &[40]),
            (&[5, 5, 5, 5], 3, &[3]),
            (&[5, 5, 5, 5], 0, &[0]),
        ];
        for (wanted, width, expected) in rows {
            let widths = widths(&columns, wanted, *width);
            assert_eq!(&widths, expected, "{wanted:?} in {width}");
            let used: usize = widths.iter().sum::<usize>() + GAP * (widths.len() - 1);
            assert!(used <= *width, "{wanted:?} in {width}");
        }
    }
}
