//! The text of `show health`, `drain` and `undrain`.

use crate::protocol::{CheckReport, DrainReport, HealthReply, HealthState};

use super::{NONE, Table, count, micros, millis};

/// `show health`.
#[must_use]
pub fn health(reply: &HealthReply) -> String {
    let mut text = format!("server     {}, {}\n", reply.state, sessions(reply.sessions_left));
    if let Some(drain) = &reply.drain {
        text += &format!("drain      {}\n", order(drain, reply.state));
    }
    text += &format!("announcer  {}\n", reply.announcer.kind);
    let troubles = [&reply.announcer.trouble, &reply.announcer.state_file_trouble];
    for trouble in troubles.into_iter().flatten() {
        text += &format!("           {trouble}\n");
    }
    text.push('\n');
    text += &prefixes(reply);
    if !reply.checks.is_empty() {
        text.push('\n');
        text += &checks(&reply.checks);
    }
    if reply.drain.is_some() && reply.announcer.kind == "none" {
        text += "\nThere is no announcer: withdraw the prefixes yourself.\n";
    }
    text
}

fn sessions(left: u64) -> String {
    count(left, "local session")
}

fn order(drain: &DrainReport, state: HealthState) -> String {
    let mut words = vec![format!("by {}", drain.mode)];
    if drain.persist {
        words.push("also after a restart".to_owned());
    }
    match to_go(drain) {
        Some(to_go) if state != HealthState::Drained => words.push(format!("{to_go} to go")),
        _ => words.push(format!("ordered {} ago", millis(drain.since_ms))),
    }
    words.join(", ")
}

/// What is left of its time; `None` when nothing is.
fn to_go(drain: &DrainReport) -> Option<String> {
    let left = drain.timeout_ms.checked_sub(drain.since_ms);
    left.filter(|left| *left > 0).map(millis)
}

fn prefixes(reply: &HealthReply) -> String {
    let mut table = Table::new(&["PREFIX", "STATE", "SINCE", "ROUTE", "BECAUSE"], &[]);
    for prefix in &reply.prefixes {
        let because = prefix.because.join("; ");
        table.row(vec![
            prefix.prefix.to_string(),
            prefix.state.to_string(),
            millis(prefix.since_ms),
            prefix.route.replace('_', " "),
            if because.is_empty() { NONE.to_owned() } else { because },
        ]);
    }
    table.render()
}

fn checks(checks: &[CheckReport]) -> String {
    let head = ["CHECK", "SERVICE", "STATE", "SINCE", "CHECKS", "FAILED", "LAST", "TROUBLE"];
    let mut table = Table::new(&head, &[4, 5]);
    for check in checks {
        let is_own = check.target == check.service;
        let port = if is_own { String::new() } else { format!(" :{}", check.target.port()) };
        let state = match check.up {
            None => NONE,
            Some(true) => "up",
            Some(false) => "DOWN",
        };
        table.row(vec![
            format!("{}{port}", check.kind),
            check.service.to_string(),
            state.to_owned(),
            check.since_ms.map_or_else(|| NONE.to_owned(), millis),
            check.checks.to_string(),
            check.failures.to_string(),
            micros(check.duration_us),
            check.trouble.clone().unwrap_or_else(|| NONE.to_owned()),
        ]);
    }
    table.render()
}

/// A line of `drain --wait` on its way.
#[must_use]
pub fn draining(reply: &HealthReply) -> String {
    if reply.state == HealthState::Drained {
        return "drained: the prefixes are being withdrawn\n".to_owned();
    }
    let to_go = reply.drain.as_ref().and_then(to_go);
    let to_go = to_go.map_or_else(String::new, |to_go| format!(", {to_go} to go"));
    format!("{}: {} left{to_go}\n", reply.state, sessions(reply.sessions_left))
}

/// The last line of `drain --wait`.
#[must_use]
pub fn drained(reply: &HealthReply) -> String {
    match reply.sessions_left {
        0 => "drained: no session is left\n".to_owned(),
        left => format!("drained: the time is over, {} left\n", sessions(left)),
    }
}
