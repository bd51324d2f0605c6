//! The text of `trace` and `capture`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use humantime_serde::re::humantime::format_rfc3339_micros;
use serde::Serialize;

use crate::protocol::{PacketItem, PacketKind, PacketOrigin, PacketVerdict, StreamReply};

use super::{NONE, count, ended};

/// What `holdfastctl capture` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptureReport {
    /// The file that it wrote.
    pub file: PathBuf,
    /// Frames in it.
    pub frames: u64,
    /// Their bytes in it.
    pub bytes: u64,
    /// The end of the daemon's stream.
    #[serde(flatten)]
    pub stream: StreamReply,
}

/// The line above a trace's packets.
#[must_use]
pub fn packets_head() -> &'static str {
    "TIME (UTC)       FROM             LENGTH  FLAGS     VERDICT                         RULES   COUNTERS\n"
}

/// A packet in a line.
#[must_use]
pub fn packet(item: &PacketItem) -> String {
    let origin = match item.sender {
        Some(sender) => format!("{} {sender}", item.origin),
        None => item.origin.to_string(),
    };
    let line = format!(
        "{:<15}  {origin:<15}  {:>6}  {:<8}  {:<30}  {:<6}  {}",
        time_of_day(item.at_unix_us),
        item.length,
        flags(item),
        verdict(item),
        item.rules.join(","),
        item.counters.join(" "),
    );
    format!("{}\n", line.trim_end())
}

/// What a capture says with each frame of a packet.
#[must_use]
pub fn packet_comment(item: &PacketItem) -> String {
    let mut comment = verdict(item);
    if !item.rules.is_empty() {
        comment += &format!(" ({})", item.rules.join(", "));
    }
    if !item.counters.is_empty() {
        comment += &format!("; counters: {}", item.counters.join(" "));
    }
    if let Some(sender) = item.sender {
        comment += &format!("; tunnelled by {sender}");
    }
    comment + &format!("; worker on core {}", item.core)
}

/// What became of a capture.
#[must_use]
pub fn end_of_capture(report: &CaptureReport) -> String {
    let CaptureReport { file, frames, bytes, stream } = report;
    let packets = count(stream.items, "packet");
    let frames = count(*frames, "frame");
    let kept = format!("{packets} as {frames} of {bytes} bytes in {}", file.display());
    format!("{kept}{}\n", ended(stream))
}

fn verdict(item: &PacketItem) -> String {
    let has_waited = item.origin == PacketOrigin::Waited;
    let owner = item.owner.map_or_else(|| "its owner".to_owned(), |owner| owner.to_string());
    let counter = item.counter.as_deref().unwrap_or(NONE);
    match item.verdict {
        PacketVerdict::ToHost if has_waited => "released to the host".to_owned(),
        PacketVerdict::ToHost => "to the host".to_owned(),
        PacketVerdict::ToUplink => "to the network".to_owned(),
        PacketVerdict::Tunnelled if has_waited => format!("released to {owner}"),
        PacketVerdict::Tunnelled => format!("tunnelled to {owner}"),
        PacketVerdict::Answered => "answered: too big".to_owned(),
        PacketVerdict::Parked => "parked".to_owned(),
        PacketVerdict::Waits => "waits for the first fragment".to_owned(),
        PacketVerdict::Dropped => format!("dropped: {counter}"),
        PacketVerdict::Withheld => format!("withheld: {counter}"),
    }
}

fn flags(item: &PacketItem) -> String {
    match (&item.flags, item.kind) {
        (Some(flags), _) if flags.is_empty() => "none".to_owned(),
        (Some(flags), _) => flags.join(",").to_uppercase(),
        (None, PacketKind::IcmpError) => "(icmp)".to_owned(),
        (None, PacketKind::Fragment) => "(frag)".to_owned(),
        (None, PacketKind::Segment | PacketKind::Other) => NONE.to_owned(),
    }
}

/// The time of day, to the microsecond.
fn time_of_day(unix_us: u64) -> String {
    // Days end alike, and the formatter knows no years above 9999.
    const DAY_US: u64 = 86_400_000_000;
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(unix_us % DAY_US);
    let text = format_rfc3339_micros(time).to_string();
    text.trim_start_matches("1970-01-01T").trim_end_matches('Z').to_owned()
}
