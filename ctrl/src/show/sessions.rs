//! The text of `sessions …`.

use crate::protocol::SessionsReply;

use super::{Table, millis, or_none};

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
