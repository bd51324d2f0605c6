//! The text of `sessions …` and `show sessions`.

use crate::protocol::{
    Counters, SessionChange, SessionEntry, SessionKind, SessionsCountReply, SessionsDeleteReply,
    SessionsReply,
};

use super::{Table, count, millis, or_none, utc};

/// `sessions list` and `show sessions`.
#[must_use]
pub fn sessions(reply: &SessionsReply) -> String {
    let shown = reply.sessions.len();
    let more = if reply.truncated { "; --limit shows more" } else { "" };
    format!("{}\n{shown} of {} sessions{more}\n", list(&reply.sessions), reply.total)
}

/// The flow comes last, for those of IPv6 are long.
fn list(entries: &[SessionEntry]) -> String {
    let head = ["KIND", "STATE", "OWNER", "IDLE", "VERSION", "PUBLISHED", "FLOW"];
    let mut table = Table::new(&head, &[3, 4]);
    for entry in entries {
        table.row(vec![
            entry.kind.to_string(),
            entry.state.clone(),
            entry.owner.to_string(),
            millis(entry.idle_ms),
            or_none(entry.version),
            or_none(entry.published.map(yes_or_no)),
            entry.flow.to_string(),
        ]);
    }
    table.render()
}

fn yes_or_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

/// `sessions get FLOW`.
#[must_use]
pub fn session(entry: &SessionEntry) -> String {
    format!("flow   {}\ntable  {}\n", entry.flow, line(entry))
}

/// One entry in a line, without its flow.
pub(super) fn line(entry: &SessionEntry) -> String {
    let idle = millis(entry.idle_ms);
    match entry.kind {
        SessionKind::Local => {
            let published = match entry.published {
                Some(false) => ", not published",
                Some(true) => ", published",
                None => "",
            };
            let version = or_none(entry.version);
            format!("local, {}, version {version}{published}, idle for {idle}", entry.state)
        }
        SessionKind::Redirect => format!("redirect to {}, idle for {idle}", entry.owner),
    }
}

/// `sessions count`.
#[must_use]
pub fn sessions_count(reply: &SessionsCountReply) -> String {
    let mut text = String::new();
    for (head, counts) in
        [("STATE", &reply.by_state), ("SERVICE", &reply.by_service), ("OWNER", &reply.by_owner)]
    {
        if !counts.is_empty() {
            text += &by(head, counts);
            text.push('\n');
        }
    }
    text + &count(reply.total, "session") + "\n"
}

fn by(head: &str, counts: &Counters) -> String {
    let mut table = Table::new(&[head, "SESSIONS"], &[1]);
    for (name, count) in counts {
        table.row(vec![name.clone(), count.to_string()]);
    }
    table.render()
}

/// `sessions delete`.
#[must_use]
pub fn sessions_delete(reply: &SessionsDeleteReply) -> String {
    let mut text = String::new();
    if !reply.sessions.is_empty() {
        text = list(&reply.sessions) + "\n";
    }
    let deleted = count(reply.sessions.len() as u64, "session");
    let withdrawn = count(reply.withdrawn, "record");
    text += &format!("{deleted} deleted, {withdrawn} withdrawn");
    if reply.left > 0 {
        text += &format!("; {} more match", reply.left);
    }
    text + "\n"
}

/// A line of `sessions watch`.
#[must_use]
pub fn session_change(change: &SessionChange) -> String {
    format!(
        "{}  {:<13}  {:<15}  {}\n",
        utc(change.at_unix_us),
        change.event.to_string(),
        or_none(change.owner),
        change.flow,
    )
}
