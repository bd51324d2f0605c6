//! Turns answers of the daemon into text for people: aligned tables, units, what is left out.
//! Never asks the daemon. A file for each group of commands.

mod config;
mod explain;
mod health;
mod incidents;
mod limits;
mod lookups;
mod packets;
mod peers;
mod reload;
mod routing;
mod sessions;
mod stats;
mod workers;

use std::time::{Duration, SystemTime};

use humantime_serde::re::humantime::format_rfc3339_millis;

pub use config::config;
pub use explain::explain;
pub use health::{drained, draining, health};
pub(crate) use incidents::causes_in_short;
pub use incidents::{incident, incidents};
pub use limits::limits;
pub use lookups::{lookup, lookups};
pub use packets::{CaptureReport, end_of_capture, packet, packet_comment, packets_head};
pub use peers::peers;
pub use reload::reload;
pub use routing::routing;
pub use sessions::{session, session_change, sessions, sessions_count, sessions_delete};
pub use stats::{stats, version};
pub use workers::workers;

use crate::protocol::{StreamEnd, StreamReply};

/// Stands where there is no value.
pub(crate) const NONE: &str = "-";

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

/// How many there are of a thing: "1 session", "2 sessions".
pub(crate) fn count(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

pub(crate) fn micros(us: u64) -> String {
    short_time(Duration::from_micros(us))
}

pub(crate) fn millis(ms: u64) -> String {
    short_time(Duration::from_millis(ms))
}

pub(crate) fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// Columns of a line, at most.
const WIDTH: usize = 100;

/// A paragraph in lines that fit, behind `head` and indented like it.
fn wrapped(head: &str, text: &str) -> String {
    let indent = head.chars().count();
    let mut line = head.to_owned();
    let mut lines = String::new();
    let mut is_new = true;
    for word in text.split_whitespace() {
        if !is_new && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += line.trim_end();
            lines.push('\n');
            line = " ".repeat(indent);
            is_new = true;
        }
        if !is_new {
            line.push(' ');
        }
        line += word;
        is_new = false;
    }
    lines + line.trim_end() + "\n"
}

/// A line that says how a stream ended.
#[must_use]
pub fn stream_end(reply: &StreamReply) -> String {
    format!("{} shown{}\n", reply.items, ended(reply))
}

/// What was missed of a stream, and why it ended.
fn ended(reply: &StreamReply) -> String {
    let why = match reply.ended {
        StreamEnd::Done => "there are no more",
        StreamEnd::Count => "as many as were asked for",
        StreamEnd::Bytes => "as many bytes as were asked for",
        StreamEnd::Time => "the time is over",
        StreamEnd::Stopped => "the daemon stops",
        StreamEnd::Lost => "the connection is lost",
    };
    let missed = match reply.missed {
        0 => String::new(),
        missed => format!(", {missed} missed"),
    };
    format!("{missed}: {why}")
}

/// A line in place of items that were missed.
#[must_use]
pub fn missed(count: u64) -> String {
    format!("({count} missed: they came faster than they were read)\n")
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
    fn paragraphs_fit() {
        let text = "word ".repeat(60);
        let lines = wrapped(" 1. R12  ", &text);
        assert!(lines.lines().all(|line| line.chars().count() <= WIDTH), "{lines}");
        assert!(lines.lines().skip(1).all(|line| line.starts_with("         word")), "{lines}");
        assert_eq!(lines.split_whitespace().count(), 62);
        let long = wrapped("> ", &"x".repeat(150));
        assert_eq!(long, format!("> {}\n", "x".repeat(150)));
    }

    #[test]
    fn a_time_beyond_the_calendar_does_not_panic() {
        assert_eq!(utc(1_470_182_400_123_456), "2016-08-03T00:00:00.123Z");
        assert_eq!(utc(u64::MAX), "18446744073709551615 µs");
    }
}
